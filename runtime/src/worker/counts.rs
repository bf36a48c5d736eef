//! The counters of a worker.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct WorkerCounts {
    pub(super) runs_done: AtomicU64,
    pub(super) runs_failed: AtomicU64,
    pub(super) run_micros: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    pub(super) fetches_failed: AtomicU64,
    pub(super) given_bytes: AtomicU64,
}

/// Increments a counter. No other memory is synchronized through it.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
