//! The metrics of a scheduler.

use std::fmt;

use super::driver::SchedulerDriver;
use crate::metrics::{MetricSource, Page};
use crate::stats::StageCounts;

impl MetricSource for SchedulerDriver {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let stats = self.lock().state.stats();
        let sum =
            |of: fn(&crate::WorkerStats) -> u64| stats.workers.iter().map(of).fold(0, u64::saturating_add);
        page.gauge("towline_scheduler_clients", "Clients that are connected", stats.clients.into())?;
        page.gauge("towline_scheduler_workers", "Workers that have joined", stats.workers.len() as u64)?;
        page.counter("towline_scheduler_workers_lost", "Workers that died", stats.workers_lost)?;
        page.gauge("towline_scheduler_slots", "Tasks that can run at once", sum(|it| it.slots.into()))?;
        let memory =
            [("state", "in_use", sum(|it| it.memory_bytes)), ("state", "max", sum(|it| it.memory_bytes_max))];
        page.gauges(
            "towline_scheduler_memory_bytes",
            "Bytes of results at workers, and their limit",
            &memory,
        )?;
        let StageCounts { released, waiting, ready, sent, done, failed } = stats.tasks;
        let stages = [
            ("stage", "released", released),
            ("stage", "waiting", waiting),
            ("stage", "ready", ready),
            ("stage", "sent", sent),
            ("stage", "done", done),
            ("stage", "failed", failed),
        ];
        page.gauges("towline_scheduler_tasks", "Tasks by stage", &stages)?;
        let runs = [("outcome", "done", stats.runs_done), ("outcome", "failed", stats.runs_failed)];
        page.counters("towline_scheduler_runs", "Attempts that ended", &runs)?;
        page.counter("towline_scheduler_moved_bytes", "Bytes that workers fetched", stats.moved_bytes)
    }
}
