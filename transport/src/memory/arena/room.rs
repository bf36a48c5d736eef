//! The room of all segments of an arena: pages for what is large, lines of them for what is small.
//!
//! Small blocks come from stretches of pages set apart for them, which go back when the last of them does: a small block
//! that lives long pins few pages, and what is large starts at a page without a search for one.

use super::space::{Space, Taken};

/// What is smaller takes lines, since whole pages would waste much of it.
const SMALL_BELOW_BYTES: usize = 16 << 10;
const LINE: usize = 64;
/// What is set apart for small blocks at a time.
pub(super) const STRETCH_BYTES: usize = 256 << 10;

/// Offsets and lengths in segments that are told by their number.
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
    /// Which segment, in the order in which they came.
    pub(super) segment: usize,
    /// Bytes from its start.
    pub(super) offset: usize,
    /// At least what was asked for.
    pub(super) len: usize,
    /// Among the pages or, where small, the lines.
    slot: u32,
    small: bool,
}

impl Room {
    pub(super) fn new(page: usize) -> Self {
        Self { pages: Space::new(page), lines: Space::new(LINE), segments: 0, bytes: 0, in_use_bytes: 0 }
    }

    /// One more segment of `len` bytes.
    pub(super) fn add(&mut self, len: usize) {
        self.pages.add(self.segments, len);
        self.segments += 1;
        self.bytes += len;
    }

    /// At least `len` bytes, which are not zero.
    pub(super) fn take(&mut self, len: usize) -> Option<Spot> {
        let spot = if len < SMALL_BELOW_BYTES { self.take_small(len) } else { self.take_large(len) }?;
        self.in_use_bytes += spot.len;
        Some(spot)
    }

    /// Takes back what [`take`](Self::take) gave.
    pub(super) fn give(&mut self, spot: Spot) {
        self.in_use_bytes -= spot.len;
        if !spot.small {
            self.pages.give(spot.slot);
        } else if let Some(stretch) = self.lines.give(spot.slot) {
            self.lines.remove(stretch.slot);
            self.pages.give(stretch.tag);
        }
    }

    /// In all segments.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// In blocks in use, with what they were rounded up by.
    pub(super) fn in_use_bytes(&self) -> usize {
        self.in_use_bytes
    }

    /// The most that can be had in one piece.
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
