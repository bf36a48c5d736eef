//! The scheduler's statistics.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::state::{SchedulerState, Violation};
use crate::protocol::WorkerId;
use crate::stats::{PairStats, Stats, WorkerStats};

/// Maximum number of pairs that are reported: those with the most bytes.
const PAIRS_REPORTED_MAX: usize = 1000;
/// Maximum length of a path's name, in bytes.
const PATH_LEN_MAX: usize = 16;

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct SchedulerCounts {
    pub(super) runs_done: u64,
    pub(super) runs_failed: u64,
    pub(super) workers_lost: u64,
    moved_bytes: u64,
    /// Transfers by sender and receiver, of present workers.
    pairs: BTreeMap<(WorkerId, WorkerId), Transfers>,
}

#[derive(Debug)]
struct Transfers {
    path: Box<str>,
    values: u64,
    bytes: u64,
}

impl SchedulerCounts {
    pub(super) fn remove(&mut self, worker: WorkerId) {
        self.pairs.retain(|(from, to), _| *from != worker && *to != worker);
    }
}

impl SchedulerState {
    /// Records that a worker fetched a value from another.
    pub(super) fn record_transfer(
        &mut self,
        from: WorkerId,
        to: WorkerId,
        path: &str,
        bytes: u64,
    ) -> Result<(), Violation> {
        if path.len() > PATH_LEN_MAX {
            return Err(Violation::protocol("a path name exceeds the length limit"));
        }
        self.counts.moved_bytes = self.counts.moved_bytes.saturating_add(bytes);
        // The sender may be gone by now.
        if self.workers.contains_key(&from) {
            let fresh = || Transfers { path: path.into(), values: 0, bytes: 0 };
            let transfers = self.counts.pairs.entry((from, to)).or_insert_with(fresh);
            if *transfers.path != *path {
                transfers.path = path.into();
            }
            transfers.values += 1;
            transfers.bytes = transfers.bytes.saturating_add(bytes);
        }
        Ok(())
    }

    /// Returns the state of the cluster.
    pub(super) fn stats(&self) -> Stats {
        let workers = self.workers.iter().map(|(number, worker)| WorkerStats {
            number: *number,
            address: worker.offer.address.clone(),
            slots: worker.offer.slots,
            given: worker.sent.len() as u64,
            queued: worker.queue.len() as u64,
            results: worker.holds.len() as u64,
            memory_bytes: worker.bytes,
            memory_bytes_max: worker.offer.memory_bytes_max,
            runs_done: worker.runs_done,
        });
        let mut pairs: Vec<_> = self.counts.pairs.iter().collect();
        if pairs.len() > PAIRS_REPORTED_MAX {
            pairs.select_nth_unstable_by_key(PAIRS_REPORTED_MAX, |(_, transfers)| Reverse(transfers.bytes));
            pairs.truncate(PAIRS_REPORTED_MAX);
        }
        pairs.sort_by_key(|(pair, transfers)| (Reverse(transfers.bytes), **pair));
        let pairs = pairs.into_iter().map(|((from, to), transfers)| PairStats {
            from: *from,
            to: *to,
            path: transfers.path.to_string(),
            values: transfers.values,
            bytes: transfers.bytes,
        });
        Stats {
            clients: self.clients.len() as u32,
            workers_lost: self.counts.workers_lost,
            tasks: self.tasks.stages(),
            runs_done: self.counts.runs_done,
            runs_failed: self.counts.runs_failed,
            moved_bytes: self.counts.moved_bytes,
            workers: workers.collect(),
            pairs: pairs.collect(),
        }
    }
}
