//! Claims about pools.

use std::sync::Arc;

use super::bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Allocation, Buffer, BufferMut, MemorySource, Place, Pool};

#[test]
fn a_dropped_buffer_is_taken_again() {
    let pool = Pool::new(1 << 20);
    let first = pool.take(10_000).unwrap();
    let second = pool.take(10_000).unwrap();
    let (cold, warm) = (first.as_ptr(), second.as_ptr());
    drop((first, second));
    let idle = pool.stats();
    assert_eq!((idle.in_use_bytes, idle.idle_bytes, idle.hits, idle.misses), (0, 2 * 10_240, 0, 2));
    let again = pool.take(9_999).unwrap();
    assert_eq!((again.as_ptr(), again.len(), again.capacity()), (warm, 0, 9_999));
    assert_eq!(pool.take(10_240).unwrap().as_ptr(), cold);
    assert_eq!((pool.stats().hits, pool.stats().in_use_bytes), (2, 10_240));
}

#[test]
fn memory_returns_with_its_last_slice() {
    let pool = Pool::new(1 << 20);
    let mut buffer = pool.take(100).unwrap();
    buffer.extend_from_slice(&bytes(100)).unwrap();
    let whole = buffer.freeze();
    let part = whole.slice(50..);
    let mut writable = {
        drop(whole);
        part.try_into_mut().unwrap()
    };
    let tail = writable.split_off(25);
    drop(writable);
    assert_eq!((pool.stats().in_use_bytes, pool.stats().idle_bytes), (128, 0));
    drop(tail.freeze());
    assert_eq!((pool.stats().in_use_bytes, pool.stats().idle_bytes), (0, 128));
}

#[test]
fn taking_nothing_allocates_nothing() {
    let pool = Pool::new(1 << 20);
    let empty = pool.take(0).unwrap();
    assert!(empty.allocation().is_none());
    assert_eq!((pool.stats().hits, pool.stats().misses), (0, 0));
}

#[test]
fn idle_bytes_stay_within_their_bound() {
    let pool = Pool::new(10_000);
    let taken: Vec<_> = (0..5).map(|_| pool.take(4096).unwrap()).collect();
    assert_eq!(pool.stats().in_use_bytes, 5 * 4096);
    drop(taken);
    assert_eq!((pool.stats().in_use_bytes, pool.stats().idle_bytes), (0, 2 * 4096));
    drop(pool.take(10_241).unwrap());
    assert_eq!(pool.stats().idle_bytes, 2 * 4096, "what never fits displaces nothing");
    drop(pool.take(8192).unwrap());
    assert_eq!(pool.stats().idle_bytes, 8192, "what is of use now displaces what was");
    pool.trim();
    assert_eq!((pool.stats().idle_bytes, pool.stats().idle_bytes_max), (0, 10_000));
    drop(pool.take(8192).unwrap());
    assert_eq!(pool.stats().misses, 5 + 1 + 1 + 1);
}

#[test]
fn a_block_ages_unless_it_is_used() {
    let pool = Pool::new(1 << 20);
    drop([(); 3].map(|()| pool.take(4096).unwrap()));
    drop(pool.take(8192).unwrap());
    pool.age();
    assert_eq!(pool.stats().idle_bytes, 3 * 4096 + 8192, "all were in use since the pool was made");
    // Two of the three are used, at different times.
    drop([(); 2].map(|()| pool.take(4096).unwrap()));
    drop(pool.take(4096).unwrap());
    pool.age();
    assert_eq!(pool.stats().idle_bytes, 2 * 4096);
    assert_eq!(pool.stats().misses, 4, "what was used is recycled");
    pool.age();
    assert_eq!(pool.stats().idle_bytes, 0);
    let held = pool.take(4096).unwrap();
    pool.age();
    drop(held);
    assert_eq!((pool.stats().in_use_bytes, pool.stats().idle_bytes), (0, 4096));
}

#[test]
fn a_lower_bound_frees_what_is_idle_beyond_it() {
    let pool = Pool::new(1 << 20);
    drop([(); 3].map(|()| pool.take(4096).unwrap()));
    drop(pool.take(8192).unwrap());
    pool.set_idle_bytes_max(13_000);
    assert_eq!((pool.stats().idle_bytes, pool.stats().idle_bytes_max), (4096 + 8192, 13_000));
    pool.set_idle_bytes_max(0);
    assert_eq!(pool.stats().idle_bytes, 0);
    pool.set_idle_bytes_max(1 << 20);
    drop(pool.take(4096).unwrap());
    assert_eq!(pool.stats().idle_bytes, 4096);
}

