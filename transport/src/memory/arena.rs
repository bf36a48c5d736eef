//! An arena: host memory in few shared segments. Trusted processes of this host map each segment once and
//! read from it in place.
//!
//! A buffer of an arena is lent to such a process as a segment, an offset and a length ([`lendable`]). There
//! it is [`borrowed`](borrowed::borrowed) until its lease is returned. Until then no process writes the bytes,
//! but for a [`ForeignBlock`]'s, which both ends take for foreign memory (M11).

#![expect(unsafe_code, reason = "a block of a segment is an allocation")]

mod blocks;
pub(crate) mod borrowed;
mod foreign_block;
mod lending;
#[cfg(test)]
mod tests;
mod tlsf;
mod wait_queue;

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use blocks::{BlockAllocator, BlockLocation, RUN_BYTES};
pub use foreign_block::ForeignBlock;
pub(crate) use lending::FrameLease;
use lending::{BlockLeases, Lending};
use wait_queue::{PendingTake, WaitQueue};

use super::segment::Segment;
use super::{Access, Allocation, Buffer, BufferMut, MemorySource, Place, huge};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// Length of the first segment, where the arena's bound permits: large enough that few segments follow.
const FIRST_SEGMENT_BYTES: usize = 64 << 20;

/// Host memory that trusted processes of this host may map. It consists of few large segments, created on
/// demand, each mapped and populated once. Clones are the same arena.
///
/// A buffer taken from an arena returns its memory when the last handle drops, slices and frozen handles
/// included, and may outlive the arena. Segments stay until the arena and their last buffer are gone, so that
/// later buffers reuse warm memory. An arena has no name in any file system, and nothing is left of it when
/// the processes have ended.
///
/// A frame that `shm` lent to a peer stays in use until the peer returns it. A lease is in quarantine if its
/// connection has ended and the peer may still read the frame, because its process is stopped or keeps the
/// message. The quarantine ends when the lease is returned or the peer's processes have ended. While an arena
/// has leases in quarantine, it lends at most half of `bytes_max`: further frames are copied. The frames that
/// a peer held when its connection ended are therefore the most that it costs.
///
/// ```
/// use std::sync::Arc;
///
/// use towline::{Arena, Endpoint, Place, Pool};
///
/// let arena = Arena::new(32 << 20)?;
/// let mut buffer = arena.take(100_000)?;
/// buffer.extend_from_slice(b"towline")?;
/// assert_eq!((buffer.place(), buffer.capacity()), (Place::Arena, 100_000));
/// drop(buffer.freeze());
/// assert_eq!((arena.stats().in_use_bytes, arena.stats().segments), (0, 1));
///
/// // Received frames are placed in the arena.
/// let pool = Pool::with_source(Arc::new(arena), 16 << 20);
/// let endpoint = Endpoint::builder().pool(pool).build()?;
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone)]
pub struct Arena(Arc<ArenaInner>);

/// A snapshot of an arena's size and use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArenaStats {
    /// Number of segments.
    pub segments: usize,
    /// Bytes of all segments.
    pub bytes: usize,
    /// Upper bound on the bytes of all segments.
    pub bytes_max: usize,
    /// Bytes of live buffers, rounded up to blocks.
    pub in_use_bytes: usize,
    /// Bytes of those that are lent to peers, rounded up to blocks.
    pub lent_bytes: usize,
    /// Number of frames that are lent to peers.
    pub leases: usize,
    /// Bytes of those that a peer may still read after its connection ended.
    pub quarantined_bytes: usize,
    /// Number of frames in quarantine.
    pub quarantined_leases: usize,
    /// Number of frames so far that were copied and not lent because of the quarantine.
    pub refused_leases: u64,
    /// Largest free piece of the present segments. The arena adds segments until `bytes_max` is reached.
    pub largest_free_bytes: usize,
    /// Bytes in huge pages, as the kernel reported them when the segments were created.
    pub huge_bytes: usize,
    /// Why not all memory is in huge pages, and how to change that. `None` if all of it is, or if there is
    /// none yet.
    pub not_huge: Option<String>,
}

impl Arena {
    /// Creates an arena that grows up to `bytes_max`, rounded down to whole pages. Allocates nothing before
    /// the first take.
    ///
    /// # Errors
    ///
    /// `Invalid` if `bytes_max` is less than a page.
    pub fn new(bytes_max: usize) -> Result<Self> {
        Self::with_first_segment(FIRST_SEGMENT_BYTES, bytes_max)
    }

