//! The rest of a block that small destinations share, each aligned to a cache line.

use std::mem;

use super::{BufferMut, Pool};
use crate::error::Result;

/// Destinations below this length share a block: messages sent eagerly are small in memory too.
pub(super) const SHARE_BELOW_BYTES: usize = 16 << 10;

/// Cuts small destinations from one block after another. Dropping it frees none of them.
#[derive(Debug, Default)]
pub(crate) struct SharedBlock {
    rest: BufferMut,
}

impl SharedBlock {
    /// Returns a buffer with capacity for `len` bytes. If it needs a new block, it takes one of `block_len`
    /// bytes, for later ones too.
    pub(crate) fn destination(&mut self, pool: &Pool, len: usize, block_len: usize) -> Result<BufferMut> {
        if len == 0 || len >= SHARE_BELOW_BYTES {
            return pool.take(len);
        }
        let len_lines = lines(len);
        if self.rest.capacity() < len_lines {
            self.rest = pool.take(lines(block_len).max(len_lines))?;
        }
        let rest = if self.rest.capacity() > len_lines {
            self.rest.split_off(len_lines)
        } else {
            BufferMut::default()
        };
        let mut piece = mem::replace(&mut self.rest, rest);
        piece.limit(len);
        Ok(piece)
    }
}

/// Rounds `len` up to whole cache lines, so that neighbours never write the same one.
pub(crate) fn lines(len: usize) -> usize {
    len.next_multiple_of(64)
}
