//! Batches of protocol messages over a connection. Messages pushed while one batch is being sent go with the
//! next.
//!
//! A batch is one transport message. Its protocol messages stand one after the other in the header, or in a
//! single frame if the header is too short for them.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use towline::{AvailableMemory, Buffer, Connection, Endpoint, HEADER_LEN_MAX, Message};

use crate::background::within;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{ARGUMENTS_LEN_MAX, Hello, Role, VERSION, Welcome};

/// A batch of this length, in bytes, takes no further message. One more message still fits into a header,
/// unless it is long.
pub(crate) const BATCH_LEN: usize = 32 << 10;
/// The longest batch that this end accepts from a peer, in bytes.
pub(crate) const BATCH_LEN_MAX: u64 = (4 * ARGUMENTS_LEN_MAX + BATCH_LEN) as u64;
/// Bytes that may queue for one peer before it is refused: 256 MiB, or an eighth of the process's memory.
static QUEUED_LEN_MAX: LazyLock<usize> = LazyLock::new(|| AvailableMemory::bounded(256 << 20, 8) as usize);
/// This end receives from a peer again once at most this many bytes are queued for it.
const RESUME_LEN_MAX: usize = 1 << 20;
/// Time limit for the first message of an unauthenticated peer.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages queued for one peer.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    queued: Mutex<Queued>,
    changed: Notify,
    /// Notified when `transmit` takes a batch off the queue.
    progress: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    batches: VecDeque<Vec<u8>>,
    len: usize,
    is_closed: bool,
}

impl SendQueue {
    /// Queues a message, which is sent after `flush`. Messages pushed after `close` are discarded.
    pub(crate) fn push<M: Serialize>(&self, message: &M) {
        let mut queued = self.lock();
        if queued.is_closed {
            return;
        }
        let mut batch = match queued.batches.pop_back() {
            Some(batch) if batch.len() < BATCH_LEN => batch,
            full => {
                queued.batches.extend(full);
                Vec::new()
            }
        };
        let before = batch.len();
        batch = postcard::to_extend(message, batch).expect("protocol messages can be serialized");
        queued.len += batch.len() - before;
        queued.batches.push_back(batch);
        // A peer that does not receive must not exhaust memory.
        queued.is_closed = queued.len > *QUEUED_LEN_MAX;
    }

    /// Wakes `transmit`.
    pub(crate) fn flush(&self) {
        self.changed.notify_one();
    }

    /// Accepts no further messages: `transmit` ends once the queued ones are sent.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits until the peer has received most of its queue, so that a peer which sends faster than it
    /// receives slows itself down. At most one task may wait, beside `transmit`.
    pub(crate) async fn wait_for_room(&self) {
        while self.lock().len > RESUME_LEN_MAX {
            self.progress.notified().await;
        }
    }