#[test]
fn buffers_outlive_their_pool() {
    let pool = Pool::new(1 << 20);
    drop(pool.take(1000).unwrap());
    let mut buffer = pool.take(3 << 20).unwrap();
    drop(pool);
    buffer.extend_from_slice(b"towline").unwrap();
    let frozen = buffer.freeze();
    assert_eq!(frozen.as_slice(), Some(&b"towline"[..]));
}

#[test]
fn threads_share_a_pool_without_sharing_memory() {
    const ROUNDS: usize = 300;
    let pool = Pool::new(256 << 10);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..ROUNDS {
                    let len = (round * 7919 + usize::from(thread) * 131) % 20_000 + 1;
                    let canary = thread.wrapping_mul(61).wrapping_add(round as u8);
                    let mut buffer = pool.take(len).unwrap();
                    buffer.extend_from_slice(&vec![canary; len]).unwrap();
                    held.push((canary, buffer.freeze()));
                    if held.len() > 5 {
                        let (canary, buffer) = held.swap_remove(round % 5);
                        assert!(buffer.as_slice().unwrap().iter().all(|byte| *byte == canary));
                    }
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.in_use_bytes, stats.hits + stats.misses), (0, 4 * ROUNDS as u64));
    assert!(stats.idle_bytes <= stats.idle_bytes_max && stats.hits > 0);
}

#[test]
fn destinations_share_where_they_are_small() {
    let pool = Pool::new(1 << 20);
    let lengths = [100, 0, 64, 16 << 10, 1, 100_000, 16_383];
    let mut destinations = pool.destinations(lengths.into_iter()).unwrap();
    let capacities: Vec<_> = destinations.iter().map(BufferMut::capacity).collect();
    assert_eq!(capacities, lengths);
    assert_eq!(pool.stats().misses, 3, "two of their own and one shared");
    assert_eq!(destinations[2].as_ptr(), destinations[0].as_ptr().wrapping_add(128));
    for (canary, destination) in destinations.iter_mut().enumerate() {
        assert_eq!(destination.as_ptr().align_offset(64) * destination.capacity(), 0);
        destination.extend_from_slice(&vec![canary as u8; destination.capacity()]).unwrap();
    }
    let frozen: Vec<_> = destinations.into_iter().map(BufferMut::freeze).collect();
    for (canary, buffer) in frozen.iter().enumerate() {
        assert!(buffer.as_slice().unwrap().iter().all(|byte| usize::from(*byte) == canary));
    }
    drop(frozen);
    assert_eq!(pool.stats().in_use_bytes, 0);
}

#[test]
fn many_small_destinations_take_bounded_blocks() {
    let pool = Pool::new(64 << 20);
    let destinations = pool.destinations([10_000; 100].into_iter()).unwrap();
    assert_eq!(destinations.len(), 100);
    // Six of 10,048 bytes fit into 64 KiB.
    assert_eq!(pool.stats().misses, 17);
    assert!(pool.destinations(std::iter::empty()).unwrap().is_empty());
    assert_eq!(pool.destinations([0; 3].into_iter()).unwrap().len(), 3);
    assert_eq!(pool.stats().misses, 17);
}

/// Gives what a source must not give.
#[derive(Debug)]
struct InvalidSource(Arc<dyn Allocation>, bool);

impl MemorySource for InvalidSource {
    fn place(&self) -> Place {
        Place::Host
    }

    fn allocate(&self, _: usize) -> Result<Arc<dyn Allocation>> {
        if self.1 { Ok(Arc::clone(&self.0)) } else { Err(Error::new(ErrorKind::TooLarge, "none left")) }
    }
}

#[test]
fn an_invalid_block_of_a_source_is_an_error() {
    let memory: Arc<dyn Allocation> = Arc::new(crate::memory::host::HostMemory::new(4096, 1, false).unwrap());
    for (gives, kind) in [(true, ErrorKind::Invalid), (false, ErrorKind::TooLarge)] {
        let pool = Pool::with_source(Arc::new(InvalidSource(Arc::clone(&memory), gives)), 1 << 20);
        assert_eq!(pool.take(4096).unwrap_err().kind(), kind);
        assert_eq!(pool.stats().in_use_bytes, 0);
    }
    assert_eq!(Buffer::from("").len(), 0);
}
