//! The first-in, first-out queue of callers that wait for memory of an arena.
//!
//! Only the first waiter takes memory. A buffer dropped in this process wakes it at once. Nothing reports
//! memory that peers return, so a waiter checks for that every millisecond. A thread wakes the waiters while
//! there are any: buffers are dropped under locks of other code, where no waker may run.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{ArenaInner, ArenaMemory};
use crate::error::{Error, ErrorKind, Result};

/// How often the thread sweeps for memory that peers returned, and for leases while there are none.
const SWEEP_EVERY: Duration = Duration::from_millis(1);
const IDLE_SWEEP_EVERY: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct WaitQueue {
    next: u64,
    waiters: VecDeque<Waiter>,
    /// The thread that wakes the waiters. It exists while there are any.
    thread_handle: Option<Thread>,
}

struct Waiter {
    number: u64,
    waker: Waker,
    /// `None` if the waiter has no deadline.
    deadline: Option<Instant>,
}

impl WaitQueue {
    /// Wakes the thread, because memory was returned.
    pub(super) fn notify(&self) {
        if let Some(thread_handle) = &self.thread_handle {
            thread_handle.unpark();
        }
    }

    #[cfg(test)]
    pub(super) fn has_thread(&self) -> bool {
        self.thread_handle.is_some()
    }

    fn is_first(&self, number: u64) -> bool {
        self.waiters.front().is_some_and(|waiter| waiter.number == number)
    }

    fn join(&mut self, waker: Waker, deadline: Option<Instant>, arena: &Arc<ArenaInner>) -> Result<u64> {
        match &self.thread_handle {
            Some(thread_handle) => thread_handle.unpark(),
            None => {
                let arena = Arc::downgrade(arena);
                let thread = thread::Builder::new().name("towline-arena".into());
                let thread_handle = thread.spawn(move || wake_waiters(&arena)).map_err(Error::io)?;
                self.thread_handle = Some(thread_handle.thread().clone());
            }
        }
        self.next += 1;
        self.waiters.push_back(Waiter { number: self.next, waker, deadline });
        Ok(self.next)
    }

    fn renew(&mut self, number: u64, waker: &Waker) {
        if let Some(waiter) = self.waiters.iter_mut().find(|waiter| waiter.number == number) {
            waiter.waker.clone_from(waker);
        }
    }

    /// Removes a waiter. Returns the waker of the new first one, if the first one left.
    fn leave(&mut self, number: u64) -> Option<Waker> {
        let was_first = self.is_first(number);
        self.waiters.retain(|waiter| waiter.number != number);
        was_first.then(|| Some(self.waiters.front()?.waker.clone())).flatten()
    }

    /// Returns the wakers to call now, of the first waiter and of those past their deadline, and the time to
    /// the next deadline. `None` if no waiter is left.
    fn due(&self) -> Option<(Vec<Waker>, Duration)> {
        let (first, now) = (self.waiters.front()?, Instant::now());
        let is_due = |waiter: &&Waiter| {
            waiter.number == first.number || waiter.deadline.is_some_and(|deadline| deadline <= now)
        };
        let wakers = self.waiters.iter().filter(is_due).map(|waiter| waiter.waker.clone()).collect();
        let left =
            self.waiters.iter().filter_map(|waiter| waiter.deadline?.checked_duration_since(now)).min();
        Some((wakers, left.unwrap_or(Duration::MAX)))
    }
}

fn wake_waiters(arena: &Weak<ArenaInner>) {
    while let Some(arena) = arena.upgrade() {
        let mut state = arena.state();
        let Some((wakers, left)) = state.wait_queue.due() else {
            state.wait_queue.thread_handle = None;
            return;
        };
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        let are_lent = arena.lending.lent.leases.load(Ordering::Relaxed) > 0;
        drop(arena);
        thread::park_timeout(left.min(if are_lent { SWEEP_EVERY } else { IDLE_SWEEP_EVERY }));
    }
}

/// Waits for a block.
pub(super) struct PendingTake<'a> {
    arena: &'a Arc<ArenaInner>,
    len: usize,
    limit: Duration,
    deadline: Option<Instant>,
    /// The waiter's number in the queue, once it is queued.
    number: Option<u64>,
    /// True once it has tried to grow the arena, which is slow.
    has_grown: bool,
}

impl<'a> PendingTake<'a> {
    pub(super) fn new(arena: &'a Arc<ArenaInner>, len: usize, limit: Duration) -> Self {
        let deadline = Instant::now().checked_add(limit);
        Self { arena, len, limit, deadline, number: None, has_grown: false }
    }

    /// Takes memory for the first waiter, if there is enough.
    fn take(&mut self) -> Result<Option<Arc<ArenaMemory>>> {
        let Self { arena, len, .. } = *self;
        if std::mem::replace(&mut self.has_grown, true) {
            return Ok(arena.take_or_reclaim(len).map(Arc::new));
        }
        match arena.allocate(len) {
            Ok(memory) => Ok(Some(memory)),
            // The memory in use will be returned, and segments stay.
            Err(error) if error.kind() == ErrorKind::TooLarge && arena.longest_segment() >= len => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn poll_take(&mut self, cx: &Context<'_>) -> Result<Option<Arc<ArenaMemory>>> {
        self.arena.check()?;
        let number = match self.number {
            Some(number) => {
                self.arena.state().wait_queue.renew(number, cx.waker());
                number
            }
            None => {
                self.arena.check_len(self.len)?;
                let is_empty_queue = self.arena.state().wait_queue.waiters.is_empty();
                if is_empty_queue && let Some(memory) = self.take()? {
                    return Ok(Some(memory));
                }
                let number =
                    self.arena.state().wait_queue.join(cx.waker().clone(), self.deadline, self.arena)?;
                *self.number.insert(number)
            }
        };
        if self.arena.state().wait_queue.is_first(number)
            && let Some(memory) = self.take()?
        {
            return Ok(Some(memory));
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let why = self.arena.why_full(self.len);
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("within {} s there was no room for {why}", self.limit.as_secs_f64()),
            ));
        }
        Ok(None)
    }
}

impl Future for PendingTake<'_> {
    type Output = Result<Arc<ArenaMemory>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut().poll_take(cx).transpose() {
            Some(taken) => Poll::Ready(taken),
            None => Poll::Pending,
        }
    }
}

impl Drop for PendingTake<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        if self.arena.check().is_ok() {
            let next = self.arena.state().wait_queue.leave(number);
            next.into_iter().for_each(Waker::wake);
        }
    }
}
