//! Allocates blocks from all segments of an arena: whole pages for large blocks, cache lines for small ones.
//!
//! Small blocks come from runs of pages reserved for them. A run is returned when its last block is. A
//! long-lived small block therefore pins few pages, and a large block starts at a page without a search.

use super::space::{Space, Taken};

/// Blocks below this length take cache lines, because whole pages would waste much of their space.
const SMALL_BELOW_BYTES: usize = 16 << 10;
const LINE: usize = 64;
/// Length of a run of pages reserved for small blocks.
pub(super) const STRETCH_BYTES: usize = 256 << 10;

/// Allocates offsets and lengths in segments, which it identifies by their index.
#[derive(Debug)]
pub(super) struct Room {
    pages: Space,
    lines: Space,
    segments: u32,
    bytes: usize,
    in_use_bytes: usize,
}

/// A block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
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

impl Room {
    pub(super) fn new(page: usize) -> Self {
        Self { pages: Space::new(page), lines: Space::new(LINE), segments: 0, bytes: 0, in_use_bytes: 0 }
    }

    /// Adds a segment of `len` bytes.
    pub(super) fn add(&mut self, len: usize) {
        self.pages.add(self.segments, len);
        self.segments += 1;
        self.bytes += len;
    }

    /// Takes at least `len` bytes. `len` is not zero.
    pub(super) fn take(&mut self, len: usize) -> Option<Spot> {
        let spot = if len < SMALL_BELOW_BYTES { self.take_small(len) } else { self.take_large(len) }?;
        self.in_use_bytes += spot.len;
        Some(spot)
    }

    /// Returns a block from [`take`](Self::take).
    pub(super) fn give(&mut self, spot: Spot) {
        self.in_use_bytes -= spot.len;
        if !spot.small {
            self.pages.give(spot.slot);
        } else if let Some(stretch) = self.lines.give(spot.slot) {
            self.lines.remove(stretch.slot);
            self.pages.give(stretch.tag);
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

    fn take_large(&mut self, len: usize) -> Option<Spot> {
        let Taken { slot, tag, offset, len } = self.pages.take(len)?;
        Some(Spot { segment: tag as usize, offset, len, slot, small: false })
    }

    fn take_small(&mut self, len: usize) -> Option<Spot> {
        let found = self.lines.take(len).or_else(|| {
            let stretch = self.pages.take(STRETCH_BYTES).or_else(|| self.pages.take(len))?;
            self.lines.add(stretch.slot, stretch.len);
            self.lines.take(len)
        });
        let Taken { slot, tag, offset, len } = found?;
        let stretch = self.pages.taken(tag);
        Some(Spot { segment: stretch.tag as usize, offset: stretch.offset + offset, len, slot, small: true })
    }
}