    /// As [`new`](Self::new), with another length of the first segment.
    pub(super) fn with_first_segment(first_bytes: usize, bytes_max: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let bytes_max = bytes_max / page * page;
        if bytes_max == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("an arena of less than a page of {page} bytes"),
            ));
        }
        let state = ArenaState {
            blocks: BlockAllocator::new(page),
            segments: Vec::new(),
            huge_bytes: 0,
            wait_queue: WaitQueue::default(),
        };
        Ok(Self(Arc::new(ArenaInner {
            first_bytes,
            bytes_max,
            process: Process::current(),
            lending: Lending::default(),
            growing: Mutex::new(()),
            state: Mutex::new(state),
        })))
    }

    /// Returns a buffer with capacity for `len` bytes, none of them filled. It is aligned to 64 bytes, and
    /// from 16 KiB on to a page. `take(0)` allocates nothing. Takes constant time unless the arena must grow
    /// first. It does not queue behind callers that [wait](Self::take_within).
    ///
    /// # Errors
    ///
    /// `TooLarge` if the arena, or this machine's memory, has no free piece of that length. `Unsupported` in
    /// a process forked from the one that made the arena, as both would write the same memory, and on kernels
    /// too old for shared segments.
    pub fn take(&self, len: usize) -> Result<BufferMut> {
        if len == 0 {
            return Ok(BufferMut::empty_in(Place::Arena));
        }
        Ok(unique(self.0.allocate(len)?))
    }

    /// Returns a buffer of `len` zeroes, to be overwritten in place. `take_zeroed(0)` allocates nothing.
    ///
    /// ```
    /// let arena = towline::Arena::new(1 << 20)?;
    /// let mut numbers = arena.take_zeroed(4096)?;
    /// numbers.as_mut_slice().expect("the CPU can write it")[..3].copy_from_slice(&[1, 2, 3]);
    /// # assert_eq!(numbers.len(), 4096);
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take).
    pub fn take_zeroed(&self, len: usize) -> Result<BufferMut> {
        let mut buffer = self.take(len)?;
        buffer.resize(len, 0)?;
        Ok(buffer)
    }

    /// As [`take`](Self::take), but waits up to `limit` until enough memory is free.
    ///
    /// Callers are served in the order of their calls, as buffers are dropped here or by peers. Works on any
    /// executor. A dropped future has taken nothing, and the next caller in the queue moves up.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use towline::{Arena, ErrorKind, blocking};
    ///
    /// let arena = blocking::Arena::from(Arena::new(1 << 20)?);
    /// let all = arena.take_within(1 << 20, Duration::ZERO)?;
    /// let waited = arena.take_within(1, Duration::from_millis(10)).unwrap_err();
    /// assert_eq!(waited.kind(), ErrorKind::TimedOut);
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `TimedOut` after `limit`, with the bytes in use and the bytes lent to peers. `TooLarge`, at once, if
    /// the arena can never have `len` bytes in one piece or this machine has not enough memory. `Unsupported`
    /// as with [`take`](Self::take).
    pub async fn take_within(&self, len: usize, limit: Duration) -> Result<BufferMut> {
        if len == 0 {
            return Ok(BufferMut::empty_in(Place::Arena));
        }
        Ok(unique(PendingTake::new(&self.0, len, limit).await?))
    }

    /// As [`take`](Self::take), but returns `None` where the arena would have to grow.
    pub(super) fn take_without_growing(&self, len: usize) -> Option<BufferMut> {
        self.0.check().ok()?;
        let memory = self.0.take(len).or_else(|| {
            reclaim();
            self.0.take(len)
        });
        memory.map(|memory| unique(Arc::new(memory)))
    }

    /// Returns true if a further segment with `len` bytes would stay within the bound.
    pub(super) fn may_grow(&self, len: usize) -> bool {
        self.0.check().is_ok() && self.0.bytes_max - self.0.state().blocks.bytes() >= len.max(RUN_BYTES)
    }

    /// Adds a segment of at least `len` bytes.
    pub(super) fn grow(&self, len: usize) -> Result<()> {
        let _growing = self.0.growing.lock();
        self.0.grow(len)
    }

    /// Returns the current sizes and counts.
    pub fn stats(&self) -> ArenaStats {
        reclaim();
        let Lending { lent, quarantined, refused, .. } = &self.0.lending;
        let state = self.0.state();
        let (bytes, huge_bytes) = (state.blocks.bytes(), state.huge_bytes);
        ArenaStats {
            segments: state.segments.len(),
            bytes,
            bytes_max: self.0.bytes_max,
            in_use_bytes: state.blocks.in_use_bytes(),
            lent_bytes: lent.bytes.load(Ordering::Relaxed),
            leases: lent.leases.load(Ordering::Relaxed),
            quarantined_bytes: quarantined.bytes.load(Ordering::Relaxed),
            quarantined_leases: quarantined.leases.load(Ordering::Relaxed),
            refused_leases: refused.load(Ordering::Relaxed),
            largest_free_bytes: state.blocks.largest_free_bytes(),
            huge_bytes,
            not_huge: (huge_bytes < bytes).then(huge::why_not),
        }
    }
}

