//! The measurement of one repeat.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::ceiling::Ceiling;

/// The longest time that is distinguished from longer ones.
const TIME_MAX_NS: u64 = 120_000_000_000;

/// The times of the messages of one repeat, and their cost.
#[derive(Debug)]
pub(crate) struct Sample {
    /// In nanoseconds.
    pub(crate) times: Histogram<u64>,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// From the first send to the last confirmation.
    pub(crate) elapsed: Duration,
    /// The time of the first message on a new connection, with cold buffers.
    pub(crate) cold: Option<Duration>,
    /// The slowest sender's share of their mean rate, if there are several.
    pub(crate) fairness: Option<f64>,
    /// CPU seconds of the end that gives the bytes and of the end that takes them.
    pub(crate) cpu: Option<(f64, f64)>,
    /// Payload bytes that both ends copied in user space.
    pub(crate) bytes_copied: Option<u64>,
    /// CPU seconds of a task runtime's scheduler.
    pub(crate) scheduler_s: Option<f64>,
    /// Bytes that tasks took, including those already on the same worker.
    pub(crate) shuffled_bytes: u64,
}

impl Sample {
    pub(crate) fn new() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants that hdrhistogram takes")]
        let times = Histogram::new_with_bounds(1, TIME_MAX_NS, 3).expect("constant bounds");
        Self {
            times,
            messages: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
            cold: None,
            fairness: None,
            cpu: None,
            bytes_copied: None,
            scheduler_s: None,
            shuffled_bytes: 0,
        }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(TIME_MAX_NS).max(1));
    }

    pub(crate) fn count(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }

    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn messages_per_s(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn send_cpu_s_per_gb(&self) -> Option<f64> {
        self.per_gb(self.cpu?.0)
    }

    pub(crate) fn recv_cpu_s_per_gb(&self) -> Option<f64> {
        self.per_gb(self.cpu?.1)
    }

    fn per_gb(&self, seconds: f64) -> Option<f64> {
        (self.bytes > 0).then(|| seconds / (self.bytes as f64 / 1e9))
    }

    /// Returns the scheduler's CPU time per task.
    pub(crate) fn scheduler_us_per_task(&self) -> Option<f64> {
        (self.messages > 0).then_some(self.scheduler_s? * 1e6 / self.messages as f64)
    }

    /// Returns how often each payload byte was copied.
    pub(crate) fn copies(&self) -> Option<f64> {
        (self.bytes > 0).then_some(self.bytes_copied? as f64 / self.bytes as f64)
    }

    pub(crate) fn merged_times(samples: &[Self]) -> Histogram<u64> {
        let mut all = Self::new().times;
        for sample in samples {
            // All have the same bounds, so adding cannot fail.
            let _ = all.add(&sample.times);
        }
        all
    }
}

/// The result of one repeat.
#[derive(Debug)]
pub(crate) struct Repeat {
    pub(crate) path: String,
    pub(crate) sample: Sample,
    pub(crate) ceilings: Vec<Ceiling>,
}
