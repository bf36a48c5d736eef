//! The serving side: answers requests, echoes, takes and checks data, exposes memory.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use towline::{AvailableMemory, Buffer, BufferMut, Connection, ErrorKind, Listener, Message, Region};

use super::sending::Sending;
use super::{Answer, Candidate, MessageReceiver, PeerView, Request, Usage, encode, is_conversation};
use crate::ceiling::socket;
use crate::ceiling::socket::SocketTest;
use crate::ceiling::tls_socket;
use crate::data::messages::MessageSource;
use crate::data::messages::inspect;
use crate::data::payload;
use crate::data::payload::{Check, Layout, MessageSpec, Payload};
use crate::failure::Failure;
use crate::machine::fingerprint;
use crate::process::cpu_clock::CpuClock;
use crate::terminal::print::say;

/// Connections served at once; further ones wait until one ends.
const CONNECTIONS_MAX: usize = 256;

/// How long memory stays exposed if the peer does not withdraw it.
const REGION_LIFETIME: Duration = Duration::from_secs(3600);

/// Serves `listener` until it fails or the caller drops this.
pub(crate) async fn serve(listener: Listener, clock: CpuClock) -> Result<(), Failure> {
    let address = listener.address();
    let host: Arc<str> = if address.is_wildcard() { "::".into() } else { address.host().into() };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok(connection) => {
                let host = host.clone();
                connections.spawn(async move {
                    let name = connection.peer().to_string();
                    if let Err(why) = Session::new(connection, clock, host).run().await {
                        say(format_args!("{name}: {why}"));
                    }
                });
            }
            Err(error) if error.kind() == ErrorKind::Closed => return Err(error.into()),
            Err(error) => {
                // A refused peer does not end the server. The pause bounds the rate of refusals.
                say(error);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Session {
    connection: Connection,
    clock: CpuClock,
    /// The host at which bare sockets listen: that of the endpoint.
    host: Arc<str>,
    mode: Mode,
    /// The receiver of messages, once a request has set the place.
    intake: Option<MessageReceiver>,
    /// Payload bytes copied here, in addition to those that the connection counts.
    copied: Arc<AtomicU64>,
    messages: u64,
    problem: Option<String>,
    /// The last window of messages, so that as much memory is received into, in turn.
    held: VecDeque<Message>,
    payload: Payload,
    lent: Option<Region<Buffer>>,
    borrowed: Option<(Region<BufferMut>, Layout)>,
    /// Set when the peer has enough messages.
    enough: Arc<AtomicBool>,
    /// Resolves when the bare socket in use is closed.
    bare: Option<oneshot::Receiver<()>>,
}

#[derive(Debug)]
enum Mode {
    Echo { read: bool },
    Reply(MessageSpec, MessageSource),
    Sink(MessageSpec),
}

impl Session {
    fn new(connection: Connection, clock: CpuClock, host: Arc<str>) -> Self {
        Self {
            connection,
            clock,
            host,
            mode: Mode::Echo { read: false },
            intake: None,
            copied: Arc::default(),
            messages: 0,
            problem: None,
            held: VecDeque::new(),
            payload: Payload::default(),
            lent: None,
            borrowed: None,
            enough: Arc::default(),
            bare: None,
        }
    }

    /// Serves until the peer closes. A lost peer is no failure.
    async fn run(mut self) -> Result<(), towline::Error> {
        loop {
            match self.step().await {
                Err(error) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::PeerLost) => {
                    return Ok(());
                }
                outcome => outcome?,
            }
        }
    }

    /// Receives one message and handles it.
    async fn step(&mut self) -> Result<(), towline::Error> {
        if let Some(bare) = self.bare.take() {
            // Receiving a message at the same time might spin, and take a core from the measurement.
            let _ = bare.await;
        }
        let message = match &self.intake {
            Some(intake) => intake.next().await?,
            None => self.connection.recv().await?,
        };
        if !is_conversation(message.header()) {
            return self.take(message).await;
        }
        match serde_json::from_slice(message.header()) {
            Ok(Request::Send { first, duration_ms }) => {
                self.start_sending(first, duration_ms);
                return Ok(());
            }
            Ok(Request::Enough) => {
                self.enough.store(true, Ordering::Relaxed);
                return Ok(());
            }
            _ => {}
        }
        let answer = self.answer(message.header()).await.unwrap_or_else(|why| Answer::Problem { why });
        let header = encode(&answer).map_err(|why| towline::Error::new(ErrorKind::Invalid, why))?;
        self.connection.send(Message::new(header)).await?;
        Ok(())
    }

    async fn take(&mut self, message: Message) -> Result<(), towline::Error> {
        let read = |message: &Message| {
            message.frames().iter().filter_map(Buffer::as_slice).for_each(payload::read);
        };
        match &self.mode {
            Mode::Echo { read: asked } => {
                if *asked {
                    read(&message);
                }
                self.connection.send(message).await?;
            }
            Mode::Reply(spec, load) => {
                if spec.check == Check::Read {
                    read(&message);
                }
                self.connection.send(load.message(self.messages)).await?;
                if let Err(why) = inspect(&message, spec.read_already(), self.messages) {
                    self.problem.get_or_insert(why);
                }
            }
            Mode::Sink(spec) => {
                if let Err(why) = inspect(&message, *spec, self.messages) {
                    self.problem.get_or_insert(why);
                }
                if self.held.len() >= spec.layout.window {
                    self.held.pop_front();
                }
                self.held.push_back(message);
            }
        }
        self.messages += 1;
        Ok(())
    }

    async fn answer(&mut self, request: &[u8]) -> Result<Answer, String> {
        let request = serde_json::from_slice(request).map_err(|error| format!("not a request: {error}"))?;
        match request {
            Request::Hello => Ok(Answer::Hello(self.about().await)),
            Request::Echo { read } => Ok(self.begin(Mode::Echo { read }, None)),
            Request::Reply(spec) => {
                let intake = self.intake(spec)?;
                let load = self.load(spec)?;
                Ok(self.begin(Mode::Reply(spec, load), Some(intake)))
            }
            Request::Sink(spec) => {
                let intake = self.intake(spec)?;
                Ok(self.begin(Mode::Sink(spec), Some(intake)))
            }
            Request::Send { .. } | Request::Enough => Err("that has no answer of its own".to_owned()),
            Request::Usage => Ok(Answer::Usage(Usage {
                cpu_s: self.clock.seconds(),
                messages: self.messages,
                bytes_copied: self.connection.stats().bytes_copied + self.copied.load(Ordering::Relaxed),
                problem: self.problem.clone(),
            })),
            Request::Lend { layout, place } => {
                bounded(layout)?;
                let memory = self.payload.prepare(layout, place).map_err(|error| error.to_string())?;
                let region =
                    self.connection.expose(memory, REGION_LIFETIME).map_err(|failed| failed.to_string())?;
                let remote = region.remote().to_bytes().to_vec();
                self.lent = Some(region);
                Ok(Answer::Region { remote })
            }
            Request::Borrow { layout, place } => {
                bounded(layout)?;
                let memory = place.zeroed(layout.size_bytes * layout.window);
                let memory = memory.map_err(|error| error.to_string())?;
                let region = self
                    .connection
                    .expose_mut(memory, REGION_LIFETIME)
                    .map_err(|failed| failed.to_string())?;
                let remote = region.remote().to_bytes().to_vec();
                self.borrowed = Some((region, layout));
                Ok(Answer::Region { remote })
            }
            Request::Withdraw { last, check } => self.withdraw(&last, check).await,
            Request::Socket { course } => {
                let (answer, bare) = far_socket(&self.host, course)?;
                self.bare = Some(bare);
                Ok(answer)
            }
        }
    }

    /// Sends on a separate task, so that this end receives messages meanwhile.
    fn start_sending(&mut self, first: u64, duration_ms: u64) {
        let load = match self.mode {
            Mode::Echo { .. } | Mode::Reply(..) => Err("no Sink request precedes it".to_owned()),
            Mode::Sink(spec) => self.load(spec).map(|load| (load, spec.layout)),
        };
        self.enough = Arc::default();
        let (connection, enough) = (self.connection.clone(), self.enough.clone());
        let sending = Sending { connection, first, duration_ms, enough };
        tokio::spawn(sending.run(load));
    }

    /// Returns the receiver of messages of `spec`, whose bounds an unauthenticated peer may have chosen.
    fn intake(&self, spec: MessageSpec) -> Result<MessageReceiver, String> {
        bounded(spec.layout)?;
        if spec.frames == 0 {
            return Err("messages without frames".to_owned());
        }
        MessageReceiver::new(&self.connection, spec, &self.copied).map_err(|error| error.to_string())
    }

    /// Returns the source of messages of `spec`.
    fn load(&mut self, spec: MessageSpec) -> Result<MessageSource, String> {
        let memory = self.payload.prepare(spec.layout, spec.places.from);
        memory.map(|memory| MessageSource::new(memory, spec)).map_err(|error| error.to_string())
    }

    fn begin(&mut self, mode: Mode, intake: Option<MessageReceiver>) -> Answer {
        self.mode = mode;
        self.intake = intake;
        self.messages = 0;
        self.held.clear();
        Answer::Ready
    }

    async fn about(&self) -> PeerView {
        let explanation = self.connection.explain().await;
        PeerView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: fingerprint::host_name(),
            process: std::process::id(),
            chosen: explanation.path.chosen().to_owned(),
            candidates: Candidate::all_of(&explanation),
            notes: explanation.notes,
        }
    }

    async fn withdraw(&mut self, last: &[Option<u64>], check: Check) -> Result<Answer, String> {
        if let Some(region) = self.lent.take() {
            region.revoke().await;
        }
        let Some((region, layout)) = self.borrowed.take() else { return Ok(Answer::Ready) };
        let memory = region.revoke().await;
        let bytes = memory.as_slice().ok_or("the region's memory is not readable")?;
        for (slot, number) in last.iter().take(layout.window).enumerate() {
            if let Some(number) = number {
                let begin = slot * layout.size_bytes;
                payload::check(layout, *number, 0, &bytes[begin..begin + layout.size_bytes], check)?;
            }
        }
        Ok(Answer::Ready)
    }
}

