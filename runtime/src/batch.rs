//! A connection that carries words of the protocol, in batches: what is said while the last batch leaves goes with the next.
//!
//! A batch is one message: the words one after the other in its header, or in its one frame where they are too long for that.

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

/// A batch is closed when it is this long; one more word than that fits into a header, unless it is a long one.
pub(crate) const BATCH_LEN: usize = 32 << 10;
/// The longest batch that is taken from a peer.
pub(crate) const BATCH_LEN_MAX: u64 = (4 * ARGUMENTS_LEN_MAX + BATCH_LEN) as u64;
/// What a peer may leave waiting before it is given up: so much, or an eighth of the process's memory.
static QUEUED_LEN_MAX: LazyLock<usize> = LazyLock::new(|| AvailableMemory::bounded(256 << 20, 8) as usize);
/// A peer is heard again once no more than this waits for it, in bytes.
const RESUME_LEN_MAX: usize = 1 << 20;
/// How long a stranger may take for its first words.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Words for one peer.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    queued: Mutex<Queued>,
    changed: Notify,
    /// Less waits than before.
    progress: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    batches: VecDeque<Vec<u8>>,
    len: usize,
    is_closed: bool,
}

impl SendQueue {
    /// Says it once the line is free, and `flush` was called. What is said after the end is lost.
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
        batch = postcard::to_extend(message, batch).expect("words of the protocol can be written");
        queued.len += batch.len() - before;
        queued.batches.push_back(batch);
        // A peer that does not listen is not kept in memory for.
        queued.is_closed = queued.len > *QUEUED_LEN_MAX;
    }

    /// Has what was said leave.
    pub(crate) fn flush(&self) {
        self.changed.notify_one();
    }

    /// Says no more: `transmit` ends when what was said has left.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits until the peer has taken most of what was said to it, so that a peer that asks faster than it listens waits for
    /// itself. Of use to one task at a time, beside `transmit`.
    pub(crate) async fn wait_for_room(&self) {
        while self.lock().len > RESUME_LEN_MAX {
            self.progress.notified().await;
        }
    }

    /// Carries what is said to the peer, until the connection or the send queue ends.
    pub(crate) async fn transmit(&self, connection: &Connection) -> Result<()> {
        loop {
            let next = {
                let mut queued = self.lock();
                if queued.len > *QUEUED_LEN_MAX {
                    let why = format!("the peer let more than {} bytes of words wait", *QUEUED_LEN_MAX);
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

/// Says one word at once.
pub(crate) async fn send<M: Serialize>(connection: &Connection, message: &M) -> Result<()> {
    connection.send(transport_message(postcard::to_allocvec(message)?)).await?;
    Ok(())
}

/// Says hello to a scheduler; the number that it gives.
pub(crate) async fn handshake(endpoint: &Endpoint, connection: &Connection, role: Role) -> Result<u32> {
    send(connection, &Hello { version: VERSION, role }).await?;
    match receive_one(endpoint, connection).await? {
        Welcome::Number(number) => Ok(number),
        Welcome::Refused(failure) => Err(failure.refused("the scheduler refuses").into()),
        Welcome::Version(theirs) => {
            let why = format!("the scheduler speaks version {theirs}, and this end {VERSION}");
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

/// The next batch of words. Cancel-safe until a batch with a frame has begun to arrive.
pub(crate) async fn receive(connection: &Connection) -> Result<Batch> {
    let incoming = connection.incoming().await?;
    if incoming.frames().len() > 1 || incoming.payload_len() > BATCH_LEN_MAX {
        return Err(Error::new(ErrorKind::Invalid, "a batch that is longer than any may be"));
    }
    Ok(Batch { transport_message: incoming.accept().await?, position: 0 })
}

/// Says why a peer is turned away, which it may not hear, and ends the connection: within [`HELLO_TIMEOUT`] and the endpoint's
/// linger.
pub(crate) async fn send_refusal<M: Serialize>(endpoint: &Endpoint, connection: &Connection, refusal: &M) {
    if let Some(Ok(())) = within(endpoint, HELLO_TIMEOUT, send(connection, refusal)).await {
        let _ = connection.close().await;
    }
}

/// The first word of a peer, and the only one of its batch.
pub(crate) async fn receive_one<M: DeserializeOwned>(
    endpoint: &Endpoint,
    connection: &Connection,
) -> Result<M> {
    let late =
        || Error::new(ErrorKind::TimedOut, format!("it said nothing for {} s", HELLO_TIMEOUT.as_secs()));
    let mut batch = within(endpoint, HELLO_TIMEOUT, receive(connection)).await.ok_or_else(late)??;
    match batch.next()? {
        Some(message) if batch.rest().is_empty() => Ok(message),
        _ => Err(Error::new(ErrorKind::Invalid, "it said more than was asked for, or less")),
    }
}

/// Words as they came. They are read one at a time: two bytes of a peer may be a word of a hundred.
#[derive(Debug)]
pub(crate) struct Batch {
    transport_message: Message,
    position: usize,
}

impl Batch {
    /// The next word; `None` after the last.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>> {
        let batch = self.rest();
        if batch.is_empty() {
            return Ok(None);
        }
        let (message, rest) = postcard::take_from_bytes(batch)?;
        let len = batch.len() - rest.len();
        if len == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a word without bytes"));
        }
        self.position += len;
        Ok(Some(message))
    }

    /// How many of its bytes were read.
    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    /// Tells all words of it, up to one that is none.
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
