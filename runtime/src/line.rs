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
static WAITING_LEN_MAX: LazyLock<usize> = LazyLock::new(|| AvailableMemory::bounded(256 << 20, 8) as usize);
/// A peer is heard again once no more than this waits for it, in bytes.
const HEARD_LEN_MAX: usize = 1 << 20;
/// How long a stranger may take for its first words.
pub(crate) const HELLO_TIME: Duration = Duration::from_secs(5);

/// Words for one peer.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// Less waits than before.
    left: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Vec<u8>>,
    len: usize,
    is_closed: bool,
}

impl SendQueue {
    /// Says it once the line is free, and `flush` was called. What is said after the end is lost.
    pub(crate) fn say<W: Serialize>(&self, word: &W) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return;
        }
        let mut batch = match waiting.batches.pop_back() {
            Some(batch) if batch.len() < BATCH_LEN => batch,
            full => {
                waiting.batches.extend(full);
                Vec::new()
            }
        };
        let before = batch.len();
        batch = postcard::to_extend(word, batch).expect("words of the protocol can be written");
        waiting.len += batch.len() - before;
        waiting.batches.push_back(batch);
        // A peer that does not listen is not kept in memory for.
        waiting.is_closed = waiting.len > *WAITING_LEN_MAX;
    }

    /// Has what was said leave.
    pub(crate) fn flush(&self) {
        self.changed.notify_one();
    }

    /// Says no more: `carry` ends when what was said has left.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits until the peer has taken most of what was said to it, so that a peer that asks faster than it listens waits for
    /// itself. Of use to one task at a time, beside `carry`.
    pub(crate) async fn until_most_has_left(&self) {
        while self.lock().len > HEARD_LEN_MAX {
            self.left.notified().await;
        }
    }

    /// Carries what is said to the peer, until the connection or the send queue ends.
    pub(crate) async fn carry(&self, connection: &Connection) -> Result<()> {
        loop {
            let next = {
                let mut waiting = self.lock();
                if waiting.len > *WAITING_LEN_MAX {
                    let why = format!("the peer let more than {} bytes of words wait", *WAITING_LEN_MAX);
                    return Err(Error::new(ErrorKind::TooLarge, why));
                }
                let next = waiting.batches.pop_front();
                waiting.len -= next.as_ref().map_or(0, Vec::len);
                next.ok_or(waiting.is_closed)
            };
            self.left.notify_one();
            match next {
                Ok(batch) => _ = connection.send(message(batch)).await?,
                Err(true) => return Ok(()),
                Err(false) => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(batch: Vec<u8>) -> Message {
    if batch.len() <= HEADER_LEN_MAX { Message::new(batch) } else { Message::default().with_frame(batch) }
}

/// Says one word at once.
pub(crate) async fn say<W: Serialize>(connection: &Connection, word: &W) -> Result<()> {
    connection.send(message(postcard::to_allocvec(word)?)).await?;
    Ok(())
}

/// Says hello to a scheduler; the number that it gives.
pub(crate) async fn greet(endpoint: &Endpoint, connection: &Connection, role: Role) -> Result<u32> {
    say(connection, &Hello { version: VERSION, role }).await?;
    match hear_one(endpoint, connection).await? {
        Welcome::Number(number) => Ok(number),
        Welcome::Refused(failure) => Err(failure.refused("the scheduler refuses").into()),
        Welcome::Version(theirs) => {
            let why = format!("the scheduler speaks version {theirs}, and this end {VERSION}");
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

/// The next batch of words. Cancel-safe until a batch with a frame has begun to arrive.
pub(crate) async fn hear(connection: &Connection) -> Result<Batch> {
    let incoming = connection.incoming().await?;
    if incoming.frames().len() > 1 || incoming.payload_len() > BATCH_LEN_MAX {
        return Err(Error::new(ErrorKind::Invalid, "a batch that is longer than any may be"));
    }
    Ok(Batch { message: incoming.accept().await?, at: 0 })
}

/// Says why a peer is turned away, which it may not hear, and ends the connection: within [`HELLO_TIME`] and the endpoint's
/// linger.
pub(crate) async fn turn_away<W: Serialize>(endpoint: &Endpoint, connection: &Connection, refusal: &W) {
    if let Some(Ok(())) = within(endpoint, HELLO_TIME, say(connection, refusal)).await {
        let _ = connection.close().await;
    }
}

/// The first word of a peer, and the only one of its batch.
pub(crate) async fn hear_one<W: DeserializeOwned>(endpoint: &Endpoint, connection: &Connection) -> Result<W> {
    let late = || Error::new(ErrorKind::TimedOut, format!("it said nothing for {} s", HELLO_TIME.as_secs()));
    let mut batch = within(endpoint, HELLO_TIME, hear(connection)).await.ok_or_else(late)??;
    match batch.next()? {
        Some(word) if batch.rest().is_empty() => Ok(word),
        _ => Err(Error::new(ErrorKind::Invalid, "it said more than was asked for, or less")),
    }
}

/// Words as they came. They are read one at a time: two bytes of a peer may be a word of a hundred.
#[derive(Debug)]
pub(crate) struct Batch {
    message: Message,
    at: usize,
}

impl Batch {
    /// The next word; `None` after the last.
    pub(crate) fn next<W: DeserializeOwned>(&mut self) -> Result<Option<W>> {
        let batch = self.rest();
        if batch.is_empty() {
            return Ok(None);
        }
        let (word, rest) = postcard::take_from_bytes(batch)?;
        let len = batch.len() - rest.len();
        if len == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a word without bytes"));
        }
        self.at += len;
        Ok(Some(word))
    }

    /// How many of its bytes were read.
    pub(crate) const fn taken(&self) -> usize {
        self.at
    }

    /// Tells all words of it, up to one that is none.
    pub(crate) fn each<W: DeserializeOwned>(mut self, mut tell: impl FnMut(W)) -> Result<()> {
        while let Some(word) = self.next()? {
            tell(word);
        }
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        let words = match self.message.frames() {
            [] => self.message.header(),
            frames => frames.iter().find_map(Buffer::as_slice).unwrap_or_default(),
        };
        &words[self.at..]
    }
}
