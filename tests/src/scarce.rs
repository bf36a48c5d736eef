//! Host memory that runs out: a pool of it has blocks up to a length, and none beyond.

#![expect(unsafe_code, reason = "an allocation's promises are what every handle of it rests on")]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use towline::memory::{Access, Allocation, MemorySource};
use towline::{Error, ErrorKind, Place, Pool, Result};

/// The source of a [`Pool`] of scarce memory.
#[derive(Debug)]
pub struct Scarce {
    len_max: AtomicUsize,
}

impl Scarce {
    /// Creates a pool that refuses blocks of more than `len_max` bytes.
    pub fn pool(len_max: usize) -> Pool {
        Pool::with_source(Self::source(len_max), 1 << 20)
    }

    /// Creates a source that refuses blocks of more than `len_max` bytes.
    pub fn source(len_max: usize) -> Arc<Self> {
        Arc::new(Self { len_max: AtomicUsize::new(len_max) })
    }

    /// Changes the longest block.
    pub fn set_len_max(&self, len_max: usize) {
        self.len_max.store(len_max, Ordering::Relaxed);
    }
}

impl MemorySource for Scarce {
    fn place(&self) -> Place {
        Place::Host
    }

    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>> {
        if len > self.len_max.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::TooLarge, format!("{len} bytes of scarce memory")));
        }
        let memory = NonNull::from(Box::leak(Box::<[u8]>::new_uninit_slice(len)));
        Ok(Arc::new(Block(memory)))
    }
}

/// The raw parts of a box, since a box may assume that no other pointer writes its memory.
#[derive(Debug)]
struct Block(NonNull<[MaybeUninit<u8>]>);

// SAFETY: M2: plain memory, reached only through the one value that owns it.
unsafe impl Send for Block {}
// SAFETY: M2: a shared reference only gives the address away.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: M1: it was a box, and no handle is left.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: M1: a leaked box stays at its address until drop. M2: no other code has the address.
unsafe impl Allocation for Block {
    fn base(&self) -> NonNull<u8> {
        self.0.cast()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        true
    }
}
