//! Allocates blocks from all segments of an arena: whole pages for large blocks, cache lines for small ones.
//!
//! Small blocks come from runs of pages reserved for them. A run is returned when its last block is. A
//! long-lived small block therefore pins few pages, and a large block starts at a page without a search.

use super::tlsf::{Extent, Tlsf};

/// Blocks below this length take cache lines, because whole pages would waste much of their space.
const SMALL_BELOW_BYTES: usize = 16 << 10;
const LINE: usize = 64;
/// Length of a run of pages reserved for small blocks.
pub(super) const RUN_BYTES: usize = 256 << 10;

/// Allocates offsets and lengths in segments, which it identifies by their index.
#[derive(Debug)]
pub(super) struct BlockAllocator {
    pages: Tlsf,
    lines: Tlsf,
    segments: u32,
    bytes: usize,
    in_use_bytes: usize,
}

/// A block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockLocation {
    /// Index of the segment, in the order of [`add`](BlockAllocator::add).
    pub(super) segment: usize,
    /// Offset in bytes from the segment's start.
    pub(super) offset: usize,
    /// Length in bytes, at least what was requested.
    pub(super) len: usize,
    /// Slot among the pages or, for small blocks, among the lines.
    slot: u32,
    small: bool,
}

impl BlockAllocator {
    pub(super) fn new(page: usize) -> Self {
        Self { pages: Tlsf::new(page), lines: Tlsf::new(LINE), segments: 0, bytes: 0, in_use_bytes: 0 }
    }

    /// Adds a segment of `len` bytes.
    pub(super) fn add(&mut self, len: usize) {
        self.pages.add(self.segments, len);
        self.segments += 1;
        self.bytes += len;
    }

    /// Takes at least `len` bytes. `len` is not zero.
    pub(super) fn take(&mut self, len: usize) -> Option<BlockLocation> {
        let location = if len < SMALL_BELOW_BYTES { self.take_small(len) } else { self.take_large(len) }?;
        self.in_use_bytes += location.len;
        Some(location)
    }

    /// Returns a block from [`take`](Self::take).
    pub(super) fn give(&mut self, location: BlockLocation) {
        self.in_use_bytes -= location.len;
        if !location.small {
            self.pages.give(location.slot);
        } else if let Some(run) = self.lines.give(location.slot) {
            self.lines.remove(run.slot);
            self.pages.give(run.tag);
        }
    }

    /// Returns the bytes of all segments.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of all blocks in use, rounded up as they were.
    pub(super) fn in_use_bytes(&self) -> usize {
        self.in_use_bytes
    }

    /// Returns the largest length that can be taken in one piece.
    pub(super) fn largest_free_bytes(&self) -> usize {
        self.pages.largest_free().max(self.lines.largest_free().min(SMALL_BELOW_BYTES - 1))
    }

    fn take_large(&mut self, len: usize) -> Option<BlockLocation> {
        let Extent { slot, tag, offset, len } = self.pages.take(len)?;
        Some(BlockLocation { segment: tag as usize, offset, len, slot, small: false })
    }

    fn take_small(&mut self, len: usize) -> Option<BlockLocation> {
        let found = self.lines.take(len).or_else(|| {
            let run = self.pages.take(RUN_BYTES).or_else(|| self.pages.take(len))?;
            self.lines.add(run.slot, run.len);
            self.lines.take(len)
        });
        let Extent { slot, tag, offset, len } = found?;
        let run = self.pages.taken(tag);
        Some(BlockLocation { segment: run.tag as usize, offset: run.offset + offset, len, slot, small: true })
    }
}
