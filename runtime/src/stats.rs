//! Statistics of a cluster at one moment, as `towline top` shows them.

use serde::{Deserialize, Serialize};

/// The state of a cluster at one moment, as its scheduler knows it: see
/// [`Client::stats`](crate::Client::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Connected clients.
    pub clients: u32,
    /// Workers that died since the scheduler started.
    pub workers_lost: u64,
    /// Tasks by stage.
    pub tasks: StageCounts,
    /// Attempts that ended with a result since the scheduler started.
    pub runs_done: u64,
    /// Attempts that ended with an error since the scheduler started.
    pub runs_failed: u64,
    /// Bytes that workers fetched from each other since the scheduler started.
    pub moved_bytes: u64,
    /// The workers, in the order in which they joined.
    pub workers: Vec<WorkerStats>,
    /// Transfers by pair of workers, most bytes first; at most 1,000 pairs.
    pub pairs: Vec<PairStats>,
}

impl Stats {
    /// Returns the approximate size of the message, in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        let workers =
            self.workers.iter().map(|worker| size_of::<WorkerStats>() + worker.address.len()).sum::<usize>();
        size_of::<Self>() + workers + self.pairs.len() * size_of::<PairStats>()
    }
}

/// The number of tasks in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageCounts {
    /// Tasks whose results are not needed now, but may be needed again.
    pub released: u64,
    /// Tasks that wait for inputs.
    pub waiting: u64,
    /// Tasks that wait for room at a worker.
    pub ready: u64,
    /// Tasks sent to a worker.
    pub sent: u64,
    /// Tasks whose results workers have.
    pub done: u64,
    /// Tasks that have failed.
    pub failed: u64,
}

/// The state of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number, never reused by this scheduler.
    pub number: u32,
    /// The address for its peers.
    pub address: String,
    /// Tasks that it can run at the same time.
    pub slots: u32,
    /// Tasks that it was sent and has not ended.
    pub given: u64,
    /// Tasks that wait for room there.
    pub queued: u64,
    /// Results that it has.
    pub results: u64,
    /// The bytes of these results.
    pub memory_bytes: u64,
    /// Its memory limit, in bytes.
    pub memory_bytes_max: u64,
    /// Attempts that ended there with a result.
    pub runs_done: u64,
}

/// Transfers from one worker to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PairStats {
    /// The number of the sending worker.
    pub from: u32,
    /// The number of the fetching worker.
    pub to: u32,
    /// The path of the last transfer: `shm`, `tcp`, `mem`, …
    pub path: String,
    /// The number of values.
    pub values: u64,
    /// Their bytes.
    pub bytes: u64,
}
