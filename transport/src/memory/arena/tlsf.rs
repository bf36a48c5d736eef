//! Allocates offsets and lengths within regions. It touches no memory.
//!
//! Two-level segregated fit (Masmano et al., 2004). Free blocks are in lists by size, 32 sizes to a doubling,
//! and two levels of bitmaps find the first list that fits. A returned block merges with its free neighbours
//! at once. Every operation except [`largest_free`](Tlsf::largest_free) takes constant time.

/// No block.
const NONE: u32 = u32::MAX;

const COLUMNS_BITS: u32 = 5;
const COLUMNS: usize = 1 << COLUMNS_BITS;
const ROWS: usize = (usize::BITS - COLUMNS_BITS + 1) as usize;

/// How many blocks of a list are examined where only some of them fit, which happens only where nothing
/// larger is free.
const SEARCH_MAX: usize = 64;

/// Free and taken blocks of the added regions, in multiples of a unit.
#[derive(Debug)]
pub(super) struct Tlsf {
    unit: usize,
    blocks: Vec<Node>,
    /// Unused entries of `blocks`.
    vacant: Vec<u32>,
    /// The first free block of each size class.
    lists: Vec<u32>,
    /// Bitmap of the rows that have a list that is not empty, and for each row the bitmap of its lists that
    /// are not.
    rows: u64,
    columns: [u32; ROWS],
}

/// A range of one region, in units. Links it to its neighbours in the region, and in its free list while it
/// is free.
#[derive(Debug)]
struct Node {
    tag: u32,
    offset: usize,
    len: usize,
    before: u32,
    after: u32,
    previous: u32,
    next: u32,
    free: bool,
}

/// A taken block, or a whole free region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The slot to give back.
    pub(super) slot: u32,
    /// The tag of the region.
    pub(super) tag: u32,
    /// Offset in bytes from the region's start.
    pub(super) offset: usize,
    /// Length in bytes, at least what was requested.
    pub(super) len: usize,
}

impl Tlsf {
    /// Creates an allocator without regions. Blocks start at multiples of `unit` bytes.
    pub(super) fn new(unit: usize) -> Self {
        Self {
            unit,
            blocks: Vec::new(),
            vacant: Vec::new(),
            lists: vec![NONE; ROWS * COLUMNS],
            rows: 0,
            columns: [0; ROWS],
        }
    }

    /// Adds a region of `len` bytes, all free, identified by `tag`. A partial unit at its end is not used.
    pub(super) fn add(&mut self, tag: u32, len: usize) {
        let len = len / self.unit;
        let block =
            Node { tag, offset: 0, len, before: NONE, after: NONE, previous: NONE, next: NONE, free: false };
        let slot = self.insert(block);
        self.link(slot);
    }

    /// Takes at least `len` bytes in one piece. `len` is not zero. The length is rounded up by at most a
    /// 32nd, so that every block in the list of its size fits: the block returned last is taken first.
    pub(super) fn take(&mut self, len: usize) -> Option<Extent> {
        let asked = len.div_ceil(self.unit);
        let rounded = rounded(asked)?;
        let slot = self.first_of(class(rounded)).or_else(|| self.search(class(asked), asked))?;
        self.unlink(slot);
        self.split(slot, rounded);
        Some(self.taken(slot))
    }

    /// Returns a block. Returns the whole region if all of it is free now.
    pub(super) fn give(&mut self, slot: u32) -> Option<Extent> {
        debug_assert!(!self.block(slot).free, "given back twice");
        let (mut slot, after) = (slot, self.block(slot).after);
        if self.is_free(after) {
            self.unlink(after);
            self.join(slot, after);
        }
        let before = self.block(slot).before;
        if self.is_free(before) {
            self.unlink(before);
            self.join(before, slot);
            slot = before;
        }
        self.link(slot);
        let block = self.block(slot);
        (block.before == NONE && block.after == NONE).then(|| self.taken(slot))
    }