/// Refuses a request for more than half of the available memory: any authenticated peer may send it.
fn bounded(layout: Layout) -> Result<(), String> {
    if layout.size_bytes == 0 || layout.buffers == 0 {
        return Err("an empty layout".to_owned());
    }
    if layout.buffers > layout.window {
        return Err(format!("{} buffers for a window of {} messages", layout.buffers, layout.window));
    }
    let limit = AvailableMemory::now().map_or(1 << 30, |memory| memory.bytes) / 2;
    let room =
        (layout.size_bytes as u64).checked_add(8192).and_then(|size| size.checked_mul(layout.window as u64));
    match room {
        Some(bytes) if bytes <= limit => Ok(()),
        _ => Err(format!(
            "a window of {} messages of {} bytes needs more than half of the memory that is available ({limit} bytes)",
            layout.window, layout.size_bytes
        )),
    }
}

/// Starts the far end of a bare socket on a thread; the receiver resolves when that ends.
fn far_socket(host: &str, course: SocketTest) -> Result<(Answer, oneshot::Receiver<()>), String> {
    bounded(course.layout)?;
    let listen = || match TcpListener::bind((host, 0)) {
        Err(_) if host == "::" => TcpListener::bind("0.0.0.0:0"),
        outcome => outcome,
    };
    let open = || -> std::io::Result<(TcpListener, u16, [u8; 16])> {
        let listener = listen()?;
        let port = listener.local_addr()?.port();
        let mut key = [0; 16];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
        Ok((listener, port, key))
    };
    let failed = |error: std::io::Error| format!("a bare socket: {error}");
    let (listener, port, key) = open().map_err(failed)?;
    let shown = if course.tls { Some(tls_socket::certificate().map_err(failed)?) } else { None };
    let certificate = shown.as_ref().map(|certificate| certificate.chain.clone());
    let (done, ends) = oneshot::channel();
    let far = move || {
        let _done: oneshot::Sender<()> = done;
        if let Err(error) = socket::far(&listener, key, course, shown.as_ref()) {
            say(format_args!("the far half of a bare socket: {error}"));
        }
    };
    std::thread::Builder::new()
        .name("bare-socket".to_owned())
        .spawn(far)
        .map_err(|error| format!("a thread for a bare socket: {error}"))?;
    Ok((Answer::Socket { port, key, certificate }, ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_too_much_memory_is_refused() {
        bounded(Layout::new(8, 256)).unwrap();
        bounded(Layout { buffers: 1, ..Layout::new(8, 256) }).unwrap();
        for buffers in [0, 3, usize::MAX] {
            assert!(bounded(Layout { buffers, ..Layout::new(8, 2) }).is_err(), "{buffers}");
        }
        for (size_bytes, window) in [(0, 1), (1, 0), (usize::MAX, 2), (1 << 45, 1), (1, 1 << 50)] {
            assert!(bounded(Layout::new(size_bytes, window)).is_err(), "{size_bytes} {window}");
        }
    }
}
