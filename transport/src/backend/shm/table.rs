//! The table in which a borrower returns leases: one word per lease at the end of its segment, which the
//! lender reads.

#![expect(unsafe_code, reason = "atomics are laid over segments here")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most leases that one end may have granted at once.
pub(super) const LEASES: usize = 4096;
/// The length of the table in a segment, in bytes.
pub(super) const TABLE_LEN: usize = LEASES * size_of::<AtomicU64>();

/// A segment's lease table. Fresh memory is all zero: no lease was returned.
#[derive(Debug)]
pub(super) struct LeaseTable {
    words: NonNull<AtomicU64>,
    /// Keeps the words mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the words are shared between processes, hence between threads, and are atomics. The owner may go to
// any thread.
unsafe impl Send for LeaseTable {}
// SAFETY: as above: a shared reference gives access to atomics only.
unsafe impl Sync for LeaseTable {}

impl LeaseTable {
    /// Creates a table over the words starting at `words`.
    ///
    /// # Safety
    ///
    /// For as long as `owner` lives, `TABLE_LEN` bytes from there are aligned and readable (M1), and written
    /// only as atomics. Where [`give_back`](Self::give_back) is called, they are writable, and this process
    /// created them (M9).
    pub(super) unsafe fn new(owner: Arc<dyn Any + Send + Sync>, words: NonNull<AtomicU64>) -> Self {
        Self { words, _owner: owner }
    }

    fn word(&self, slot: usize) -> &AtomicU64 {
        assert!(slot < LEASES, "lease {slot} of {LEASES}");
        let word = self.words.as_ptr().wrapping_add(slot);
        // SAFETY: within the table, which is mapped while its owner is held (M1); an atomic (M9).
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Returns the lease of `slot` with that generation. All reads of the lent memory happen before.
    pub(super) fn give_back(&self, slot: usize, generation: u64) {
        self.word(slot).store(generation, Ordering::Release);
    }

    /// Returns the generation of the slot's last returned lease.
    pub(super) fn returned(&self, slot: usize) -> u64 {
        let generation = self.word(slot).load(Ordering::Relaxed);
        // As in the ring: an acquiring load is not guaranteed to work on read-only mappings.
        std::sync::atomic::fence(Ordering::Acquire);
        generation
    }
}
