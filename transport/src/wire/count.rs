//! Counters that any thread may read while the holder of the poll lock updates them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer at a time. Clones share the value.
///
/// A count made before an event is visible to every thread that has observed the event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU64>);

impl Count {
    /// Adds to the counter. Only the holder of the poll lock may call it.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get() + more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionCounts {
    pub(super) copied: [Count; 3],
    pub(super) bounced: Count,
    pub(super) stalls: Count,
}

impl SessionCounts {
    /// Returns the payload bytes copied: sent, received, and by one-sided operations.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.iter().map(Count::get).sum()
    }

    /// Returns how many of these bytes were copied into the bounce arena.
    pub(crate) fn bounced(&self) -> u64 {
        self.bounced.get()
    }

    /// Returns how often sending waited for credit.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls.get()
    }
}
