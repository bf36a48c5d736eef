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
/// A spinning waiter lets sibling tasks run this often.
const YIELD_EVERY: Duration = Duration::from_micros(10);
/// A waiter that moves this much for others lets sibling tasks run.
const MOVES_MAX: u32 = 64;
/// Who only spins looks at the clock after so many polls.
const POLLS_PER_LOOK: u32 = 8;

/// One wait.
#[derive(Debug)]
pub(crate) struct Until<'a, F> {
    waiters: &'a Waiters,
    check: F,
    /// Its number, once it had to wait.
    waiter: Option<u64>,
    idle_since: Option<Instant>,
    /// It was polled before; since then its process may have forked.
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
        // A task that never has to wait must let its siblings run all the same.
        let budget = ready!(poll_proceed(cx));
        // Whoever polls again needs nobody to wake it: the real one is left where it is only before it stops.
        let mut spinning = Context::from_waker(Waker::noop());
        let mut polled_since = None;
        let (mut moves, mut idle_polls, mut is_leader) = (0, 0, false);
        loop {
            if let Poll::Ready(value) = check(&mut spinning) {
                budget.made_progress();
                return Poll::Ready(value);
            }
            if waiters.is_driver_polled() {
                // The driver need not wake for every packet beside a caller who polls.
                is_leader = waiters.leader(waiter, cx);
            }
            if waiters.poll_link() == Progress::Moved {
                *idle_since = None;
                moves += 1;
                if moves < MOVES_MAX {
                    continue;
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // A link without a source moves by itself, and wakes whoever waits.
            let stops = waiters.link.source().is_none() || (!is_leader && !waiters.leader(waiter, cx));
            is_leader = !stops;
            if !stops && waiters.wait != Wait::Sleep {
                idle_polls += 1;
                if waiters.wait == Wait::Spin && idle_since.is_some() && idle_polls % POLLS_PER_LOOK != 0 {
                    continue;
                }
                let now = Instant::now();
                let spins = match *idle_since {
                    _ if waiters.wait == Wait::Spin => true,
                    None => spinning::pays(now),
                    Some(since) => now - since < SPIN_MAX && spinning::pays(now),
                };
                if spins {
                    if idle_since.is_some() && now - *polled_since.get_or_insert(now) < YIELD_EVERY {
                        if waiters.wait == Wait::Adaptive {
                            spinning::yield_core(now);
                        }
                        continue;
                    }
                    // Before the first turn, whatever siblings have to submit leaves: else each would wait out the others' round trips.
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
        // Output that is blocked goes on without its caller.
        if self.waiters.link.source().is_some_and(|source| source.writable) {
            self.waiters.watch();
        }
    }
}
