//! A bounce arena: shared memory for copies of frames that are in no arena. A trusted peer reads the copies
//! in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use super::{Arena, BufferMut};

/// Length of the first segment, where the bound permits. Few endpoints need more.
const FIRST_SEGMENT_BYTES: usize = 8 << 20;

/// Shared memory of one endpoint, up to a bound, for copies that its trusted peers read in place. Clones are
/// the same bounce arena.
///
/// A buffer taken from it belongs to a private [`Arena`]. Its memory returns when its last handle drops, and
/// every peer that borrowed it has returned it. Segments stay until the bounce arena is gone.
#[derive(Clone, Debug)]
pub struct BounceArena {
    /// `None` where the bound is less than a page.
    arena: Option<Arena>,
    /// True while a thread adds a segment, and for good once that failed.
    growing: Arc<AtomicBool>,
}

impl BounceArena {
    /// Creates a bounce arena that grows up to `bytes_max`; with 0 it has no memory. Allocates nothing before
    /// the first take.
    pub fn new(bytes_max: usize) -> Self {
        let arena = Arena::with_first_segment(FIRST_SEGMENT_BYTES, bytes_max).ok();
        Self { arena, growing: Arc::default() }
    }

    /// Returns a buffer with capacity for `len` bytes, or `None` if there is no memory for it now. Never
    /// waits. Where the bound allows, a thread adds a segment, so that later calls succeed.
    pub fn take(&self, len: usize) -> Option<BufferMut> {
        let arena = self.arena.as_ref()?;
        arena.take_without_growing(len).or_else(|| {
            self.grow(arena, len);
            None
        })
    }

    fn grow(&self, arena: &Arena, len: usize) {
        if !arena.may_grow(len) || self.growing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (arena, growing) = (arena.clone(), self.growing.clone());
        // If the machine has no memory or no thread for it, no other attempt follows.
        let grow = move || growing.store(arena.grow(len).is_err(), Ordering::Release);
        let _ = Builder::new().name("towline-bounce".into()).spawn(grow);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::Place;

    fn take_when_grown(bounce_arena: &BounceArena, len: usize) -> BufferMut {
        let begin = Instant::now();
        loop {
            if let Some(taken) = bounce_arena.take(len) {
                return taken;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{bounce_arena:?} never had {len} bytes");
            std::thread::yield_now();
        }
    }

    fn bytes(bounce_arena: &BounceArena) -> usize {
        bounce_arena.arena.as_ref().map_or(0, |arena| arena.stats().bytes)
    }

    #[test]
    fn a_bounce_arena_grows_on_demand_up_to_its_bound() {
        let bounce_arena = BounceArena::new(16 << 20);
        assert_eq!(bytes(&bounce_arena), 0);
        assert!(bounce_arena.take(1 << 20).is_none(), "no caller waits for memory");
        let first = take_when_grown(&bounce_arena, 1 << 20);
        assert_eq!((first.place(), first.capacity(), bytes(&bounce_arena)), (Place::Arena, 1 << 20, 8 << 20));
        let second = take_when_grown(&bounce_arena, 8 << 20);
        assert_eq!(bytes(&bounce_arena), 16 << 20);
        for _ in 0..3 {
            assert!(bounce_arena.take(8 << 20).is_none() && bounce_arena.clone().take(17 << 20).is_none());
        }
        assert_eq!(bytes(&bounce_arena), 16 << 20);
        let address = second.as_ptr();
        drop(second);
        assert_eq!(bounce_arena.take(8 << 20).expect("it is back").as_ptr(), address);
    }

    #[test]
    fn a_bounce_arena_of_no_bytes_has_no_memory() {
        let bounce_arena = BounceArena::new(0);
        assert!(bounce_arena.take(1).is_none() && !bounce_arena.growing.load(Ordering::Acquire));
    }
}