    /// Sends queued messages to the peer, until the connection ends or the queue is closed and empty.
    pub(crate) async fn transmit(&self, connection: &Connection) -> Result<()> {
        loop {
            let next = {
                let mut queued = self.lock();
                if queued.len > *QUEUED_LEN_MAX {
                    let why =
                        format!("more than {} bytes of messages are queued for the peer", *QUEUED_LEN_MAX);
                    return Err(Error::new(ErrorKind::TooLarge, why));
                }
                let next = queued.batches.pop_front();
                queued.len -= next.as_ref().map_or(0, Vec::len);
                next.ok_or(queued.is_closed)
            };
            self.progress.notify_one();
            match next {
                Ok(batch) => _ = connection.send(transport_message(batch)).await?,
                Err(true) => return Ok(()),
                Err(false) => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn transport_message(batch: Vec<u8>) -> Message {
    if batch.len() <= HEADER_LEN_MAX { Message::new(batch) } else { Message::default().with_frame(batch) }
}

/// Sends one message at once.
pub(crate) async fn send<M: Serialize>(connection: &Connection, message: &M) -> Result<()> {
    connection.send(transport_message(postcard::to_allocvec(message)?)).await?;
    Ok(())
}

/// Sends the hello to a scheduler. Returns the number that the scheduler assigns.
pub(crate) async fn handshake(endpoint: &Endpoint, connection: &Connection, role: Role) -> Result<u32> {
    let hello = Hello { version: VERSION, role };
    send(connection, &hello).await?;
    let mut batch = receive_first(endpoint, connection).await?;
    if batch.rest() == postcard::to_allocvec(&hello)? {
        let why = "the other end is no scheduler: it sends back what it gets, as `towline serve` does";
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    if let Some(kind) = kind_of(batch.rest()) {
        return Err(Error::new(ErrorKind::Invalid, format!("the other end is no scheduler, but a {kind}")));
    }
    match batch.only()? {
        Welcome::Number(number) => Ok(number),
        Welcome::Refused(failure) => Err(failure.refused("the scheduler refused this end").into()),
        Welcome::Version(theirs) => {
            let why = format!("the scheduler has protocol version {theirs}, and this end {VERSION}");
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

/// Receives the next batch. Cancel-safe until a batch with a frame has begun to arrive.
pub(crate) async fn receive(connection: &Connection) -> Result<Batch> {
    let incoming = connection.incoming().await?;
    if incoming.frames().len() > 1 || incoming.payload_len() > BATCH_LEN_MAX {
        return Err(Error::new(ErrorKind::Invalid, "a batch exceeds the length limit"));
    }
    Ok(Batch { transport_message: incoming.accept().await?, position: 0 })
}

/// Sends the reason of a refusal, which the peer may not receive, and closes the connection. Takes at most
/// [`HELLO_TIMEOUT`] and the endpoint's linger.
pub(crate) async fn send_refusal<M: Serialize>(endpoint: &Endpoint, connection: &Connection, refusal: &M) {
    if let Some(Ok(())) = within(endpoint, HELLO_TIMEOUT, send(connection, refusal)).await {
        let _ = connection.close().await;
    }
}

/// Receives the first batch of a peer.
pub(crate) async fn receive_first(endpoint: &Endpoint, connection: &Connection) -> Result<Batch> {
    let late = || {
        Error::new(ErrorKind::TimedOut, format!("the peer sent no message for {} s", HELLO_TIMEOUT.as_secs()))
    };
    within(endpoint, HELLO_TIMEOUT, receive(connection)).await.ok_or_else(late)?
}

/// The kind of an end of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scheduler,
    Worker,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Scheduler, Self::Worker];

    const fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Worker => "worker",
        }
    }

    /// The text that such an end sends to a peer of another protocol, before it closes.
    fn text(self) -> String {
        format!("towline-runtime {}", self.name())
    }

    /// Tells a peer whose first message makes no sense what it has connected to. It may not listen.
    pub(crate) async fn send_kind(self, endpoint: &Endpoint, connection: &Connection) {
        let sent = async { connection.send(Message::new(self.text())).await.map(drop) };
        if let Some(Ok(())) = within(endpoint, HELLO_TIMEOUT, sent).await {
            let _ = connection.close().await;
        }
    }
}

/// Returns `scheduler` or `worker` if `header` is the text that one of them sends to a peer of another
/// protocol. A program with a protocol of its own can thereby name a wrong address.
pub fn kind_of(header: &[u8]) -> Option<&'static str> {
    Kind::ALL.into_iter().find(|kind| kind.text().as_bytes() == header).map(Kind::name)
}

/// A received batch. Messages are decoded one at a time, since two bytes may decode to a message of a
/// hundred.
#[derive(Debug)]
pub(crate) struct Batch {
    transport_message: Message,
    position: usize,
}

impl Batch {
    /// Decodes the next message; `None` after the last.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>> {
        let batch = self.rest();
        if batch.is_empty() {
            return Ok(None);
        }
        let (message, rest) = postcard::take_from_bytes(batch)?;
        let len = batch.len() - rest.len();
        if len == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a message without bytes"));
        }
        self.position += len;
        Ok(Some(message))
    }

    /// Decodes the only message of the batch.
    pub(crate) fn only<M: DeserializeOwned>(&mut self) -> Result<M> {
        match self.next()? {
            Some(message) if self.rest().is_empty() => Ok(message),
            _ => Err(Error::new(ErrorKind::Invalid, "the first batch is not exactly one message")),
        }
    }

    /// Returns the number of bytes decoded so far.
    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    /// Applies each message, up to the first that does not decode.
    pub(crate) fn for_each<M: DeserializeOwned>(mut self, mut apply: impl FnMut(M)) -> Result<()> {
        while let Some(message) = self.next()? {
            apply(message);
        }
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        let messages = match self.transport_message.frames() {
            [] => self.transport_message.header(),
            frames => frames.iter().find_map(Buffer::as_slice).unwrap_or_default(),
        };
        &messages[self.position..]
    }
}
