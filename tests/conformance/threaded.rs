//! A backend that works on a thread of its own, with delays. It shows that no caller depends on operations
//! that complete during their submission, or on the polling thread.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, SendError};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use towline::backend::{
    Announced, Arrival, Backend, Delivery, Done, Identity, Inbox, Link, LinkContext, LinkStats, Op, Opened,
    Opening, Operation, Probe, Role,
};
use towline::environment::Environment;
use towline::memory::Access;
use towline::{Address, Buffer, BufferMut, Caps, EAGER_LEN_MAX, Error, ErrorKind, Message, Result};

/// It has the name `mem`, for the scheme and the reach of mem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threaded;

const CAPS: Caps = Caps::FLOW_CONTROL;
/// Messages announced and not acknowledged, at most.
const WINDOW: usize = 64;

/// Threads of links that only one end has opened, by both ends' offers.
static WAITING: LazyLock<Mutex<HashMap<Vec<u8>, mpsc::Sender<Command>>>> = LazyLock::new(Mutex::default);

impl Threaded {
    pub(crate) fn alone() -> Vec<Arc<dyn Backend>> {
        vec![Arc::new(Self)]
    }
}

impl towline::backend::sealed::Sealed for Threaded {}

impl Backend for Threaded {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn probe(&self) -> Probe {
        Probe::Ready { caps: CAPS, version: None }
    }

    fn offer(&self, _: Role, _: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        let mut nonce = vec![0; 16];
        environment.random(&mut nonce);
        Ok(nonce)
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        if local.same_process(peer) { Ok(()) } else { Err("the peer is another process".into()) }
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async { open(context) })
    }
}

fn open(context: &LinkContext) -> Result<Opened> {
    let (side, name) = match context.role {
        Role::Connector => (0, [context.offer.as_slice(), &context.peer_offer].concat()),
        Role::Acceptor => (1, [context.peer_offer.as_slice(), &context.offer].concat()),
    };
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let commands = match waiting.remove(&name) {
        Some(commands) => commands,
        None => {
            let (sender, commands) = mpsc::channel();
            thread::Builder::new().name("threaded".into()).spawn(|| serve(commands))?;
            waiting.insert(name.clone(), sender.clone());
            sender
        }
    };
    let stalls = Arc::new(AtomicU64::new(0));
    let link = ThreadedLink { side, name, commands, stalls: stalls.clone() };
    link.send(Command::Attach(side, context.inbox.clone(), stalls));
    Ok(Opened::new(Arc::new(link)))
}

/// One end of a link. It passes all work to the thread.
#[derive(Debug)]
struct ThreadedLink {
    side: usize,
    /// The key of the link in [`WAITING`].
    name: Vec<u8>,
    commands: mpsc::Sender<Command>,
    stalls: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Command {
    Attach(usize, Arc<Inbox>, Arc<AtomicU64>),
    Submit(usize, Op),
    End(usize, Error),
}

impl ThreadedLink {
    fn send(&self, command: Command) {
        if let Err(SendError(Command::Submit(_, op))) = self.commands.send(command) {
            op.fail(Error::new(ErrorKind::Closed, "the pair's thread ended"));
        }
    }
}

impl Link for ThreadedLink {
    fn caps(&self) -> Caps {
        CAPS
    }

    fn submit(&self, op: Op) {
        self.send(Command::Submit(self.side, op));
    }

    fn end(&self, why: Error) {
        self.send(Command::End(self.side, why));
    }

