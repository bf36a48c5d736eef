//! A bounce arena: shared memory for copies of what is in no arena, made once and read by a peer where they lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use super::{Arena, BufferMut};

/// What its first segment has, where that is enough: few endpoints ever need much.
const FIRST_SEGMENT_BYTES: usize = 8 << 20;

/// Shared memory of one endpoint, up to a bound, for copies that its trusted peers read where they lie. Clones are the same
/// bounce arena.
///
/// What is taken from it is a buffer of an [`Arena`] of its own, and returns when its last handle drops: those of the peers
/// that it was lent to among them. Segments stay until the bounce arena is gone.
#[derive(Clone, Debug)]
pub struct BounceArena {
    /// `None` where the bound is less than a page.
    arena: Option<Arena>,
    /// More is being made, or there was none to be had.
    growing: Arc<AtomicBool>,
}

impl BounceArena {
    /// A bounce arena that grows up to `bytes_max`, with 0 for none. It takes no memory before it is asked for some.
    pub fn new(bytes_max: usize) -> Self {
        let arena = Arena::beginning_with(FIRST_SEGMENT_BYTES, bytes_max).ok();
        Self { arena, growing: Arc::default() }
    }

    /// Room for `len` bytes, none filled, or `None` where there is none now. It never waits for memory: where the bound allows
    /// more, a thread makes some, so that whoever asks later finds it.
    pub fn take(&self, len: usize) -> Option<BufferMut> {
        let arena = self.arena.as_ref()?;
        arena.take_what_is_there(len).or_else(|| {
            self.grow(arena, len);
            None
        })
    }

    fn grow(&self, arena: &Arena, len: usize) {
        if !arena.may_grow(len) || self.growing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (arena, growing) = (arena.clone(), self.growing.clone());
        // A machine that has no memory, or no thread, for it is not asked again.
        let grow = move || growing.store(arena.grow(len).is_err(), Ordering::Release);
        let _ = Builder::new().name("towline-bounce".into()).spawn(grow);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::Place;

    fn soon(bounce_arena: &BounceArena, len: usize) -> BufferMut {
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
    fn it_has_what_was_asked_for_a_moment_later_and_no_more_than_its_bound() {
        let bounce_arena = BounceArena::new(16 << 20);
        assert_eq!(bytes(&bounce_arena), 0);
        assert!(bounce_arena.take(1 << 20).is_none(), "nobody waits for memory");
        let first = soon(&bounce_arena, 1 << 20);
        assert_eq!((first.place(), first.capacity(), bytes(&bounce_arena)), (Place::Arena, 1 << 20, 8 << 20));
        let second = soon(&bounce_arena, 8 << 20);
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
    fn one_of_nothing_has_nothing() {
        let bounce_arena = BounceArena::new(0);
        assert!(bounce_arena.take(1).is_none() && !bounce_arena.growing.load(Ordering::Acquire));
    }
}
