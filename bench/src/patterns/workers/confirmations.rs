//! The state that the tasks of one worker share: the messages confirmed in one direction, and whether to
//! stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::MessageCount;
use crate::results::histogram::HistogramCounts;
use crate::results::sample::Sample;

/// Every lane writes its confirmations down here.
#[derive(Debug, Default)]
pub(super) struct ConfirmationCounter {
    state: Mutex<State>,
    stopped: AtomicBool,
    /// The first message was confirmed.
    begun: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Messages since the start.
    confirmed: u64,
    count: Option<Count>,
}

/// A count in progress.
#[derive(Debug)]
struct Count {
    duration: Duration,
    /// The time of the first confirmation, at which the count starts.
    begin: Option<Instant>,
    messages: u64,
    sample: Sample,
    done: oneshot::Sender<MessageCount>,
}

impl ConfirmationCounter {
    /// Records that a message sent at `sent` is confirmed at `now`.
    pub(super) fn confirm(&self, sent: Instant, now: Instant) {
        self.add(Some(now.saturating_duration_since(sent)), now);
    }

    /// Records that a received message is taken at `now`, which confirms it.
    pub(super) fn take(&self, now: Instant) {
        self.add(None, now);
    }

    fn add(&self, time: Option<Duration>, now: Instant) {
        let mut state = self.state();
        state.confirmed += 1;
        if state.confirmed == 1 {
            self.begun.notify_one();
        }
        let Some(count) = &mut state.count else { return };
        // The count runs from one confirmation to another, so no message counts in part.
        let Some(begin) = count.begin else {
            count.begin = Some(now);
            return;
        };
        count.messages += 1;
        if let Some(time) = time {
            count.sample.record(time);
        }
        let elapsed = now.saturating_duration_since(begin);
        if elapsed >= count.duration
            && let Some(Count { messages, sample, done, .. }) = state.count.take()
        {
            let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
            // The receiver may have been dropped.
            let _ =
                done.send(MessageCount { elapsed_ns, messages, times: HistogramCounts::of(&sample.times) });
        }
    }

    /// Counts from the next confirmation until the first one after `duration`.
    pub(super) fn count(&self, duration: Duration) -> oneshot::Receiver<MessageCount> {
        let (done, counted) = oneshot::channel();
        self.state().count = Some(Count { duration, begin: None, messages: 0, sample: Sample::new(), done });
        counted
    }

    pub(super) async fn begun(&self) {
        self.begun.notified().await;
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

    #[test]
    fn a_count_lasts_from_a_confirmation_to_a_confirmation() {
        let (confirmations, begin) = (ConfirmationCounter::default(), Instant::now());
        let at = |millis| begin + Duration::from_millis(millis);
        confirmations.confirm(at(0), at(1));
        let mut counted = confirmations.count(Duration::from_millis(20));
        for millis in [5, 15, 24] {
            confirmations.confirm(at(0), at(millis));
            assert!(counted.try_recv().is_err(), "{millis}");
        }
        confirmations.confirm(at(1), at(35));
        let MessageCount { elapsed_ns, messages, times } = counted.try_recv().unwrap();
        assert_eq!((elapsed_ns, messages), (30_000_000, 3));
        let times = times.to_histogram();
        assert_eq!(times.len(), 3, "the first one begins the time, and is not in it");
        assert!((times.max() as f64 - 34e6).abs() < 1e5);
        confirmations.confirm(at(0), at(36));
        assert_eq!(confirmations.confirmed(), 6);
    }

    #[test]
    fn received_messages_count_without_a_time() {
        let (confirmations, begin) = (ConfirmationCounter::default(), Instant::now());
        let mut counted = confirmations.count(Duration::from_millis(20));
        for millis in [5, 15, 25] {
            assert!(counted.try_recv().is_err(), "{millis}");
            confirmations.take(begin + Duration::from_millis(millis));
        }
        let MessageCount { elapsed_ns, messages, times } = counted.try_recv().unwrap();
        assert_eq!((elapsed_ns, messages, times.to_histogram().len()), (20_000_000, 2, 0));
    }
}
