//! The metrics of a worker.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counts::WorkerCounts;
use super::driver::WorkerDriver;
use crate::metrics::{MetricSource, Page};

impl MetricSource for WorkerDriver {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let WorkerCounts { runs_done, runs_failed, run_micros, fetched_bytes, fetches_failed, given_bytes } =
            self.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let memory = [("state", "in_use", self.bytes()), ("state", "max", self.bytes_max())];
        page.gauges(
            "towline_worker_memory_bytes",
            "Bytes of values present or being fetched, and their limit",
            &memory,
        )?;
        page.gauge("towline_worker_values", "Values that are present", self.values() as u64)?;
        page.gauge("towline_worker_running", "Running tasks", self.running())?;
        let runs = [("outcome", "done", read(runs_done)), ("outcome", "failed", read(runs_failed))];
        page.counters("towline_worker_runs", "Attempts that ended", &runs)?;
        page.seconds("towline_worker_run_seconds", "Time of all attempts", read(run_micros))?;
        page.counter(
            "towline_worker_fetched_bytes",
            "Bytes fetched from other workers",
            read(fetched_bytes),
        )?;
        page.counter("towline_worker_fetches_failed", "Failed fetches", read(fetches_failed))?;
        page.counter("towline_worker_given_bytes", "Bytes fetched by peers", read(given_bytes))
    }
}
