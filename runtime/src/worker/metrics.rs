//! A worker's part of a page of metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::driver::WorkerDriver;
use crate::metrics::{MetricSource, Page};

/// What was counted since the start.
#[derive(Debug, Default)]
pub(super) struct WorkerCounts {
    pub(super) runs_done: AtomicU64,
    pub(super) runs_failed: AtomicU64,
    pub(super) run_micros: AtomicU64,
    pub(super) fetched_bytes: AtomicU64,
    pub(super) fetches_failed: AtomicU64,
    pub(super) given_bytes: AtomicU64,
}

/// Counts on; nothing is read off a counter but its value.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl MetricSource for WorkerDriver {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let WorkerCounts { runs_done, runs_failed, run_micros, fetched_bytes, fetches_failed, given_bytes } =
            self.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let memory = [("state", "in_use", self.bytes()), ("state", "max", self.bytes_max())];
        page.gauges(
            "towline_worker_memory_bytes",
            "Values that are here or coming, and their limit",
            &memory,
        )?;
        page.gauge("towline_worker_values", "Values that are here", self.values() as u64)?;
        page.gauge("towline_worker_running", "Tasks that run", self.running())?;
        let runs = [("outcome", "done", read(runs_done)), ("outcome", "failed", read(runs_failed))];
        page.counters("towline_worker_runs", "Runs that ended", &runs)?;
        page.seconds("towline_worker_run_seconds", "What all runs took", read(run_micros))?;
        page.counter("towline_worker_fetched_bytes", "Bytes fetched from others", read(fetched_bytes))?;
        page.counter("towline_worker_fetches_failed", "Fetches that brought nothing", read(fetches_failed))?;
        page.counter("towline_worker_given_bytes", "Bytes that others fetched", read(given_bytes))
    }
}
