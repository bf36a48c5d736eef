//! Prefetching: a task on the driver receives messages ahead of the callers, within bounds.
//!
//! The task is the connection's only receiver: other callers look for it once they have the lock of receivers.
//!
//! The invariants:
//!
//! - Callers get messages in the order in which the peer sent them.
//! - Payload is received only while it is within the bounds, or while a caller waits and nothing is queued.
//! - A caller that waits is woken once for each message, and for the end.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use super::core::Core;
use super::pending_receive::PendingReceive;
use crate::backend::Caps;
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::memory::{Access, Buffer, Place};
use crate::platform::mutex::Mutex;
use crate::transfer::message::{EAGER_LEN_MAX, Message};

/// The bounds and the memory of [`Connection::prefetch`](crate::Connection::prefetch).
///
/// ```
/// use towline::Prefetch;
///
/// // At most 8 messages and 1 GiB ahead of the caller, in memory that the caller may write.
/// let prefetch = Prefetch::default().messages(8).bytes(1 << 30).writable(true);
/// # let _ = prefetch;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    messages: usize,
    bytes: u64,
    writable: bool,
}

impl Default for Prefetch {
    /// Two messages, 64 MiB, and memory as [`recv`](crate::Connection::recv) chooses it.
    fn default() -> Self {
        Self { messages: 2, bytes: 64 << 20, writable: false }
    }
}

impl Prefetch {
    /// Sets how many messages wait for a caller, at least one.
    pub fn messages(mut self, messages_max: usize) -> Self {
        self.messages = messages_max.max(1);
        self
    }

    /// Sets how many bytes of payload wait for a caller. A larger message is received once a caller waits
    /// for it.
    pub fn bytes(mut self, bytes_max: u64) -> Self {
        self.bytes = bytes_max;
        self
    }

    /// Sets whether each frame of 16 KiB and more is received in memory of its own that the application may
    /// write: [`Buffer::try_into_mut`] succeeds once the frame is taken out of its message. The memory is of
    /// the endpoint's pool.
    ///
    /// Over `shm`, frames of a trusted peer are then read from the peer's memory, with one copy, and arena
    /// frames are copied instead of lent. Within a process, a frame that its sender still holds is copied. A
    /// lent frame of a [`ForeignBlock`](crate::memory::ForeignBlock) alone stays where it is, read-only: its
    /// sender gives large arrays away in that form.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }
}

/// The messages that the task has received, and the callers that wait for them.
#[derive(Debug)]
pub(crate) struct Prefetched {
    limits: Prefetch,
    queue: Mutex<PrefetchQueue>,
    /// Notified for each entry, and for all at the end.
    arrived: Notify,
    /// Notified when an entry is taken, when a caller begins to wait, and when the owner stops the task.
    room: Notify,
}

#[derive(Debug, Default)]
struct PrefetchQueue {
    entries: VecDeque<Result<Message>>,
    /// The payload of the entries.
    bytes: u64,
    callers: usize,
    end: Option<Error>,
    stopped: bool,
}

impl PrefetchQueue {
    /// Returns whether a message of `len` bytes of payload may be received now.
    fn fits(&self, len: u64, limits: &Prefetch) -> bool {
        let within = self.entries.len() < limits.messages && self.bytes.saturating_add(len) <= limits.bytes;
        within || self.is_called()
    }

    /// Returns whether a caller waits and nothing is queued.
    fn is_called(&self) -> bool {
        self.entries.is_empty() && self.callers > 0
    }
}

impl Core {
    /// Starts the task that receives ahead of the callers.
    ///
    /// # Errors
    /// `Invalid` if there is one already, `Unsupported` in a process that inherited the connection.
    pub(crate) fn prefetch(self: &Arc<Self>, limits: Prefetch) -> Result<()> {
        self.check()?;
        let prefetched = Arc::new(Prefetched {
            limits,
            queue: Mutex::default(),
            arrived: Notify::new(),
            room: Notify::new(),
        });
        if self.prefetched.set(prefetched.clone()).is_err() {
            return Err(Error::new(ErrorKind::Invalid, "this connection prefetches already"));
        }
        let (core, ending) = (self.clone(), EndOnDrop(prefetched));
        self.environment().spawn(Box::pin(async move {
            let Err(end) = ending.0.receive(&core).await;
            ending.0.end(end);
        }));
        Ok(())
    }