fn unique(memory: Arc<ArenaMemory>) -> BufferMut {
    BufferMut::from_allocation(memory).unwrap_or_else(|_| unreachable!("what was just made has one handle"))
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Arena").field(&self.stats()).finish()
    }
}

/// A source of pool memory that can be lent to other processes: `Pool::with_source(Arc::new(arena), …)`. Idle
/// blocks of the pool count as in use. The pool frees them when the arena has no memory for a new block.
impl MemorySource for Arena {
    fn place(&self) -> Place {
        Place::Arena
    }

    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>> {
        Ok(self.0.allocate(len)?)
    }

    fn check(&self) -> Result<()> {
        self.0.check()
    }
}

struct ArenaInner {
    first_bytes: usize,
    bytes_max: usize,
    /// The process that created the arena.
    process: Process,
    lending: Lending,
    /// Held while a segment is created, which is slow; `state` is not held meanwhile.
    growing: Mutex<()>,
    state: Mutex<ArenaState>,
}

struct ArenaState {
    blocks: BlockAllocator,
    segments: Vec<Arc<Segment>>,
    huge_bytes: usize,
    wait_queue: WaitQueue,
}

impl ArenaInner {
    fn state(&self) -> MutexGuard<'_, ArenaState> {
        self.state.lock()
    }

    /// Returns an error unless this process created the arena.
    fn check(&self) -> Result<()> {
        if self.process.is_this() {
            return Ok(());
        }
        let why = "this process was forked from the one that created the arena, and both would write it: create another arena";
        Err(Error::new(ErrorKind::Unsupported, why))
    }

    fn allocate(self: &Arc<Self>, len: usize) -> Result<Arc<ArenaMemory>> {
        self.check()?;
        if let Some(memory) = self.take_or_reclaim(len) {
            return Ok(Arc::new(memory));
        }
        let _growing = self.growing.lock();
        // Another thread may have freed memory or added a segment meanwhile.
        if let Some(memory) = self.take(len) {
            return Ok(Arc::new(memory));
        }
        self.grow(len)?;
        self.take(len).map(Arc::new).ok_or_else(|| self.full(len))
    }

    fn take_or_reclaim(self: &Arc<Self>, len: usize) -> Option<ArenaMemory> {
        self.take(len).or_else(|| {
            reclaim();
            self.take(len)
        })
    }

    fn take(self: &Arc<Self>, len: usize) -> Option<ArenaMemory> {
        let mut state = self.state();
        let location = state.blocks.take(len)?;
        let segment = Arc::clone(&state.segments[location.segment]);
        let (arena, leases) = (Arc::downgrade(self), BlockLeases::default());
        Some(ArenaMemory { segment, location, len, access: Access::Owned, leases, arena })
    }

    /// Adds a segment of at least `len` bytes. It is as long as all present segments together, so that their
    /// number stays small. If a limit or the machine's memory does not permit that, it is as short as
    /// possible.
    fn grow(&self, len: usize) -> Result<()> {
        let bytes = self.state().blocks.bytes();
        let left = self.bytes_max - bytes;
        if left < len {
            return Err(self.full(len));
        }
        let page = rustix::param::page_size();
        // Whole huge pages, as far as the arena and the limit permit them.
        let rounded = |wanted: usize, limit: usize| {
            let huge = wanted.checked_next_multiple_of(huge::PAGE).unwrap_or(left);
            huge.min(left).min(limit / page * page)
        };
        let least = rounded(len.max(RUN_BYTES), Segment::len_max()).max(len);
        let wanted = rounded(len.max(bytes).max(self.first_bytes), Segment::reserve_len_max()).max(least);
        let made = Segment::create("towline-arena", wanted).or_else(|error| {
            let smaller = least < wanted && error.kind() == ErrorKind::TooLarge;
            if smaller { Segment::create("towline-arena", least) } else { Err(error) }
        });
        let segment = made.map_err(|error| error.during("grow the arena"))?;
        let huge_bytes = huge::bytes_of(segment.base().addr().get());
        let mut state = self.state();
        state.blocks.add(segment.len());
        state.segments.push(Arc::new(segment));
        state.huge_bytes += huge_bytes;
        Ok(())
    }

    /// Returns an error if no segment, present or future, can have `len` bytes in one piece.
    fn check_len(&self, len: usize) -> Result<()> {
        let left = self.bytes_max - self.state().blocks.bytes();
        if len <= left.max(self.longest_segment()) { Ok(()) } else { Err(self.full(len)) }
    }

    fn longest_segment(&self) -> usize {
        self.state().segments.iter().map(|segment| segment.len()).max().unwrap_or_default()
    }

    fn full(&self, len: usize) -> Error {
        Error::new(ErrorKind::TooLarge, self.why_full(len))
    }

    fn why_full(&self, len: usize) -> String {
        let Lending { lent, quarantined, .. } = &self.lending;
        let state = self.state();
        format!(
            "{len} bytes of an arena of {}: {} are in use, of which peers hold {}, {} of them in quarantine, and the largest free \
             piece has {}; drop buffers here or at the peers, end processes that are stopped, or make it larger",
            self.bytes_max,
            state.blocks.in_use_bytes(),
            lent.bytes.load(Ordering::Relaxed),
            quarantined.bytes.load(Ordering::Relaxed),
            state.blocks.largest_free_bytes().max(self.bytes_max - state.blocks.bytes()),
        )
    }
}

