//! For event loops that poll no futures: operations are started under a key, and a queue tells which have ended.
//!
//! The invariant: while the queue holds a result, or the key of an operation that was woken, the descriptor is
//! readable, or the thread that queued the first one is about to make it readable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::endpoint::Endpoint;
use super::wakeups::Wakeups;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::Task;
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// The key of the queue's own waker, for everything that is not an operation of [`CompletionQueue::watch`].
const OWN: u64 = u64::MAX;

/// Runs operations for an event loop that polls no futures (`asyncio`, a C program), and queues their results.
///
/// Each operation has a key of the caller's choice. While results are queued, the descriptor ([`AsFd`]) is
/// readable, and [`drain`](Self::drain) returns them with their keys. The descriptor is written once for all
/// results between two drains. No other thread calls into the loop.
///
/// | call | who polls the operation | for |
/// |---|---|---|
/// | [`start`](Self::start) | this thread once, then the endpoint's driver | what moves bytes: `send`, `get`, `connect` |
/// | [`watch`](Self::watch) | the thread that drains | what only waits: `recv` after [`prefetch`], `closed` |
///
/// Clones are handles to the same queue. The last one drops the operations that it polls itself, and cancels the
/// others. In a forked child the queue is inert.
///
/// [`prefetch`]: crate::Connection::prefetch
///
/// ```
/// use rustix::event::{PollFd, PollFlags, poll};
/// use towline::{CompletionQueue, Connection, Endpoint, Message, Prefetch};
///
/// enum Outcome {
///     Connected(Connection),
///     Received(Message),
/// }
///
/// let queue = CompletionQueue::new()?;
/// let endpoint = Endpoint::new()?;
/// // Returns the next results. `asyncio` calls drain from the callback of `loop.add_reader(fd, …)`.
/// let turn = || {
///     poll(&mut [PollFd::new(&queue, PollFlags::IN)], None).expect("it is open");
///     queue.drain()
/// };
///
/// # let listener = towline::blocking::Endpoint::from(endpoint.clone()).listen(&"towline://127.0.0.1:0".parse()?)?;
/// # let address = listener.address().clone();
/// # let peer = std::thread::spawn(move || listener.accept()?.deliver(Message::new("hello")));
/// let connect = {
///     let endpoint = endpoint.clone();
///     async move { endpoint.connect(&address).await.map(Outcome::Connected) }
/// };
/// let mut result = queue.start(&endpoint, 1, connect); // what has ended already is returned at once
/// while result.is_none() {
///     result = turn().pop().map(|(_key, result)| result);
/// }
/// let Some(Outcome::Connected(connection)) = result.transpose()? else { unreachable!() };
///
/// connection.prefetch(Prefetch::default())?;
/// let receive = async move { connection.recv().await.map(Outcome::Received) };
/// let mut result = queue.watch(2, receive);
/// while result.is_none() {
///     result = turn().pop().map(|(_key, result)| result);
/// }
/// let Some(Outcome::Received(message)) = result.transpose()? else { unreachable!() };
/// assert_eq!(message.header(), "hello");
/// # peer.join().expect("no panic")?;
/// # Ok::<(), towline::Error>(())
/// ```
pub struct CompletionQueue<T>(Arc<QueueState<T>>);

struct QueueState<T> {
    wakeups: Wakeups,
    operations: Mutex<HashMap<u64, StartedOperation<T>>>,
    /// Results of operations that the driver polled, in the order of their ends.
    results: Arc<Results<T>>,
    process: Process,
}

struct Results<T> {
    queued: Mutex<Vec<(u64, Result<T>)>>,
    waker: Waker,
}

/// An operation in progress.
enum StartedOperation<T> {
    /// The thread that drains polls it.
    Watched(Task<Result<T>>, Waker),
    /// That thread polls it at this moment.
    Polling,
    /// The driver polls it, until this is dropped.
    Driven { _cancel: oneshot::Sender<()> },
}