    /// Waits for the next message that the task has received.
    ///
    /// # Errors
    /// The end, once all messages are taken, or the failure of one receive.
    pub(crate) async fn next_prefetched(&self, prefetched: &Prefetched) -> Result<Message> {
        let process = self.waiters.process;
        process.check().map_err(|error| self.placed(error, "recv"))?;
        match prefetched.try_next()? {
            Some(message) => Ok(message),
            None => process.run(prefetched.next()).await.map_err(|error| self.placed(error, "recv"))?,
        }
    }

    /// Fails if a task receives this connection's messages.
    ///
    /// # Errors
    /// `Invalid`, with the remedy.
    pub(crate) fn check_not_prefetching(&self) -> Result<()> {
        match self.prefetched.get() {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::Invalid,
                "this connection prefetches, so its messages already have their memory: use recv",
            )),
        }
    }
}

impl Prefetched {
    /// Returns the oldest message, if there is one.
    ///
    /// # Errors
    /// The end, once all messages are taken, or the failure of one receive.
    pub(crate) fn try_next(&self) -> Result<Option<Message>> {
        self.take(None)
    }

    /// Takes the oldest entry. `caller` no longer waits then: otherwise the task would receive for it beyond
    /// the bounds.
    fn take(&self, caller: Option<&mut WaitingCaller>) -> Result<Option<Message>> {
        let mut queue = self.queue.lock();
        let Some(entry) = queue.entries.pop_front() else {
            return queue.end.clone().map_or(Ok(None), Err);
        };
        queue.bytes -= entry.as_ref().map_or(0, Message::payload_len);
        if let Some(caller) = caller {
            caller.stop_waiting(&mut queue);
        }
        drop(queue);
        self.room.notify_one();
        entry.map(Some)
    }

    /// Waits for the next message. Cancel-safe.
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next).
    pub(crate) async fn next(&self) -> Result<Message> {
        let mut caller = WaitingCaller::new(self);
        loop {
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            match self.take(Some(&mut caller))? {
                Some(message) => return Ok(message),
                None => arrived.await,
            }
        }
    }

    /// Stops the task and drops what no caller took.
    pub(crate) fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.bytes = 0;
        let dropped = std::mem::take(&mut queue.entries);
        drop(queue);
        drop(dropped);
        self.room.notify_one();
    }

    /// Receives until the connection ends, and returns its end.
    async fn receive(&self, core: &Arc<Core>) -> Result<std::convert::Infallible> {
        // Behind the callers that receive already. The lock is free from then on, for those that wait for it.
        let mut begun = core.begun().await.map_err(|error| core.placed(error, "recv"))?.take();
        loop {
            self.until_room_for(0).await?;
            // Payload may be sent ahead into pool memory, unless that makes a trusted peer lend its copy.
            let may_be_lent = core.link.load().caps().contains(Caps::LENDS);
            core.expect(!(self.limits.writable && may_be_lent));
            if begun.is_none() {
                begun = Some(PendingReceive::next(core).await?);
            }
            let Some(pending) = begun.as_mut() else { unreachable!("set above") };
            self.until_room_for(pending.payload_len()).await?;
            if let Err(error) = pending.land_in_pool(core) {
                self.report(core.placed(error, "recv")).await?;
                continue;
            }
            let mut landed = pending.landed(core).await.map_err(Error::from);
            begun = None;
            // The message has been acknowledged, so it is kept until there is memory for it.
            while self.limits.writable
                && let Ok(message) = landed
            {
                match own(core, message) {
                    Ok(message) => {
                        landed = Ok(message);
                        break;
                    }
                    Err(failed) => {
                        self.report(core.placed(failed.error, "recv")).await?;
                        landed = Ok(failed.returned);
                    }
                }
            }
            self.push(landed);
        }
    }

    /// Reports that there is no memory for the next message to a caller that waits, if there is one. Then
    /// waits for the next such caller. Messages that are queued may hold the memory, so their callers come
    /// first.
    async fn report(&self, error: Error) -> Result<()> {
        let is_called = self.queue.lock().is_called();
        if is_called {
            self.push(Err(error));
        }
        self.until_called().await
    }

    /// Waits until a message of `len` bytes may be received.
    async fn until_room_for(&self, len: u64) -> Result<()> {
        self.until(|queue| queue.fits(len, &self.limits)).await
    }

    /// Waits until everything is taken and a caller waits for more.
    async fn until_called(&self) -> Result<()> {
        self.until(PrefetchQueue::is_called).await
    }

    async fn until(&self, is_reached: impl Fn(&PrefetchQueue) -> bool) -> Result<()> {
        loop {
            {
                let queue = self.queue.lock();
                if queue.stopped {
                    return Err(Error::new(ErrorKind::Closed, "the connection's last handle was dropped"));
                }
                if is_reached(&queue) {
                    return Ok(());
                }
            }
            self.room.notified().await;
        }
    }

    fn push(&self, entry: Result<Message>) {
        let mut queue = self.queue.lock();
        if queue.stopped {
            drop(queue);
            return;
        }
        queue.bytes += entry.as_ref().map_or(0, Message::payload_len);
        queue.entries.push_back(entry);
        drop(queue);
        self.arrived.notify_one();
    }

    fn end(&self, why: Error) {
        self.queue.lock().end.get_or_insert(why);
        self.arrived.notify_waiters();
    }
}

