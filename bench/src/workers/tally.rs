//! What the lanes of one worker have in common: how much was confirmed, and whether to go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::Counted;
use crate::bench::{Sample, Times};

/// Every lane writes its confirmations down here.
#[derive(Debug, Default)]
pub(super) struct Tally {
    state: Mutex<State>,
    stopped: AtomicBool,
    /// As many messages were confirmed as were asked for.
    confirmed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Messages since the beginning.
    confirmed: u64,
    /// Whoever waits for this many is told.
    awaited: u64,
    count: Option<Count>,
}

/// Counting at work.
#[derive(Debug)]
struct Count {
    duration: Duration,
    /// When the first confirmation came, which is where the time begins.
    begin: Option<Instant>,
    sample: Sample,
    done: oneshot::Sender<Counted>,
}

impl Tally {
    /// A message that was sent at `sent` is confirmed now.
    pub(super) fn confirm(&self, sent: Instant, now: Instant) {
        let mut state = self.state();
        state.confirmed += 1;
        if state.confirmed == state.awaited {
            self.confirmed.notify_one();
        }
        let Some(count) = &mut state.count else { return };
        // From a confirmation to a confirmation: neither half a message more nor half a message less.
        let Some(begin) = count.begin else {
            count.begin = Some(now);
            return;
        };
        count.sample.record(now.saturating_duration_since(sent));
        let elapsed = now.saturating_duration_since(begin);
        if elapsed >= count.duration
            && let Some(Count { sample, done, .. }) = state.count.take()
        {
            let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
            // Who asked may be gone.
            let _ = done.send(Counted { elapsed_ns, times: Times::of(&sample.times) });
        }
    }

    /// Counts from the next confirmation on, for `duration` and to the confirmation after it.
    pub(super) fn count(&self, duration: Duration) -> oneshot::Receiver<Counted> {
        let (done, counted) = oneshot::channel();
        self.state().count = Some(Count { duration, begin: None, sample: Sample::new(), done });
        counted
    }

    /// Waits for that many confirmations since the beginning.
    pub(super) async fn until(&self, messages: u64) {
        self.state().awaited = messages;
        while self.confirmed() < messages {
            self.confirmed.notified().await;
        }
    }

    pub(super) fn confirmed(&self) -> u64 {
        self.state().confirmed
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_confirmations_are_waited_for() {
        let (tally, now) = (Tally::default(), Instant::now());
        let mut until = std::pin::pin!(tally.until(3));
        for expected in [false, false, true] {
            assert!(at_once(&mut until).await.is_none());
            tally.confirm(now, now);
            assert_eq!(at_once(&mut until).await.is_some(), expected);
        }
        tally.until(2).await;
    }

    /// What comes of a future that is polled once.
    async fn at_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn a_count_lasts_from_a_confirmation_to_a_confirmation() {
        let (tally, begin) = (Tally::default(), Instant::now());
        let at = |millis| begin + Duration::from_millis(millis);
        tally.confirm(at(0), at(1));
        let mut counted = tally.count(Duration::from_millis(20));
        for millis in [5, 15, 24] {
            tally.confirm(at(0), at(millis));
            assert!(counted.try_recv().is_err(), "{millis}");
        }
        tally.confirm(at(1), at(35));
        let Counted { elapsed_ns, times } = counted.try_recv().unwrap();
        assert_eq!(elapsed_ns, 30_000_000);
        let times = times.to_histogram();
        assert_eq!(times.len(), 3, "the first one begins the time, and is not in it");
        assert!((times.max() as f64 - 34e6).abs() < 1e5);
        tally.confirm(at(0), at(36));
        assert_eq!(tally.confirmed(), 6);
    }
}
