//! For event loops that poll futures themselves: one descriptor to sleep on, and the keys of the futures that
//! were woken.
//!
//! The invariant: while the queue holds a wake-up, the descriptor is readable, or the thread that queued the
//! first wake-up is about to make it readable.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::task::{Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// A descriptor that an event loop sleeps on while it polls this crate's futures itself: Python's `asyncio`,
/// `libuv`, a loop around `poll(2)`.
///
/// Each future is polled with a [`waker`](Self::waker) of its own, made once and identified by a key. While
/// any waker has been woken, the descriptor ([`AsFd`]) is readable, and [`drain`](Self::drain) returns the
/// keys. The descriptor is written once for all wake-ups between two drains. Only `drain` may read it.
///
/// The loop needs no async runtime: while it sleeps, the endpoint's driver thread polls the links. Before
/// that, a waiting future spins for 50 µs, in polls of 10 µs each that wake it again at once. A loop with
/// much other work sets [`Wait::Sleep`](crate::Wait::Sleep) in its endpoint's [`Builder`](crate::Builder).
///
/// Clones are handles to the same descriptor, which closes with the last one. A waker that outlives it does
/// nothing. In a forked child it is inert: wakers do nothing, `drain` returns nothing, and the parent's loop
/// loses no wake-up. The child makes its own.
///
/// ```
/// use std::cell::OnceCell;
/// use std::collections::BTreeMap;
/// use std::pin::Pin;
/// use std::rc::Rc;
/// use std::task::{Context, Waker};
///
/// use rustix::event::{PollFd, PollFlags, poll};
/// use towline::{Endpoint, Message, Result, Wakeups};
///
/// type Call = Pin<Box<dyn Future<Output = Result<()>>>>;
///
/// struct EventLoop {
///     wakeups: Wakeups,
///     calls: BTreeMap<u64, (Waker, Call)>,
///     last: u64,
/// }
///
/// impl EventLoop {
///     fn start(&mut self, call: impl Future<Output = Result<()>> + 'static) {
///         self.last += 1;
///         let waker = self.wakeups.waker(self.last);
///         // Schedules the first poll.
///         waker.wake_by_ref();
///         self.calls.insert(self.last, (waker, Box::pin(call)));
///     }
///
///     /// In `asyncio`, the reader's callback: `loop.add_reader(fd, advance)`.
///     fn advance(&mut self) -> Result<()> {
///         for key in self.wakeups.drain() {
///             // The call may have ended, or been cancelled, which drops it.
///             let Some((waker, call)) = self.calls.get_mut(&key) else { continue };
///             if let std::task::Poll::Ready(ended) = call.as_mut().poll(&mut Context::from_waker(waker)) {
///                 self.calls.remove(&key);
///                 ended?;
///             }
///         }
///         Ok(())
///     }
///
///     fn run(&mut self) -> Result<()> {
///         while !self.calls.is_empty() {
///             poll(&mut [PollFd::new(&self.wakeups, PollFlags::IN)], None).expect("it is open");
///             self.advance()?;
///         }
///         Ok(())
///     }
/// }
///
/// let mut events = EventLoop { wakeups: Wakeups::new()?, calls: BTreeMap::new(), last: 0 };
/// let endpoint = Endpoint::new()?;
/// let listening = Rc::new(OnceCell::new());
/// events.start({
///     let (endpoint, listening) = (endpoint.clone(), listening.clone());
///     async move {
///         let listener = endpoint.listen(&"mem://".parse()?).await?;
///         listening.set(listener).expect("it listens once");
///         Ok(())
///     }
/// });
/// events.run()?;
///
/// let listener = Rc::into_inner(listening).and_then(OnceCell::into_inner).expect("it listens");
/// let address = listener.address().clone();
/// events.start(async move { listener.accept().await?.deliver(Message::new("hello")).await });
/// events.start(async move {
///     let message = endpoint.connect(&address).await?.recv().await?;
///     assert_eq!(message.header()[..], *b"hello");
///     Ok(())
/// });
/// events.run()?;
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Wakeups(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    /// A non-blocking eventfd.
    descriptor: OwnedFd,
    /// In the order of waking, each once.
    woken: Mutex<Vec<Arc<Wakeup>>>,
    process: Process,
}

/// The wake-ups of one future.
struct Wakeup {
    key: u64,
    queued: AtomicBool,
    queue: Weak<Queue>,
}