    /// Removes a region that is entirely free.
    pub(super) fn remove(&mut self, slot: u32) {
        let block = self.block(slot);
        assert!(block.free && block.before == NONE && block.after == NONE, "a region in use is not removed");
        self.unlink(slot);
        self.vacant.push(slot);
    }

    /// Returns the extent of the block in `slot`.
    pub(super) fn taken(&self, slot: u32) -> Extent {
        let block = self.block(slot);
        Extent { slot, tag: block.tag, offset: block.offset * self.unit, len: block.len * self.unit }
    }

    /// Returns the largest free piece, in bytes. The time grows with the number of free blocks of about that
    /// size.
    pub(super) fn largest_free(&self) -> usize {
        let Some(row) = self.rows.checked_ilog2() else { return 0 };
        let row = row as usize;
        let list = row * COLUMNS + self.columns[row].ilog2() as usize;
        self.list(list).map(|slot| self.block(slot).len).max().unwrap_or(0) * self.unit
    }

    /// Splits off the units beyond `len` as a free block.
    fn split(&mut self, slot: u32, len: usize) {
        let Node { tag, offset, len: len_before, after, .. } = *self.block(slot);
        if len_before <= len {
            return;
        }
        let rest = self.insert(Node {
            tag,
            offset: offset + len,
            len: len_before - len,
            before: slot,
            after,
            previous: NONE,
            next: NONE,
            free: false,
        });
        self.block_mut(slot).len = len;
        self.block_mut(slot).after = rest;
        if after != NONE {
            self.block_mut(after).before = rest;
        }
        self.link(rest);
    }

    /// Merges `right`, which is in no list, into `left`.
    fn join(&mut self, left: u32, right: u32) {
        let (len, after) = (self.block(right).len, self.block(right).after);
        self.block_mut(left).len += len;
        self.block_mut(left).after = after;
        if after != NONE {
            self.block_mut(after).before = left;
        }
        self.vacant.push(right);
    }

    /// Returns the first block of `list` or, if that is empty, of the next list that is not.
    fn first_of(&self, list: usize) -> Option<u32> {
        let (row, column) = (list / COLUMNS, list % COLUMNS);
        let here = self.columns[row] & (!0 << column);
        if here != 0 {
            return Some(self.lists[row * COLUMNS + here.trailing_zeros() as usize]);
        }
        let above = self.rows & (!0 << row) & !(1 << row);
        if above == 0 {
            return None;
        }
        let row = above.trailing_zeros() as usize;
        Some(self.lists[row * COLUMNS + self.columns[row].trailing_zeros() as usize])
    }

    /// Returns a block of `list` with at least `len` units, among its first [`SEARCH_MAX`].
    fn search(&self, list: usize, len: usize) -> Option<u32> {
        self.list(list).take(SEARCH_MAX).find(|slot| self.block(*slot).len >= len)
    }

    fn list(&self, list: usize) -> impl Iterator<Item = u32> {
        let some = |slot: u32| (slot != NONE).then_some(slot);
        std::iter::successors(some(self.lists[list]), move |slot| some(self.block(*slot).next))
    }

    /// Prepends a block to the list of its size.
    fn link(&mut self, slot: u32) {
        let list = class(self.block(slot).len);
        let next = std::mem::replace(&mut self.lists[list], slot);
        if next != NONE {
            self.block_mut(next).previous = slot;
        }
        let block = self.block_mut(slot);
        (block.previous, block.next, block.free) = (NONE, next, true);
        self.rows |= 1 << (list / COLUMNS);
        self.columns[list / COLUMNS] |= 1 << (list % COLUMNS);
    }

