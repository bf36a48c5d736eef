//! Counts that anybody may read while whoever has the poll lock goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread at a time adds to. Clones are the same number.
///
/// Whoever learns that something was done finds it counted, if it was counted first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    /// By the holder of the poll lock alone.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get() + more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a session counts.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(super) copied: [Count; 3],
    pub(super) bounced: Count,
    pub(super) stalls: Count,
}

impl Counts {
    /// Payload bytes copied: of what leaves, of what comes, of one-sided requests.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.iter().map(Count::get).sum()
    }

    /// What of it was copied to where the peer reads it.
    pub(crate) fn bounced(&self) -> u64 {
        self.bounced.get()
    }

    /// Waits for credit.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls.get()
    }
}