    fn stats(&self) -> LinkStats {
        LinkStats { credit_stalls: self.stalls.load(Relaxed), ..LinkStats::default() }
    }
}

impl Drop for ThreadedLink {
    fn drop(&mut self) {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        self.end(Error::new(ErrorKind::Closed, "the link was dropped"));
    }
}

/// State of one end, as the link's thread sees it.
#[derive(Default)]
struct End {
    inbox: Option<Arc<Inbox>>,
    /// Announced before the end was attached.
    unannounced: Vec<Announced>,
    queued: VecDeque<(Operation<Message>, Done<Delivery>, bool)>,
    /// Announced and not acknowledged, by number: the memory of a large message, and its receipt.
    unacked: HashMap<u64, (Option<Operation<Message>>, Done<Delivery>)>,
    next_id: u64,
    closing: Vec<Done<()>>,
    ended: Option<Error>,
    stalls: Arc<AtomicU64>,
}

/// The link's thread. It ends with the last of the two ends.
fn serve(commands: mpsc::Receiver<Command>) {
    let mut ends = [End::default(), End::default()];
    let mut delays = Delays(0x2545_f491_4f6c_dd1d);
    for command in commands {
        delays.maybe_sleep();
        match command {
            Command::Attach(side, inbox, stalls) => {
                attach(&mut ends[side], inbox);
                ends[side].stalls = stalls;
            }
            Command::Submit(side, op) => match &ends[side].ended {
                Some(why) => op.fail(why.clone()),
                None => perform(&mut ends, side, op),
            },
            Command::End(side, why) => {
                let lost = Error::new(ErrorKind::PeerLost, "the peer dropped the connection");
                end(&mut ends, side, why, lost);
            }
        }
        for side in [0, 1] {
            announce(&mut ends, side);
            close(&mut ends, side);
        }
    }
}

fn attach(end: &mut End, inbox: Arc<Inbox>) {
    for announced in end.unannounced.drain(..) {
        inbox.announce(announced);
    }
    if let Some(why) = &end.ended {
        inbox.end(why.clone());
    }
    end.inbox = Some(inbox);
}

fn perform(ends: &mut [End; 2], side: usize, op: Op) {
    match op {
        Op::Send { message, receipt, ack_now, .. } => {
            ends[side].queued.push_back((message, receipt, ack_now));
            if ends[side].unacked.len() == WINDOW {
                ends[side].stalls.fetch_add(1, Relaxed);
            }
        }
        Op::Accept { id, destinations } => accept(&mut ends[1 - side], id, destinations),
        Op::Ack { id, delivery, .. } => {
            if let Some((message, receipt)) = ends[1 - side].unacked.remove(&id) {
                release(message);
                receipt.resolve(Ok(delivery));
            }
        }
        Op::Close(done) => ends[side].closing.push(done),
        Op::Expect { .. } => {}
        other => other.fail(Error::new(ErrorKind::Unsupported, "this backend has no such operation")),
    }
}

/// Announces messages while there is credit: a small one with its payload, a large one without.
fn announce(ends: &mut [End; 2], side: usize) {
    let [first, second] = ends;
    let (mine, theirs) = if side == 0 { (first, second) } else { (second, first) };
    while mine.unacked.len() < WINDOW {
        let Some((message, receipt, ack_now)) = mine.queued.pop_front() else { return };
        let id = mine.next_id;
        mine.next_id += 1;
        let (header, frames) = message.memory().clone().into_parts();
        let table = message.memory().table().collect();
        let (arrival, kept) = if message.memory().payload_len() < EAGER_LEN_MAX {
            release(Some(message));
            (Arrival::Complete(frames.into_iter().map(private).collect()), None)
        } else {
            (Arrival::AtSender, Some(message))
        };
        mine.unacked.insert(id, (kept, receipt));
        let announced = Announced { id, header, frames: table, arrival, ack_now };
        match &theirs.inbox {
            Some(inbox) => inbox.announce(announced),
            None => theirs.unannounced.push(announced),
        }
    }
}

/// Returns memory that only this process writes.
fn private(frame: Buffer) -> Buffer {
    match frame.access() {
        Access::Foreign => frame.to_vec().unwrap().into(),
        _ => frame,
    }
}

fn accept(sender: &mut End, id: u64, mut destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>) {
    let Some((Some(message), receipt)) = sender.unacked.remove(&id) else {
        return destinations.fail(Error::new(ErrorKind::Invalid, "no such message is waiting"));
    };
    let mut copied = Ok(());
    for (destination, frame) in destinations.memory_mut().iter_mut().zip(message.memory().frames()) {
        if let Some(destination) = destination {
            copied = copied.and_then(|()| destination.fill_from(frame));
        }
    }
    release(Some(message));
    match copied {
        Ok(()) => {
            receipt.resolve(Ok(Delivery::Delivered));
            let frozen =
                |destination: Option<BufferMut>| destination.map(BufferMut::freeze).unwrap_or_default();
            destinations.finish(|destinations| destinations.into_iter().map(frozen).collect());
        }
        Err(error) => {
            receipt.resolve(Ok(Delivery::Rejected));
            destinations.fail(error);
        }
    }
}

fn release(message: Option<Operation<Message>>) {
    if let Some(message) = message {
        message.finish(drop);
    }
}

/// Closes the link once all messages before the close have left.
fn close(ends: &mut [End; 2], side: usize) {
    let in_memory = |end: &End| end.unacked.values().any(|(message, _)| message.is_some());
    if ends[side].queued.is_empty() && !in_memory(&ends[side]) && !ends[side].closing.is_empty() {
        let closing = std::mem::take(&mut ends[side].closing);
        let mine = Error::new(ErrorKind::Closed, "this end closed the connection");
        end(ends, side, mine, Error::new(ErrorKind::Closed, "the peer closed the connection"));
        for done in closing {
            done.resolve(Ok(()));
        }
    }
}

fn end(ends: &mut [End; 2], side: usize, mine: Error, theirs: Error) {
    for (side, why) in [(side, mine), (1 - side, theirs)] {
        let end = &mut ends[side];
        if end.ended.is_some() {
            continue;
        }
        end.ended = Some(why.clone());
        for (message, receipt, ack_now) in end.queued.drain(..) {
            Op::Send { message, receipt, ack_now, more: false }.fail(why.clone());
        }
        for (message, receipt) in end.unacked.drain().map(|(_, unacked)| unacked) {
            if let Some(message) = message {
                message.fail(why.clone());
            }
            receipt.resolve(Err(why.clone()));
        }
        if let Some(inbox) = &end.inbox {
            inbox.end(why.clone());
        }
        for done in end.closing.drain(..) {
            done.resolve(Err(why.clone()));
        }
    }
}

/// Every eighth command is delayed by up to 0.3 ms, in the same sequence each time.
struct Delays(u64);

impl Delays {
    fn maybe_sleep(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if self.0.is_multiple_of(8) {
            thread::sleep(Duration::from_micros(self.0 / 8 % 300));
        }
    }
}
