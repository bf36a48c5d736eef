//! The histogram of message times, as the document holds it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::sample::Sample;

/// The counts of message times in ascending order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HistogramCounts {
    /// Exact digits of each time.
    significant_digits: u8,
    /// Times in nanoseconds, and the number of messages with each.
    counts_ns: Vec<(u64, u64)>,
}

impl HistogramCounts {
    pub(crate) fn of(times: &Histogram<u64>) -> Self {
        let counted = times.iter_recorded();
        Self {
            significant_digits: times.sigfig(),
            counts_ns: counted.map(|step| (step.value_iterated_to(), step.count_at_value())).collect(),
        }
    }

    /// Converts it back into a histogram.
    pub(crate) fn to_histogram(&self) -> Histogram<u64> {
        let mut times = Sample::new().times;
        for (time_ns, count) in &self.counts_ns {
            times.saturating_record_n(*time_ns, *count);
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_being_kept() {
        let mut times = Sample::new().times;
        for time_ns in [1, 999, 1000, 12_345, 12_345, 1_234_567, 50_000_000_000] {
            times.saturating_record(time_ns);
        }
        let kept = HistogramCounts::of(&times);
        let text = serde_json::to_string(&kept).unwrap();
        let read: HistogramCounts = serde_json::from_str(&text).unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.counts_ns.iter().map(|(_, count)| count).sum::<u64>(), 7);
        let back = read.to_histogram();
        for quantile in [0.0, 0.3, 0.5, 0.9, 1.0] {
            assert_eq!(back.value_at_quantile(quantile), times.value_at_quantile(quantile), "{quantile}");
        }
    }
}
