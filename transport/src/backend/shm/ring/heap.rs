//! Ring memory on the heap, for tests.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use super::sync::UnsafeCell;
use super::{Ring, RingHeader, RingMemory};

/// A segment that is not shared with another process.
#[derive(Debug)]
pub(super) struct Heap {
    pub(super) header: RingHeader,
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: words are atomics, and only the two rings access the bytes (M9).
unsafe impl Send for Heap {}
// SAFETY: the same (M9).
unsafe impl Sync for Heap {}

impl Heap {
    fn new(len: usize) -> Arc<Self> {
        let bytes = (0..len).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Self { header: RingHeader::default(), bytes })
    }

    fn half(self: &Arc<Self>) -> RingMemory {
        let bytes = NonNull::from(&*self.bytes).cast();
        // SAFETY: the half holds the heap, which never moves (M1); `pair` gives each to one ring as its own
        // (M9).
        unsafe { RingMemory::new(self.clone(), NonNull::from(&self.header), bytes, self.bytes.len()) }
    }
}

/// Returns two ends, and the segment of the second, whose words a test may change as a hostile peer would.
pub(super) fn pair(len: usize) -> (Ring, Ring, Arc<Heap>) {
    let (one, other) = (Heap::new(len), Heap::new(len));
    (Ring::new(one.half(), other.half()), Ring::new(other.half(), one.half()), other)
}

impl Ring {
    /// Writes `bytes`, which must not exceed what is writable.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.copy_in(bytes.into());
    }

    /// Reads all bytes known to be readable, at most `count`.
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        let mut into = vec![MaybeUninit::uninit(); count.min(self.unread())];
        self.copy_out(&mut into);
        // SAFETY: the call above has filled all of it (M4).
        into.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }
}