    fn unlink(&mut self, slot: u32) {
        let Node { len, previous, next, .. } = *self.block(slot);
        self.block_mut(slot).free = false;
        if next != NONE {
            self.block_mut(next).previous = previous;
        }
        if previous != NONE {
            self.block_mut(previous).next = next;
            return;
        }
        let list = class(len);
        self.lists[list] = next;
        if next == NONE {
            let columns = &mut self.columns[list / COLUMNS];
            *columns &= !(1 << (list % COLUMNS));
            if *columns == 0 {
                self.rows &= !(1 << (list / COLUMNS));
            }
        }
    }

    fn insert(&mut self, block: Node) -> u32 {
        if let Some(slot) = self.vacant.pop() {
            *self.block_mut(slot) = block;
            return slot;
        }
        self.blocks.push(block);
        (self.blocks.len() - 1) as u32
    }

    fn is_free(&self, slot: u32) -> bool {
        slot != NONE && self.block(slot).free
    }

    fn block(&self, slot: u32) -> &Node {
        &self.blocks[slot as usize]
    }

    fn block_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.blocks[slot as usize]
    }
}

/// Returns the list for a free block of `len` units: exact below 32 units, then 32 lists to a doubling.
fn class(len: usize) -> usize {
    if len < COLUMNS {
        return len;
    }
    let top = len.ilog2();
    let row = (top - COLUMNS_BITS + 1) as usize;
    row * COLUMNS + (len >> (top - COLUMNS_BITS)) - COLUMNS
}

/// Rounds `len` up to the smallest size of a class.
fn rounded(len: usize) -> Option<usize> {
    if len < COLUMNS {
        return Some(len.max(1));
    }
    len.checked_next_multiple_of(1 << (len.ilog2() - COLUMNS_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_dense_ordered_and_tight() {
        let lens = (1..70_000).chain((17..63).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 1]));
        let mut last = 0;
        for len in lens {
            let class_here = class(len);
            assert!(class_here >= last, "{len}");
            last = class_here;
            assert!(class_here < ROWS * COLUMNS);
            let rounded = rounded(len).unwrap();
            assert!(rounded >= len && rounded - len <= len / 32, "{len} {rounded}");
            assert!(rounded == 1 || class(rounded - 1) < class(rounded), "all of a class fit");
        }
        assert_eq!(rounded(usize::MAX), None);
    }

    #[test]
    fn a_free_region_is_one_block() {
        for pages in [1, 31, 32, 33, 1000, 25_856] {
            let mut space = Tlsf::new(4096);
            space.add(7, pages * 4096 + 4095);
            assert_eq!(space.largest_free(), pages * 4096);
            assert_eq!(space.take(pages * 4096 + 1), None);
            let whole = space.take(pages * 4096).unwrap();
            assert_eq!((whole.tag, whole.offset, whole.len), (7, 0, pages * 4096));
            assert_eq!((space.take(1), space.largest_free()), (None, 0));
            let free = space.give(whole.slot).unwrap();
            assert_eq!(free, Extent { slot: free.slot, ..whole });
            space.remove(free.slot);
            assert_eq!((space.take(1), space.largest_free()), (None, 0));
        }
    }

    #[test]
    fn the_block_returned_last_is_taken_first() {
        let mut space = Tlsf::new(64);
        space.add(0, 1 << 20);
        let taken: Vec<_> = (0..4).map(|_| space.take(3000).unwrap()).collect();
        space.give(taken[0].slot);
        space.give(taken[2].slot);
        assert_eq!(space.take(3000).unwrap().offset, taken[2].offset);
        assert_eq!(space.take(3000).unwrap().offset, taken[0].offset);
    }

    #[test]
    fn blocks_of_different_regions_do_not_merge() {
        let mut space = Tlsf::new(64);
        space.add(1, 128);
        space.add(2, 128);
        assert_eq!(space.take(192), None);
        let halves = [(); 4].map(|()| space.take(64).unwrap());
        let whole = halves.iter().filter_map(|half| space.give(half.slot)).map(|region| region.tag);
        let mut whole: Vec<_> = whole.collect();
        whole.sort_unstable();
        assert_eq!(whole, [1, 2]);
    }
}