/// Ends the queue if the environment drops the task unfinished.
struct EndOnDrop(Arc<Prefetched>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(Error::new(ErrorKind::Closed, "the endpoint's driver has ended"));
    }
}

/// A caller that waits for a message. Counted, since a message beyond the bounds is received for it.
struct WaitingCaller<'a> {
    prefetched: &'a Prefetched,
    is_counted: bool,
}

impl<'a> WaitingCaller<'a> {
    fn new(prefetched: &'a Prefetched) -> Self {
        let mut queue = prefetched.queue.lock();
        queue.callers += 1;
        let is_called = queue.is_called();
        drop(queue);
        if is_called {
            prefetched.room.notify_one();
        }
        Self { prefetched, is_counted: true }
    }

    fn stop_waiting(&mut self, queue: &mut PrefetchQueue) {
        if std::mem::take(&mut self.is_counted) {
            queue.callers -= 1;
        }
    }
}

impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        let prefetched = self.prefetched;
        self.stop_waiting(&mut prefetched.queue.lock());
    }
}

/// Makes each large frame the only handle of writable memory, by a copy where it is not. Foreign frames stay: they
/// are of a [`ForeignBlock`](crate::memory::ForeignBlock), which the peer lent.
///
/// # Errors
/// Those of the pool. The message is returned whole.
fn own(core: &Core, message: Message) -> Result<Message, Failed<Message>> {
    let (header, mut frames) = message.into_parts();
    for frame in &mut frames {
        if (frame.len() as u64) < EAGER_LEN_MAX || frame.access() == Access::Foreign {
            continue;
        }
        let shared = match std::mem::take(frame).try_into_mut() {
            Ok(writable) => {
                *frame = writable.freeze();
                continue;
            }
            Err(shared) => shared,
        };
        match copied(core, &shared) {
            Ok(copy) => *frame = copy,
            Err(error) => {
                *frame = shared;
                return Err(Failed { error, returned: Message::from_parts(header, frames) });
            }
        }
    }
    Ok(Message::from_parts(header, frames))
}

/// Copies a frame into pool memory.
fn copied(core: &Core, frame: &Buffer) -> Result<Buffer> {
    // Memory of an arena is host memory to its reader. Other memory keeps its place.
    let place = if frame.as_slice().is_some() { Place::Host } else { frame.place() };
    let mut copy = core.pool(place)?.take(frame.len())?;
    copy.fill_from(frame)?;
    core.counts.bytes_copied.fetch_add(frame.len() as u64, Ordering::Relaxed);
    Ok(copy.freeze())
}
