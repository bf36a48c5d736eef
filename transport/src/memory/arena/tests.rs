//! Tests of arenas, their allocator and their leases; `churn` tests fragmentation.

mod churn;
mod lending;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blocks::{BlockAllocator, BlockLocation};
use super::{Arena, FIRST_SEGMENT_BYTES};
use crate::error::ErrorKind;
use crate::memory::{Place, Pool};

const PAGE: usize = 4096;

/// The splitmix64 generator.
struct Random(u64);

impl Random {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// Returns a length in `from..to`; each doubling is equally likely.
    fn length(&mut self, from: usize, to: usize) -> usize {
        let doublings = (to / from).ilog2() as usize;
        let base = from << self.below(doublings);
        base + self.below(base)
    }
}

#[test]
fn blocks_never_overlap_and_merge_when_returned() {
    const SEGMENTS: [usize; 3] = [1 << 20, 3 << 20, (8 << 20) + PAGE];
    for seed in 0..8 {
        let mut random = Random(seed);
        let mut blocks = BlockAllocator::new(PAGE);
        SEGMENTS.iter().for_each(|len| blocks.add(*len));
        // The blocks in use: the start of each, and the block.
        let mut model: BTreeMap<(usize, usize), BlockLocation> = BTreeMap::new();
        let mut refused = 0;
        for _ in 0..5000 {
            if random.below(5) < 3 {
                let len = random.length(64, 2 << 20);
                let Some(location) = blocks.take(len) else {
                    assert!(
                        blocks.largest_free_bytes() < len + len / 32,
                        "seed {seed}: {len} bytes would have fitted"
                    );
                    refused += 1;
                    continue;
                };
                let (start, end) = (location.offset, location.offset + location.len);
                assert!(location.len >= len && end <= SEGMENTS[location.segment], "seed {seed}");
                assert!(start.is_multiple_of(if len < 16 << 10 { 64 } else { PAGE }));
                let before = model.range(..(location.segment, start)).next_back();
                let clear = before.is_none_or(|((segment, at), other)| {
                    *segment != location.segment || at + other.len <= start
                });
                let after = model.range((location.segment, start)..).next();
                let clear = clear
                    && after.is_none_or(|((segment, at), _)| *segment != location.segment || *at >= end);
                assert!(clear, "seed {seed}: {location:?} overlaps");
                model.insert((location.segment, start), location);
            } else if let Some(at) = model.len().checked_sub(1) {
                let key = *model.keys().nth(random.below(at + 1)).unwrap();
                blocks.give(model.remove(&key).unwrap());
            }
            assert_eq!(blocks.in_use_bytes(), model.values().map(|location| location.len).sum());
        }
        assert!(refused > 0, "seed {seed} never filled the segments");
        std::mem::take(&mut model).into_values().for_each(|location| blocks.give(location));
        assert_eq!((blocks.in_use_bytes(), blocks.largest_free_bytes()), (0, SEGMENTS[2]));
        let mut wholes: Vec<_> = SEGMENTS
            .iter()
            .rev()
            .map(|len| blocks.take(*len).map(|location| (location.offset, location.len)))
            .collect();
        wholes.reverse();
        assert_eq!(wholes, SEGMENTS.map(|len| Some((0, len))), "seed {seed}");
    }
}

#[test]
fn taken_memory_is_aligned_writable_and_in_the_arena() {
    let arena = Arena::new(16 << 20).unwrap();
    for len in [1, 63, 64, 65, 4096, (16 << 10) - 1, 16 << 10, 100_000, (2 << 20) + 1, 5 << 20] {
        let mut buffer = arena.take(len).unwrap();
        assert_eq!((buffer.place(), buffer.len(), buffer.capacity()), (Place::Arena, 0, len));
        let align = if len < 16 << 10 { 64 } else { PAGE };
        assert_eq!(buffer.as_ptr().align_offset(align), 0);
        buffer.extend_from_slice(&vec![7; len]).unwrap();
        let frozen = buffer.freeze();
        assert!(frozen.as_slice().unwrap().iter().all(|byte| *byte == 7));
        assert_eq!(frozen.slice(..1).try_into_mut().unwrap_err().to_vec().unwrap(), [7]);
        assert_eq!(frozen.try_into_mut().unwrap().capacity(), len);
    }
    let stats = arena.stats();
    assert_eq!((stats.segments, stats.bytes, stats.bytes_max), (1, 16 << 20, 16 << 20));
    assert_eq!((stats.in_use_bytes, stats.largest_free_bytes), (0, 16 << 20));
    let empty = arena.take(0).unwrap();
    assert_eq!((empty.place(), empty.allocation().is_none()), (Place::Arena, true));
}

#[test]
fn memory_that_returns_is_taken_again() {
    let arena = Arena::new(8 << 20).unwrap();
    for len in [64, 10_000, 1 << 20] {
        let (first, second) = (arena.take(len).unwrap(), arena.take(len).unwrap());
        let warm = second.as_ptr();
        drop(second.freeze());
        assert_eq!(arena.take(len).unwrap().as_ptr(), warm);
        drop(first);
    }
    for _ in 0..10_000 {
        drop(arena.take(3000).unwrap());
    }
    assert_eq!((arena.stats().segments, arena.stats().in_use_bytes), (1, 0));
}

