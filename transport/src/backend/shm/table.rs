//! Where a borrower says which loans are back: a word a lease, at the end of its segment, which the lender reads.

#![expect(unsafe_code, reason = "words are laid over segments here")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Leases that one end may have given at once.
pub(super) const LEASES: usize = 4096;
/// What the table takes of a segment, in bytes.
pub(super) const TABLE_LEN: usize = LEASES * size_of::<AtomicU64>();

/// A segment's words about leases. Fresh memory, all zero, says that none is back.
#[derive(Debug)]
pub(super) struct LeaseTable {
    words: NonNull<AtomicU64>,
    /// What keeps them mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: what it points to is made for several processes, hence for several threads: atomics. The owner may go to any thread.
unsafe impl Send for LeaseTable {}
// SAFETY: as above: all that a shared reference gives is atomics.
unsafe impl Sync for LeaseTable {}

impl LeaseTable {
    /// The words from `words` on.
    ///
    /// # Safety
    ///
    /// For as long as `owner` lives, `TABLE_LEN` bytes from there are aligned and readable (M1), and written as atomics alone; where
    /// [`give_back`](Self::give_back) is called, they are writable, and this process made them (M9).
    pub(super) unsafe fn new(owner: Arc<dyn Any + Send + Sync>, words: NonNull<AtomicU64>) -> Self {
        Self { words, _owner: owner }
    }

    fn word(&self, slot: usize) -> &AtomicU64 {
        assert!(slot < LEASES, "lease {slot} of {LEASES}");
        let word = self.words.as_ptr().wrapping_add(slot);
        // SAFETY: within the table, which is mapped while its owner is held (M1); an atomic (M9).
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// Says that the loan of that turn is back. What was read of it was read before.
    pub(super) fn give_back(&self, slot: usize, generation: u64) {
        self.word(slot).store(generation, Ordering::Release);
    }

    /// The turn whose loan came back last.
    pub(super) fn returned(&self, slot: usize) -> u64 {
        let generation = self.word(slot).load(Ordering::Relaxed);
        // As in the ring: an acquiring load is not promised to work on memory mapped for reading only.
        std::sync::atomic::fence(Ordering::Acquire);
        generation
    }
}
