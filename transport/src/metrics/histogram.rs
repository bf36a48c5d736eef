//! A lock-free histogram: two relaxed additions per value. Its bounds are the caller's.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets: at most 14 bounds, and one bucket beyond them.
const BUCKETS: usize = 15;

/// The bounds of payload lengths in bytes.
const BYTES: Bounds = Bounds {
    of: &[0, 64, 512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 1 << 30],
    per_unit: 1.0,
};
/// The bounds of times: recorded in nanoseconds, reported in seconds.
const TIMES: Bounds = Bounds {
    of: &[
        3_000,
        10_000,
        30_000,
        100_000,
        300_000,
        1_000_000,
        3_000_000,
        10_000_000,
        30_000_000,
        100_000_000,
        300_000_000,
        1_000_000_000,
        3_000_000_000,
        10_000_000_000,
    ],
    per_unit: 1e9,
};

/// The largest value of each bucket, ascending, and the number of recorded units in a reported unit. Dividing
/// by a whole number gives the float next to the bound (0.0003). Multiplying by 1e-9 does not
/// (0.00030000000000000003).
#[derive(Debug, PartialEq)]
struct Bounds {
    of: &'static [u64],
    per_unit: f64,
}

/// Counts values by size.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static Bounds,
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// The contents of a histogram at one moment, or the sum of several.
#[derive(Clone, Debug)]
pub(crate) struct HistogramSnapshot {
    bounds: &'static Bounds,
    counts: [u64; BUCKETS],
    sum: u64,
}

impl Histogram {
    /// Makes a histogram of payload bytes.
    pub(crate) fn of_bytes() -> Self {
        Self::new(&BYTES)
    }

    /// Makes a histogram of times.
    pub(crate) fn of_times() -> Self {
        Self::new(&TIMES)
    }

    fn new(bounds: &'static Bounds) -> Self {
        Self { bounds, counts: Default::default(), sum: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, value: u64) {
        let bucket = self.bounds.of.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn record_time(&self, time: Duration) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn read(&self) -> HistogramSnapshot {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed));
        HistogramSnapshot { bounds: self.bounds, counts, sum: self.sum.load(Ordering::Relaxed) }
    }
}

impl HistogramSnapshot {
    /// Returns the number of values.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the values, in the recorded unit.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns the sum of the values, in the reported unit.
    pub(crate) fn sum_in_unit(&self) -> f64 {
        self.sum as f64 / self.bounds.per_unit
    }

    /// Returns each bucket's upper bound and its own count. The last bound is infinite, because the encoder
    /// writes the required `+Inf` for that value only.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.of.iter().map(|bound| *bound as f64 / self.bounds.per_unit);
        bounds.chain([f64::INFINITY]).zip(self.counts).collect()
    }
}

impl AddAssign<&Self> for HistogramSnapshot {
    /// Both have the same bounds.
    fn add_assign(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds);
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::of_bytes();
        for value in [0, 1, 64, 65, 1 << 30, u64::MAX >> 1] {
            histogram.record(value);
        }
        let snapshot = histogram.read();
        let buckets = snapshot.buckets();
        assert_eq!(buckets[..3], [(0.0, 1), (64.0, 2), (512.0, 1)]);
        assert_eq!(buckets[11..], [((1u64 << 30) as f64, 1), (f64::INFINITY, 1)]);
        assert_eq!(snapshot.count(), 6);
    }

    #[test]
    fn every_bound_has_a_bucket_and_one_bucket_is_left() {
        for Bounds { of, .. } in [BYTES, TIMES] {
            assert!(of.len() < BUCKETS && of.is_sorted());
        }
    }

    #[test]
    fn a_bound_of_time_is_the_float_next_to_it() {
        let bounds: Vec<_> =
            Histogram::of_times().read().buckets().into_iter().map(|(bound, _)| bound).collect();
        assert_eq!(bounds[..5], [0.000_003, 0.000_01, 0.000_03, 0.000_1, 0.000_3]);
    }

    #[test]
    fn snapshots_add_up() {
        let (first, second) = (Histogram::of_times(), Histogram::of_times());
        first.record_time(Duration::from_micros(2));
        second.record_time(Duration::from_millis(2));
        let mut both = first.read();
        both += &second.read();
        assert_eq!((both.count(), both.sum()), (2, 2_002_000));
        assert!((both.sum_in_unit() - 0.002_002).abs() < 1e-12);
    }
}