#[test]
fn a_full_arena_reports_its_use() {
    let arena = Arena::new(4 << 20).unwrap();
    let held: Vec<_> = (0..4).map(|_| arena.take(1 << 20).unwrap()).collect();
    for len in [1, 100_000, 4 << 20, usize::MAX] {
        let error = arena.take(len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        for said in ["4194304 are in use", "peers hold 0", "the largest free piece has 0"] {
            assert!(error.detail().contains(said), "{error}");
        }
    }
    drop(held);
    assert_eq!(arena.take(4 << 20).unwrap().capacity(), 4 << 20);
    let error = arena.take((4 << 20) + 1).unwrap_err();
    for said in [": 0 are in use", "the largest free piece has 4194304"] {
        assert!(error.detail().contains(said), "{error}");
    }
}

#[test]
fn an_arena_grows_by_few_segments_and_to_its_bound() {
    const MAX: usize = FIRST_SEGMENT_BYTES / 2 * 5;
    let arena = Arena::new(MAX).unwrap();
    assert_eq!((arena.stats().segments, arena.stats().bytes), (0, 0));
    let mut held = Vec::new();
    while let Ok(buffer) = arena.take(FIRST_SEGMENT_BYTES / 4) {
        held.push(buffer);
        let stats = arena.stats();
        assert!(stats.segments <= 3 && stats.bytes <= MAX, "{stats:?}");
    }
    assert_eq!((held.len(), arena.stats().bytes), (10, MAX));
    for (len, kind) in [(0, ErrorKind::Invalid), (PAGE - 1, ErrorKind::Invalid)] {
        assert_eq!(Arena::new(len).unwrap_err().kind(), kind);
    }
}

#[test]
fn huge_pages_are_used_or_the_reason_is_reported() {
    let arena = Arena::new(8 << 20).unwrap();
    assert_eq!((arena.stats().huge_bytes, arena.stats().not_huge), (0, None), "there is no segment yet");
    drop(arena.take(1).unwrap());
    let stats = arena.stats();
    match &stats.not_huge {
        None => assert_eq!(stats.huge_bytes, stats.bytes),
        Some(why) => assert!(stats.huge_bytes < stats.bytes && why.contains("huge pages"), "{why}"),
    }
}

#[test]
fn an_arena_beyond_the_machines_memory_is_refused() {
    let arena = Arena::new(1 << 60).unwrap();
    let error = arena.take(1 << 50).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().starts_with("grow the arena: "), "{error}");
    assert_eq!(arena.stats().segments, 0);
}

#[test]
fn buffers_outlive_their_arena() {
    let arena = Arena::new(4 << 20).unwrap();
    let mut buffer = arena.take(100).unwrap();
    drop(arena);
    buffer.extend_from_slice(b"towline").unwrap();
    assert_eq!(buffer.freeze().as_slice(), Some(&b"towline"[..]));
}

#[test]
fn threads_share_an_arena_without_sharing_memory() {
    let arena = Arena::new(8 << 20).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let arena = arena.clone();
            scope.spawn(move || {
                let (mut held, mut random) = (Vec::new(), Random(thread.into()));
                for round in 0..300 {
                    let len = random.length(64, 128 << 10);
                    let canary = thread.wrapping_mul(61).wrapping_add(round as u8);
                    let mut buffer = arena.take(len).unwrap();
                    buffer.extend_from_slice(&vec![canary; len]).unwrap();
                    held.push((canary, buffer.freeze()));
                    if held.len() > 5 {
                        let (canary, buffer) = held.swap_remove(random.below(6));
                        assert!(buffer.as_slice().unwrap().iter().all(|byte| *byte == canary));
                    }
                }
            });
        }
    });
    assert_eq!((arena.stats().in_use_bytes, arena.stats().largest_free_bytes), (0, 8 << 20));
}

#[test]
fn a_pool_of_an_arena_frees_idle_blocks_for_other_sizes() {
    let arena = Arena::new(4 << 20).unwrap();
    let pool = Pool::with_source(Arc::new(arena.clone()), 4 << 20);
    assert_eq!(pool.place(), Place::Arena);
    let held: Vec<_> = (0..4).map(|_| pool.take(1 << 20).unwrap()).collect();
    let warm = held[3].as_ptr();
    drop(held);
    assert_eq!((pool.stats().idle_bytes, arena.stats().in_use_bytes), (4 << 20, 4 << 20));
    assert_eq!(pool.take(1 << 20).unwrap().as_ptr(), warm);
    assert_eq!(pool.take(3 << 20).unwrap().capacity(), 3 << 20, "idle blocks of 1 MiB are given back");
    assert_eq!((pool.stats().in_use_bytes, arena.stats().in_use_bytes), (0, 3 << 20));
    let error = pool.take(5 << 20).unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.detail().contains("an arena of 4194304"), "{error}");
}