/// A block of an arena. Dropping it returns the block.
pub(crate) struct ArenaMemory {
    segment: Arc<Segment>,
    location: BlockLocation,
    len: usize,
    /// `Foreign` for the memory of a [`ForeignBlock`].
    access: Access,
    leases: BlockLeases,
    /// Weak, because buffers may outlive their arena: they keep only their segment alive.
    arena: Weak<ArenaInner>,
}

impl Drop for ArenaMemory {
    fn drop(&mut self) {
        let Some(arena) = self.arena.upgrade() else { return };
        // In a forked child the arena's state is a copy, and a thread that does not exist there may hold its
        // lock.
        if arena.check().is_ok() {
            let mut state = arena.state();
            state.blocks.give(self.location);
            state.wait_queue.notify();
        }
    }
}

impl fmt::Debug for ArenaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaMemory")
            .field("segment", &self.segment.base())
            .field("offset", &self.location.offset)
            .field("len", &self.len)
            .finish()
    }
}

// SAFETY: the segment stays mapped while this value holds it (M1, M8). The allocator gives each byte to one
// block at a time, and other processes can only read the bytes (M2). Foreign memory is written by others, and
// not through a buffer (M5).
unsafe impl Allocation for ArenaMemory {
    fn base(&self) -> NonNull<u8> {
        part(self.segment.base(), self.location.offset)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Arena
    }

    fn access(&self) -> Access {
        self.access
    }

    fn writable(&self) -> bool {
        self.access == Access::Owned
    }
}

/// Frees lent memory that peers have returned.
static RECLAIM: OnceLock<fn()> = OnceLock::new();

/// Registers `free`, which is called before an arena grows and before its statistics are read. The lender of
/// the memory frees there what peers have returned.
pub(crate) fn reclaim_by(free: fn()) {
    // The process has one lender.
    let _ = RECLAIM.set(free);
}

fn reclaim() {
    if let Some(free) = RECLAIM.get() {
        free();
    }
}

/// Returns the segment and the offset in it of a buffer's first byte, if the buffer is of an arena of this
/// process. A caller that lends the buffer holds a handle of it until the peer's lease is returned (M11).
pub(crate) fn lendable(buffer: &Buffer) -> Option<(&Arc<Segment>, usize)> {
    let memory: &dyn Any = buffer.allocation()?;
    let segment = &memory.downcast_ref::<ArenaMemory>()?.segment;
    segment.is_own().then(|| (segment, buffer.as_ptr().addr() - segment.base().addr().get()))
}

/// Returns the address of a byte within a segment.
fn part(base: NonNull<u8>, offset: usize) -> NonNull<u8> {
    NonNull::new(base.as_ptr().wrapping_add(offset))
        .unwrap_or_else(|| unreachable!("a mapping does not wrap around"))
}
