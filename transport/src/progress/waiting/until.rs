//! One wait: the caller checks, polls the link, spins, and sleeps.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::task::coop::poll_proceed;

use super::{Wait, Waiters};
use crate::backend::Progress;
use crate::platform::process::Inherited;
use crate::progress::spinning;

const SPIN_MAX: Duration = Duration::from_micros(50);
/// The interval at which a spinning waiter lets sibling tasks run.
const YIELD_EVERY: Duration = Duration::from_micros(10);
/// The most productive polls of a waiter before it lets sibling tasks run.
const PROGRESS_MAX: u32 = 64;
/// The most failed attempts of a waiter to sleep before it lets sibling tasks run.
const PARKS_MAX: u32 = 8;
/// `Wait::Spin` reads the clock once in so many polls.
const POLLS_PER_CLOCK_READ: u32 = 8;

/// A future of one wait.
#[derive(Debug)]
pub(crate) struct Until<'a, F> {
    waiters: &'a Waiters,
    check: F,
    /// The waiter's number, once it had to wait.
    waiter: Option<u64>,
    idle_since: Option<Instant>,
    /// It was polled before. Its process may have forked since.
    suspended: bool,
}

impl<T: Inherited, F> Future for Until<'_, F>
where
    F: FnMut(&mut Context<'_>) -> Poll<T> + Unpin,
{
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        if this.suspended && !this.waiters.process.is_this() {
            return Poll::Ready(T::inherited());
        }
        let polled = this.poll_here(cx);
        this.suspended = polled.is_pending();
        polled
    }
}

impl<'a, F> Until<'a, F> {
    pub(super) fn new(waiters: &'a Waiters, check: F) -> Self {
        Self { waiters, check, waiter: None, idle_since: None, suspended: false }
    }

    fn poll_here<T>(&mut self, cx: &mut Context<'_>) -> Poll<T>
    where
        F: FnMut(&mut Context<'_>) -> Poll<T>,
    {
        let Self { waiters, check, waiter, idle_since, .. } = self;
        // Loaded once: a load costs about as much as a poll that finds nothing.
        let link = waiters.link.load();
        // A task that never waits must still let its sibling tasks run.
        let budget = ready!(poll_proceed(cx));
        // While this task polls, nothing needs to wake it. The real waker is registered only before the task
        // stops.
        let mut spinning = Context::from_waker(Waker::noop());
        let mut polled_since = None;
        let (mut moves, mut idle_polls, mut parks, mut is_leader) = (0, 0, 0, false);
        loop {
            if let Poll::Ready(value) = check(&mut spinning) {
                budget.made_progress();
                return Poll::Ready(value);
            }
            if waiters.is_driver_polled() {
                // The driver need not wake for every packet while a caller polls.
                is_leader = waiters.try_lead(waiter, cx);
            }
            if waiters.poll(&***link) == Progress::Moved {
                *idle_since = None;
                moves += 1;
                if moves < PROGRESS_MAX {
                    continue;
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // A link without a source makes progress by itself, and wakes its waiters.
            let stops = link.source().is_none() || (!is_leader && !waiters.try_lead(waiter, cx));
            is_leader = !stops;
            if !stops && waiters.wait != Wait::Sleep {
                idle_polls += 1;
                if waiters.wait == Wait::Spin
                    && idle_since.is_some()
                    && idle_polls % POLLS_PER_CLOCK_READ != 0
                {
                    continue;
                }
                let now = Instant::now();
                let spins = match *idle_since {
                    _ if waiters.wait == Wait::Spin => true,
                    None => spinning::may_spin(now),
                    Some(since) => now - since < SPIN_MAX && spinning::may_spin(now),
                };
                if spins {
                    if idle_since.is_some() && now - *polled_since.get_or_insert(now) < YIELD_EVERY {
                        if waiters.wait == Wait::Adaptive {
                            spinning::yield_core(now);
                        }
                        continue;
                    }
                    // Before the first spin, let sibling tasks submit their operations. Otherwise each would
                    // wait for the others' round trips.
                    idle_since.get_or_insert(now);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if let Poll::Ready(value) = check(cx) {
                budget.made_progress();
                return Poll::Ready(value);
            }
            let Some(me) = waiter.filter(|_| !stops) else { return Poll::Pending };
            if waiters.park(me, cx) {
                return Poll::Pending;
            }
            is_leader = false;
            // What keeps the link from sleeping may depend on a task of this thread.
            parks += 1;
            if parks == PARKS_MAX {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl<F> Drop for Until<'_, F> {
    fn drop(&mut self) {
        if self.suspended && !self.waiters.process.is_this() {
            return;
        }
        if let Some(waiter) = self.waiter {
            self.waiters.leave(waiter);
        }
        // Blocked output continues without its caller.
        if self.waiters.link.load().source().is_some_and(|source| source.writable) {
            self.waiters.watch();
        }
    }
}
