//! A block of an arena that code other than Rust reads and writes.

#![expect(unsafe_code, reason = "a block of an arena becomes a buffer")]

use std::ptr::NonNull;
use std::sync::Arc;

use super::{Arena, ArenaMemory};
use crate::error::Result;
use crate::memory::{Access, Allocation, Buffer};

/// A block of an arena for code that is not Rust, such as an interpreter's arrays: an address and a length.
///
/// That code may read and write the block at any time, also while it is sent or a peer has it. Its buffers
/// are therefore of [`Access::Foreign`]: a peer gets any mixture of old and new bytes if the block is written
/// then. Between processes that trust each other, `shm` lends such a buffer in constant time like others of
/// the arena, and the peer's buffer is of `Access::Foreign`, too.
///
/// Dropping the block returns its memory to the arena once its buffers have been dropped and its leases are
/// back. From the drop on, the code that had the address must not use it.
///
/// ```
/// use towline::memory::{Access, Arena, Place};
///
/// let arena = Arena::new(1 << 20)?;
/// let block = arena.take_foreign(4096)?;
/// // SAFETY: nobody else has the address, and the block is as long.
/// unsafe { block.base().write_bytes(7, block.len()) };
///
/// let frame = block.buffer().slice(..100);
/// assert_eq!((frame.place(), frame.access()), (Place::Arena, Access::Foreign));
/// assert_eq!((frame.as_slice(), frame.to_vec()?), (None, vec![7; 100]));
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug)]
pub struct ForeignBlock(Arc<ArenaMemory>);

impl Arena {
    /// Returns a block of `len` bytes, at least 1, for code that is not Rust. Its content is arbitrary: zeroes,
    /// or what an earlier buffer left. It is aligned as [`take`](Self::take) says.
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take).
    ///
    /// # Panics
    ///
    /// If `len` is 0.
    pub fn take_foreign(&self, len: usize) -> Result<ForeignBlock> {
        assert!(len > 0, "a block of an arena has at least one byte");
        let mut memory = self.0.allocate(len)?;
        let unique =
            Arc::get_mut(&mut memory).unwrap_or_else(|| unreachable!("what was just made has one handle"));
        unique.access = Access::Foreign;
        Ok(ForeignBlock(memory))
    }
}

impl ForeignBlock {
    /// Returns the address of the first byte. It stays the same, and readable and writable, while the block or
    /// one of its buffers lives.
    pub fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    /// Returns the number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns a buffer of the whole block, to send it or [slices](Buffer::slice) of it.
    pub fn buffer(&self) -> Buffer {
        // SAFETY: the kernel cleared the segment's pages before it mapped them (M4). Foreign memory is not writable
        // through a buffer, so no `BufferMut` of it exists (M2).
        unsafe { Buffer::from_allocation(self.0.clone()) }
    }
}
