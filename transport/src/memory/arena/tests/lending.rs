//! Tests of lent and borrowed memory, and of forked children.

#![expect(unsafe_code, reason = "the tests borrow, and fork")]

use std::future::Future;
use std::io;
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::memory::arena::borrowed::{self, OpaqueHandle};
use crate::memory::arena::{FrameLease, lendable};
use crate::memory::segment::{PeerSegment, Segment};
use crate::memory::{Access, Allocation, Arena, Buffer, BufferMut, Place, Pool};
use crate::platform::process::Process;

/// Counts dropped leases.
struct CountedLease(Arc<AtomicUsize>);

impl Drop for CountedLease {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn mapped(segment: &Segment) -> Arc<PeerSegment> {
    let descriptor = segment.descriptor().try_clone_to_owned().unwrap();
    Arc::new(PeerSegment::map(descriptor, segment.len()).unwrap())
}

fn filled(arena: &Arena, content: &[u8]) -> Buffer {
    let mut buffer = arena.take(content.len()).unwrap();
    buffer.extend_from_slice(content).unwrap();
    buffer.freeze()
}

#[test]
fn lent_memory_is_read_in_place() {
    let arena = Arena::new(4 << 20).unwrap();
    for (len, cut) in [(100, 0..100), (100, 3..77), (1 << 20, 4097..70_000)] {
        let content: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let lent = filled(&arena, &content).slice(cut.clone());
        let (segment, offset) = lendable(&lent).unwrap();
        let (peer, back) = (mapped(segment), Arc::new(AtomicUsize::new(0)));
        let (lease, origin): (OpaqueHandle, OpaqueHandle) =
            (Arc::new(CountedLease(Arc::clone(&back))), Arc::new("origin"));
        // SAFETY: written above, and held by `lent` until the end (M11).
        let buffer = unsafe {
            borrowed::borrowed(
                Arc::clone(&peer),
                (offset, lent.len()),
                (Place::Arena, Access::Owned),
                lease,
                origin,
            )
        }
        .unwrap();

        assert_eq!((buffer.place(), buffer.access()), (Place::Arena, Access::Owned));
        assert!(buffer.as_slice() == Some(&content[cut.clone()]));
        assert_eq!(buffer.as_ptr(), peer.base().as_ptr().wrapping_add(offset));
        assert!(buffer.to_vec().unwrap() == content[cut]);

        let part = buffer.slice(1..);
        let (memory, at) = borrowed::borrowed_from(&part).unwrap();
        assert_eq!(at, offset + 1);
        assert!(memory.lease().is::<CountedLease>() && memory.origin().downcast_ref() == Some(&"origin"));
        assert!(lendable(&part).is_none() && borrowed::borrowed_from(&lent).is_none());

        drop((buffer, peer));
        assert_eq!(back.load(Ordering::Relaxed), 0, "a slice holds the lease");
        let part = part.try_into_mut().expect_err("what was borrowed is never writable");
        drop(part);
        assert_eq!(back.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_lent_block_counts_once_and_a_quarantine_keeps_half_of_the_arena() {
    const PART: usize = 1 << 20;
    let arena = Arena::new(8 * PART).unwrap();
    let held = || {
        let stats = arena.stats();
        [stats.lent_bytes / PART, stats.leases, stats.quarantined_bytes / PART, stats.quarantined_leases]
    };
    let frame = |parts: usize| filled(&arena, &vec![1; parts * PART]);
    let (one, two, three) = (frame(1), frame(2), frame(3));
    let mut kept = FrameLease::of(one.clone()).unwrap();
    let others: Vec<_> = (0..3).map(|at| FrameLease::of(one.slice(at..=at)).unwrap()).collect();
    assert_eq!(held(), [1, 4, 0, 0]);
    let all = FrameLease::of(two.clone()).unwrap();
    let more = FrameLease::of(three.clone()).unwrap();
    assert_eq!(held(), [6, 6, 0, 0], "without a quarantine, all of the arena may be lent");
    drop(more);

    kept.quarantine();
    assert_eq!(held(), [3, 5, 1, 1]);
    assert!(
        FrameLease::of(two.slice(5..)).is_some() && FrameLease::of(one.slice(5..)).is_some(),
        "blocks that are lent already"
    );
    assert!(FrameLease::of(three.clone()).is_none() && FrameLease::of(frame(2)).is_none());
    assert!(FrameLease::of(frame(1)).is_some(), "exactly half of the arena");
    assert!(
        FrameLease::of(Buffer::from(vec![1; 8 * PART])).is_some(),
        "memory outside an arena is not counted"
    );
    assert_eq!((held(), arena.stats().refused_leases), ([3, 5, 1, 1], 2));

    drop(kept);
    assert_eq!(held(), [3, 4, 0, 0]);
    let more = FrameLease::of(three.clone()).unwrap();
    assert_eq!((held(), arena.stats().refused_leases), ([6, 5, 0, 0], 2));
    drop((others, all, more));
    assert_eq!(held(), [0; 4]);
    drop((one, two, three));
    assert_eq!(arena.stats().in_use_bytes, 0);
}

#[test]
fn lent_memory_stays_in_use() {
    let arena = Arena::new(4 << 20).unwrap();
    let buffer = filled(&arena, &[7; 1 << 20]);
    let second_handle = buffer.clone();
    let buffer = buffer.try_into_mut().unwrap_err();
    drop(buffer);
    assert_eq!(arena.stats().in_use_bytes, 1 << 20);
    drop(second_handle);
    assert_eq!(arena.stats().in_use_bytes, 0);
}

#[test]
fn a_pools_arena_memory_can_be_lent() {
    let pool = Pool::with_source(Arc::new(Arena::new(4 << 20).unwrap()), 4 << 20);
    let mut destination = pool.take(1000).unwrap();
    destination.extend_from_slice(b"towline").unwrap();
    let frozen = destination.freeze().slice(3..);
    let (segment, offset) = lendable(&frozen).unwrap();
    assert_eq!(segment.base().as_ptr().wrapping_add(offset).cast_const(), frozen.as_ptr());
    assert!(lendable(&Buffer::from("host")).is_none() && lendable(&Buffer::new()).is_none());
}

#[test]
fn a_range_outside_the_segment_is_not_borrowed() {
    let segment = Segment::create("towline-test", 8192).unwrap();
    let peer = mapped(&segment);
    for (offset, len, fits) in [
        (0, 8192, true),
        (8192, 0, true),
        (4096, 4096, true),
        (4096, 4097, false),
        (8193, 0, false),
        (usize::MAX, 2, false),
        (1, usize::MAX, false),
    ] {
        let back = Arc::new(AtomicUsize::new(0));
        let lease = Arc::new(CountedLease(Arc::clone(&back)));
        // SAFETY: zeroes, which the test does not write (M11).
        let buffer = unsafe {
            borrowed::borrowed(
                Arc::clone(&peer),
                (offset, len),
                (Place::Host, Access::Owned),
                lease,
                Arc::new(()),
            )
        };
        match buffer {
            Ok(buffer) => assert!(fits && buffer.len() == len),
            Err(error) => assert!(!fits && error.kind() == ErrorKind::Corrupt, "{error}"),
        }
        assert_eq!(back.load(Ordering::Relaxed), 1);
    }
}

/// Runs `check` in a forked child, which then ends.
fn in_a_forked_child(mut check: impl FnMut() -> Result<(), String> + Send + Sync + 'static) {
    let mut command = Command::new("true");
    // SAFETY: the check allocates memory, and takes no lock that another thread of this process may hold.
    unsafe { command.pre_exec(move || check().map_err(io::Error::other)) };
    let status = command.status().unwrap_or_else(|error| panic!("in the child: {error}"));
    assert!(status.success());
}

#[test]
fn a_forked_child_takes_and_returns_no_memory() {
    let arena = Arena::new(4 << 20).unwrap();
    let pool = Pool::with_source(Arc::new(arena.clone()), 4 << 20);
    drop(pool.take(1000).unwrap());
    let inherited = filled(&arena, b"towline");
    let parent = Process::current();
    let before = arena.stats();

    let mut theirs = Some(inherited.clone());
    let (child_arena, child_pool) = (arena.clone(), pool.clone());
    // The fork copies a locked mutex: in the child, no thread ever unlocks it.
    let held = arena.0.state();
    in_a_forked_child(move || {
        let inert = |taken: Result<BufferMut, Error>| {
            taken.is_err_and(|error| error.kind() == ErrorKind::Unsupported)
        };
        let read = theirs.as_ref().and_then(Buffer::as_slice) == Some(b"towline");
        drop(theirs.take());
        let waits =
            pin!(child_arena.take_within(100, Duration::MAX)).poll(&mut Context::from_waker(Waker::noop()));
        let told = match waits {
            Poll::Ready(taken) => inert(taken),
            Poll::Pending => false,
        };
        let own = Arena::new(1 << 20).and_then(|arena| arena.take(100)).is_ok();
        let other = !parent.is_this();
        match (inert(child_arena.take(100)), inert(child_pool.take(1000)), told, read, own, other) {
            (true, true, true, true, true, true) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    });
    drop(held);
    assert_eq!(arena.stats(), before);
    assert!(inherited.as_slice() == Some(&b"towline"[..]) && parent.is_this());
    assert_eq!(inherited.allocation().map(Allocation::len), Some(7));
}
