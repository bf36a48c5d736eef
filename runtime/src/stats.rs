//! What a scheduler knows of its cluster at one moment, as `towline top` shows it.

use serde::{Deserialize, Serialize};

/// A cluster at one moment, as its scheduler knows it: see [`Client::stats`](crate::Client::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Clients that are connected.
    pub clients: u32,
    /// Workers that died, since the scheduler started.
    pub workers_lost: u64,
    /// Tasks by their stage.
    pub tasks: StageCounts,
    /// Runs that ended with a result, since the scheduler started.
    pub runs_done: u64,
    /// Runs that ended with an error, since the scheduler started.
    pub runs_failed: u64,
    /// Bytes that workers fetched from each other, since the scheduler started.
    pub moved_bytes: u64,
    /// The workers, the first to join first.
    pub workers: Vec<WorkerStats>,
    /// Between which workers bytes moved, most bytes first; the first 1,000 of them.
    pub pairs: Vec<PairStats>,
}

impl Stats {
    /// About what it takes to tell, in bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        let workers =
            self.workers.iter().map(|worker| size_of::<WorkerStats>() + worker.address.len()).sum::<usize>();
        size_of::<Self>() + workers + self.pairs.len() * size_of::<PairStats>()
    }
}

/// How many tasks are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageCounts {
    /// Nobody needs their results now; others that are needed could need them again.
    pub released: u64,
    /// For inputs.
    pub waiting: u64,
    /// For room at a worker.
    pub ready: u64,
    /// Given to a worker.
    pub sent: u64,
    /// Workers have the results.
    pub done: u64,
    /// They will have none.
    pub failed: u64,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number, which no other worker of this scheduler ever has.
    pub number: u32,
    /// Where others find it.
    pub address: String,
    /// Tasks that it runs at the same time.
    pub slots: u32,
    /// Tasks that it was given and has not ended.
    pub given: u64,
    /// Tasks that wait for room there.
    pub queued: u64,
    /// Results that it has.
    pub results: u64,
    /// The bytes of these.
    pub memory_bytes: u64,
    /// Its limit.
    pub memory_bytes_max: u64,
    /// Runs that ended there with a result.
    pub runs_done: u64,
}

/// What moved from one worker to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PairStats {
    /// The number of the worker that gave.
    pub from: u32,
    /// The number of the worker that fetched.
    pub to: u32,
    /// What carried the last of it: `shm`, `tcp`, `mem`, …
    pub path: String,
    /// How many values.
    pub values: u64,
    /// Their bytes.
    pub bytes: u64,
}