impl<T: Send + 'static> CompletionQueue<T> {
    /// Makes an empty queue, with one descriptor.
    ///
    /// # Errors
    /// The system's error where no more descriptors may be open.
    pub fn new() -> Result<Self> {
        let wakeups = Wakeups::new()?;
        let results = Arc::new(Results { queued: Mutex::default(), waker: wakeups.waker(OWN) });
        let process = Process::current();
        Ok(Self(Arc::new(QueueState { wakeups, operations: Mutex::default(), results, process })))
    }

    /// Returns a waker that makes the descriptor readable, for other things that the loop must look at, such as
    /// [`Pins::take_released`](crate::memory::Pins::take_released).
    pub fn waker(&self) -> Waker {
        self.0.results.waker.clone()
    }

    /// Polls `operation` once on this thread, which submits it in the order of the calls, and then on the
    /// endpoint's driver. Returns its result if it has ended already. Otherwise `drain` returns it under `key`,
    /// which no other operation in progress may have, and which is not `u64::MAX`.
    ///
    /// If the driver ends first, the result is `Closed`.
    pub fn start(
        &self,
        endpoint: &Endpoint,
        key: u64,
        operation: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Option<Result<T>> {
        if let Err(error) = self.0.process.check() {
            return Some(Err(error));
        }
        let mut operation = Box::pin(operation);
        // The driver polls it again, with its own waker.
        if let Poll::Ready(result) = operation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(result);
        }
        let (cancel, cancelled) = oneshot::channel();
        self.insert(key, StartedOperation::Driven { _cancel: cancel });
        let completion =
            QueuedCompletion { key, results: self.0.results.clone(), cancelled, is_queued: false };
        endpoint.environment().spawn(Box::pin(drive(operation, completion)));
        None
    }

    /// Polls `operation` on this thread now, and after each wake-up on the thread that drains. It must be cheap
    /// to poll. Returns its result if it has ended already. Otherwise `drain` returns it under `key`, as for
    /// [`start`](Self::start).
    pub fn watch(
        &self,
        key: u64,
        operation: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Option<Result<T>> {
        if let Err(error) = self.0.process.check() {
            return Some(Err(error));
        }
        let waker = self.0.wakeups.waker(key);
        let mut operation = Box::pin(operation);
        match operation.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => {
                self.insert(key, StartedOperation::Watched(operation, waker));
                None
            }
        }
    }

    /// Drops the operation under `key`, as if its future were dropped: see the crate's table of cancel safety.
    /// `drain` no longer returns its result. Nothing happens if there is no such operation.
    pub fn cancel(&self, key: u64) {
        if !self.0.process.is_this() {
            return;
        }
        let operation = self.0.operations.lock().remove(&key);
        // First, so that the driver, which may end it at this moment, queues no result from here on.
        drop(operation);
        let mut queued = self.0.results.queued.lock();
        let result = queued.iter().position(|(queued, _)| *queued == key).map(|at| queued.remove(at));
        drop(queued);
        drop(result);
    }

    /// Returns the results since the last call, each with its key. Polls the watched operations that were woken.
    /// The descriptor is not readable until there is more. Never waits.
    pub fn drain(&self) -> Vec<(u64, Result<T>)> {
        if !self.0.process.is_this() {
            return Vec::new();
        }
        let woken = self.0.wakeups.drain();
        let mut ended = std::mem::take(&mut *self.0.results.queued.lock());
        let mut operations = self.0.operations.lock();
        for (key, _) in &ended {
            operations.remove(key);
        }
        drop(operations);
        ended.extend(woken.into_iter().filter_map(|key| Some((key, self.poll(key)?))));
        ended
    }

    /// Returns how many operations are in progress.
    pub fn len(&self) -> usize {
        self.0.operations.lock().len()
    }

    /// Returns whether no operation is in progress.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn insert(&self, key: u64, operation: StartedOperation<T>) {
        let previous = self.0.operations.lock().insert(key, operation);
        debug_assert!(key != OWN && previous.is_none(), "the key {key} is taken");
    }

    /// Polls the watched operation under `key`, if there is one, and returns its result.
    fn poll(&self, key: u64) -> Option<Result<T>> {
        let mut operations = self.0.operations.lock();
        let Entry::Occupied(mut entry) = operations.entry(key) else { return None };
        let (mut operation, waker) = match std::mem::replace(entry.get_mut(), StartedOperation::Polling) {
            StartedOperation::Watched(operation, waker) => (operation, waker),
            other => {
                entry.insert(other);
                return None;
            }
        };
        // The operation may start or cancel others, so it is polled without the lock.
        drop(operations);
        let polled = operation.as_mut().poll(&mut Context::from_waker(&waker));
        let mut operations = self.0.operations.lock();
        let Entry::Occupied(mut entry) = operations.entry(key) else {
            // It was cancelled meanwhile.
            drop(operations);
            return None;
        };
        match polled {
            Poll::Ready(result) => {
                entry.remove();
                Some(result)
            }
            Poll::Pending => {
                entry.insert(StartedOperation::Watched(operation, waker));
                None
            }
        }
    }
}

/// Polls `operation` on the driver until it ends or is cancelled, and queues its result.
async fn drive<T: Send>(
    mut operation: Pin<Box<impl Future<Output = Result<T>> + Send>>,
    mut completion: QueuedCompletion<T>,
) {
    let result = std::future::poll_fn(|cx| {
        // The sender is never used: it is dropped.
        if Pin::new(&mut completion.cancelled).poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        operation.as_mut().poll(cx).map(Some)
    });
    if let Some(result) = result.await {
        completion.queue(result);
    }
}

/// The result of an operation that the driver polls. Dropped without one, it queues an error: the driver ended.
/// It queues nothing once the operation is cancelled.
struct QueuedCompletion<T> {
    key: u64,
    results: Arc<Results<T>>,
    cancelled: oneshot::Receiver<()>,
    is_queued: bool,
}

impl<T> QueuedCompletion<T> {
    fn queue(&mut self, result: Result<T>) {
        self.is_queued = true;
        let mut queued = self.results.queued.lock();
        // Checked under the lock: whoever cancels drops the sender first, and then looks for a result.
        if self.cancelled.try_recv() == Err(TryRecvError::Empty) {
            queued.push((self.key, result));
            drop(queued);
            self.results.waker.wake_by_ref();
        }
    }
}

impl<T> Drop for QueuedCompletion<T> {
    fn drop(&mut self) {
        if !self.is_queued {
            self.queue(Err(Error::new(ErrorKind::Closed, "the endpoint's driver ended")));
        }
    }
}

impl<T> Drop for QueueState<T> {
    fn drop(&mut self) {
        if !self.process.is_this() {
            // A cancellation would wake the parent's driver, whose locks may be held for ever (M10).
            std::mem::forget(std::mem::take(&mut *self.operations.lock()));
        }
    }
}

impl<T> AsFd for CompletionQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wakeups.as_fd()
    }
}

impl<T> Clone for CompletionQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for CompletionQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompletionQueue").field(&self.0.wakeups).finish()
    }
}
