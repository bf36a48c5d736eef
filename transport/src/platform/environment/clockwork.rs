//! A manual clock, and random bytes that count up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::platform::environment::{Environment, Task};

#[derive(Clone, Debug, Default)]
pub(crate) struct Clockwork(Arc<ClockState>);

#[derive(Debug, Default)]
struct ClockState {
    nanoseconds: AtomicU64,
    drawn: AtomicU64,
}

impl Clockwork {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.nanoseconds.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Environment for Clockwork {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed))
    }

    fn sleep_until(&self, at: Duration) -> Task {
        let clock = self.clone();
        // A test polls every waiter again after it advances the clock, so nothing needs to be woken.
        Box::pin(std::future::poll_fn(
            move |_| if clock.now() >= at { Poll::Ready(()) } else { Poll::Pending },
        ))
    }

    fn random(&self, out: &mut [u8]) {
        out.fill(self.0.drawn.fetch_add(1, Ordering::Relaxed) as u8 + 1);
    }

    fn spawn(&self, _: Task) {}
}