impl Wakeups {
    /// Makes one descriptor, for any number of futures.
    ///
    /// # Errors
    /// The system's error where no more descriptors may be open.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let descriptor = eventfd(0, flags).map_err(|errno| Error::io(errno.into()))?;
        Ok(Self(Arc::new(Queue { descriptor, woken: Mutex::default(), process: Process::current() })))
    }

    /// Makes the waker of one future, for all of its polls. [`drain`](Self::drain) may return `key` once more
    /// after the future has ended. A loop that gives each future a key of its own never mistakes one future
    /// for another.
    pub fn waker(&self, key: u64) -> Waker {
        let queue = Arc::downgrade(&self.0);
        Waker::from(Arc::new(Wakeup { key, queued: AtomicBool::new(false), queue }))
    }

    /// Returns the keys of all wakers that woke since the last call, each once, in the order of waking: poll
    /// these futures. The descriptor is not readable until the next waker wakes. Never waits.
    pub fn drain(&self) -> Vec<u64> {
        if !self.0.process.is_this() {
            return Vec::new();
        }
        // Read the descriptor first. A waker that wakes in between then makes it readable once too often,
        // instead of not at all.
        let _ = rustix::io::read(&self.0.descriptor, &mut [0; 8]);
        self.0.woken().drain(..).map(|wakeup| wakeup.take()).collect()
    }
}

impl AsFd for Wakeups {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

impl Queue {
    fn woken(&self) -> MutexGuard<'_, Vec<Arc<Wakeup>>> {
        self.woken.lock()
    }
}

impl Wakeup {
    /// Allows it to be queued again. Acquires all writes that were made before the last wake-up.
    fn take(&self) -> u64 {
        self.queued.swap(false, Ordering::AcqRel);
        self.key
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(queue) = self.queue.upgrade() else { return };
        // In a forked child the lock may be held for ever, and the descriptor is the parent's.
        if !queue.process.is_this() || self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut woken = queue.woken();
        woken.push(self.clone());
        let first = woken.len() == 1;
        drop(woken);
        if first {
            // This cannot fail: the descriptor is open, and its counter exceeds any number of wake-ups.
            let _ = rustix::io::write(&queue.descriptor, &1_u64.to_ne_bytes());
        }
    }
}

impl fmt::Debug for Wakeup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wakeup").field(&self.key).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const SOON_SECONDS: i64 = 20;

    fn is_readable(wakeups: &Wakeups, within_seconds: i64) -> bool {
        let limit = Timespec { tv_sec: within_seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(wakeups, PollFlags::IN)], Some(&limit)).expect("it is open") == 1
    }

    fn counted(wakeups: &Wakeups) -> Option<u64> {
        let mut count = [0; 8];
        let read = rustix::io::read(wakeups, &mut count).ok()?;
        (read == 8).then(|| u64::from_ne_bytes(count))
    }

    #[test]
    fn drain_returns_each_key_once_in_the_order_of_waking() {
        let wakeups = Wakeups::new().expect("made");
        let wakers: Vec<_> = (0..4).map(|key| wakeups.waker(key)).collect();
        assert!(!is_readable(&wakeups, 0));
        assert_eq!(wakeups.drain(), []);
        for at in [2, 0, 2, 3, 0] {
            wakers[at].wake_by_ref();
        }
        assert!(is_readable(&wakeups, 0));
        assert_eq!(wakeups.drain(), [2, 0, 3]);
        assert!(!is_readable(&wakeups, 0));
        wakers[2].wake_by_ref();
        assert_eq!(wakeups.drain(), [2], "a waker wakes again after a drain");
    }

    #[test]
    fn many_wake_ups_write_the_descriptor_once() {
        let wakeups = Wakeups::new().expect("made");
        let wakers: Vec<_> = (0..100).map(|key| wakeups.waker(key)).collect();
        wakers.iter().for_each(Waker::wake_by_ref);
        assert_eq!(counted(&wakeups), Some(1));
        assert_eq!(wakeups.drain().len(), 100, "the keys do not depend on the descriptor's count");
    }

    #[test]
    fn wakers_do_not_keep_the_queue_alive() {
        let wakeups = Wakeups::new().expect("made");
        let (woken, silent) = (wakeups.waker(1), wakeups.waker(2));
        woken.wake_by_ref();
        let queue = Arc::downgrade(&wakeups.0);
        drop(wakeups);
        assert!(queue.upgrade().is_none());
        woken.wake();
        silent.wake();
    }

    #[test]
    fn no_wake_up_is_lost_among_threads() {
        const THREADS: u64 = 4;
        const WAKES: u64 = 20_000;
        let wakeups = Wakeups::new().expect("made");
        let work: Vec<_> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for (key, done) in (0..).zip(&work) {
                let waker = wakeups.waker(key);
                scope.spawn(move || {
                    for count in 1..=WAKES {
                        // As a completion does: the result first, then the waker.
                        done.store(count, Ordering::Relaxed);
                        waker.wake_by_ref();
                    }
                });
            }
            let mut seen = BTreeMap::new();
            while seen.values().filter(|count| **count == WAKES).count() < THREADS as usize {
                assert!(is_readable(&wakeups, SOON_SECONDS), "a wake-up was lost: {seen:?}");
                for key in wakeups.drain() {
                    seen.insert(key, work[key as usize].load(Ordering::Relaxed));
                }
            }
        });
    }
}
