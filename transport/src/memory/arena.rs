//! An arena: host memory in few shared segments, which trusted processes of this host map once and read for good.
//!
//! A buffer of it is handed to such a process as a segment, an offset and a length ([`lendable`]). There it is
//! [`borrowed`](borrowed::borrowed) until the lease that came with it is back, and until then nobody writes it (M11).

#![expect(unsafe_code, reason = "a block of a segment is an allocation")]

pub(crate) mod borrowed;
mod lending;
mod room;
mod space;
#[cfg(test)]
mod tests;
mod wait_queue;

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::time::Duration;

pub(crate) use lending::FrameLease;
use lending::{BlockLeases, Lending};
use room::{Room, STRETCH_BYTES, Spot};
use wait_queue::{PendingTake, WaitQueue};

use super::segment::Segment;
use super::{Access, Allocation, Buffer, BufferMut, Place, Source, huge};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// What the first segment has, where the arena is that large: enough that few follow.
const FIRST_SEGMENT_BYTES: usize = 64 << 20;

/// Host memory that trusted processes of this host may map: few large segments, made as they are needed, each mapped and
/// populated once. Clones are the same arena.
///
/// A buffer taken from it returns its memory when the last handle drops, slices and frozen ones included, and may outlive
/// the arena. Segments stay until the arena and their last buffer are gone, so that memory is taken again while it is
/// warm. Nothing of it has a name in any file system, and nothing is left when the processes are gone.
///
/// What a peer was sent of it by `shm` stays taken until the peer lets go. Where the connection has ended and the peer may still
/// hold something, because it is stopped or keeps what it received, that is in quarantine, until it is given back or the
/// peer's processes are gone. Meanwhile no frame is lent that would leave less than half of `bytes_max` unlent: it is
/// copied. So whatever a peer held when its connection ended is the most that it costs.
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
/// // What an endpoint receives shall lie in it.
/// let pool = Pool::with_source(Arc::new(arena), 16 << 20);
/// let endpoint = Endpoint::builder().pool(pool).build()?;
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

/// What an arena holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArenaStats {
    /// How many segments there are.
    pub segments: usize,
    /// The bytes of all of them.
    pub bytes: usize,
    /// The most that they may have.
    pub bytes_max: usize,
    /// In buffers that live, rounded up to blocks.
    pub in_use_bytes: usize,
    /// Of what is in use, what peers hold, rounded up to blocks.
    pub lent_bytes: usize,
    /// Frames that peers hold.
    pub leases: usize,
    /// Of what is lent, what a peer may still hold though its connection has ended.
    pub quarantined_bytes: usize,
    /// Frames of that.
    pub quarantined_leases: usize,
    /// Frames that were copied and not lent so far, because of what was in quarantine.
    pub refused_leases: u64,
    /// The most that the present segments have in one piece. More segments come until `bytes_max` is reached.
    pub largest_free_bytes: usize,
    /// In huge pages, as the kernel told when the segments were made.
    pub huge_bytes: usize,
    /// Why not all of it is in huge pages, and what to do about it. `None` where all of it is, or there is none yet.
    pub not_huge: Option<String>,
}

impl Arena {
    /// An arena that grows up to `bytes_max`, rounded down to whole pages. It takes no memory before it is asked for some.
    ///
    /// # Errors
    ///
    /// `Invalid` where that is less than a page.
    pub fn new(bytes_max: usize) -> Result<Self> {
        Self::beginning_with(FIRST_SEGMENT_BYTES, bytes_max)
    }

    /// The same with another length of the first segment, where less was not asked for.
    pub(super) fn beginning_with(first_bytes: usize, bytes_max: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let bytes_max = bytes_max / page * page;
        if bytes_max == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("an arena of less than a page of {page} bytes"),
            ));
        }
        let state = State {
            room: Room::new(page),
            segments: Vec::new(),
            huge_bytes: 0,
            wait_queue: WaitQueue::default(),
        };
        Ok(Self(Arc::new(Inner {
            first_bytes,
            bytes_max,
            process: Process::current(),
            lending: Lending::default(),
            growing: Mutex::new(()),
            state: Mutex::new(state),
        })))
    }

    /// Room for `len` bytes, none filled, aligned to 64 bytes; from 16 KiB on to a page. `take(0)` takes nothing. Constant
    /// time, unless a segment has to be made first. It takes what is there, whoever [waits](Self::take_within) for it.
    ///
    /// # Errors
    ///
    /// `TooLarge` where the arena, or this machine's memory, has not that much left in one piece. `Unsupported` in a
    /// process forked from the one that made the arena, as both would write the same memory, and where the kernel is too
    /// old to share any.
    pub fn take(&self, len: usize) -> Result<BufferMut> {
        if len == 0 {
            return Ok(BufferMut::nothing_in(Place::Arena));
        }
        Ok(unique(self.0.allocate(len)?))
    }

    /// `len` zeroes, to be overwritten in place. `take_zeroed(0)` takes nothing.
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

    /// As [`take`](Self::take), or as soon as there is room: who asks for more than there is waits until buffers are dropped, here
    /// or by peers, one after another in the order in which they came. On any executor. A dropped future has taken nothing, and its place in
    /// line goes to the next.
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
    /// `TimedOut` after `limit`: it tells what is in use, and of that what peers hold. `TooLarge`, at once, for what the arena can
    /// never hold in one piece, and where this machine has not enough memory. `Unsupported` as with [`take`](Self::take).
    pub async fn take_within(&self, len: usize, limit: Duration) -> Result<BufferMut> {
        if len == 0 {
            return Ok(BufferMut::nothing_in(Place::Arena));
        }
        Ok(unique(PendingTake::new(&self.0, len, limit).await?))
    }

    /// As [`take`](Self::take), if it needs no further segment.
    pub(super) fn take_what_is_there(&self, len: usize) -> Option<BufferMut> {
        self.0.check().ok()?;
        let memory = self.0.take(len).or_else(|| {
            reclaim();
            self.0.take(len)
        });
        memory.map(|memory| unique(Arc::new(memory)))
    }

    /// Whether a segment with `len` bytes more would be within its bound.
    pub(super) fn may_grow(&self, len: usize) -> bool {
        self.0.check().is_ok() && self.0.bytes_max - self.0.state().room.bytes() >= len.max(STRETCH_BYTES)
    }

    /// One more segment, with `len` bytes at least.
    pub(super) fn grow(&self, len: usize) -> Result<()> {
        let _growing = self.0.growing.lock();
        self.0.grow(len)
    }

    /// What it holds now.
    pub fn stats(&self) -> ArenaStats {
        reclaim();
        let Lending { lent, quarantined, refused, .. } = &self.0.lending;
        let state = self.0.state();
        let (bytes, huge_bytes) = (state.room.bytes(), state.huge_bytes);
        ArenaStats {
            segments: state.segments.len(),
            bytes,
            bytes_max: self.0.bytes_max,
            in_use_bytes: state.room.in_use_bytes(),
            lent_bytes: lent.bytes.load(Ordering::Relaxed),
            leases: lent.leases.load(Ordering::Relaxed),
            quarantined_bytes: quarantined.bytes.load(Ordering::Relaxed),
            quarantined_leases: quarantined.leases.load(Ordering::Relaxed),
            refused_leases: refused.load(Ordering::Relaxed),
            largest_free_bytes: state.room.largest_free_bytes(),
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

/// Pool memory that can be handed to other processes: `Pool::with_source(Arc::new(arena), …)`. Idle blocks of the pool are
/// in use to the arena; the pool gives them back where the arena has no room for another.
impl Source for Arena {
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

struct Inner {
    first_bytes: usize,
    bytes_max: usize,
    /// Which process made it.
    process: Process,
    lending: Lending,
    /// Held by who makes a segment, which takes its time; `state` is not.
    growing: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    room: Room,
    segments: Vec<Arc<Segment>>,
    huge_bytes: usize,
    wait_queue: WaitQueue,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether this is the process that made it.
    fn check(&self) -> Result<()> {
        if self.process.is_this() {
            return Ok(());
        }
        let why = "this process was forked from the one whose arena this is, and both would write it: make another arena";
        Err(Error::new(ErrorKind::Unsupported, why))
    }

    fn allocate(self: &Arc<Self>, len: usize) -> Result<Arc<ArenaMemory>> {
        self.check()?;
        if let Some(memory) = self.take_what_is_back(len) {
            return Ok(Arc::new(memory));
        }
        let _growing = self.growing.lock();
        // Somebody else may have made room meanwhile.
        if let Some(memory) = self.take(len) {
            return Ok(Arc::new(memory));
        }
        self.grow(len)?;
        self.take(len).map(Arc::new).ok_or_else(|| self.full(len))
    }

    fn take_what_is_back(self: &Arc<Self>, len: usize) -> Option<ArenaMemory> {
        self.take(len).or_else(|| {
            reclaim();
            self.take(len)
        })
    }

    fn take(self: &Arc<Self>, len: usize) -> Option<ArenaMemory> {
        let mut state = self.state();
        let spot = state.room.take(len)?;
        let segment = Arc::clone(&state.segments[spot.segment]);
        let (arena, leases) = (Arc::downgrade(self), BlockLeases::default());
        Some(ArenaMemory { segment, spot, len, leases, arena })
    }

    /// One more segment, with `len` bytes at least: as much as all before it together, so that their number stays small,
    /// or, if limits or the machine's memory do not permit that, as little as will do.
    fn grow(&self, len: usize) -> Result<()> {
        let bytes = self.state().room.bytes();
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
        let least = rounded(len.max(STRETCH_BYTES), Segment::len_max()).max(len);
        let wanted = rounded(len.max(bytes).max(self.first_bytes), Segment::reserve_len_max()).max(least);
        let made = Segment::create("towline-arena", wanted).or_else(|error| {
            let smaller = least < wanted && error.kind() == ErrorKind::TooLarge;
            if smaller { Segment::create("towline-arena", least) } else { Err(error) }
        });
        let segment = made.map_err(|error| error.during("grow the arena"))?;
        let huge_bytes = huge::bytes_of(segment.base().addr().get());
        let mut state = self.state();
        state.room.add(segment.len());
        state.segments.push(Arc::new(segment));
        state.huge_bytes += huge_bytes;
        Ok(())
    }

    /// Whether it can ever hold so much in one piece: segments stay as they are.
    fn check_len(&self, len: usize) -> Result<()> {
        let left = self.bytes_max - self.state().room.bytes();
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
            state.room.in_use_bytes(),
            lent.bytes.load(Ordering::Relaxed),
            quarantined.bytes.load(Ordering::Relaxed),
            state.room.largest_free_bytes().max(self.bytes_max - state.room.bytes()),
        )
    }
}

/// A block of an arena, back in it on drop.
pub(crate) struct ArenaMemory {
    segment: Arc<Segment>,
    spot: Spot,
    len: usize,
    leases: BlockLeases,
    /// Weak: buffers may outlive their arena, and keep their segment alone.
    arena: Weak<Inner>,
}

impl Drop for ArenaMemory {
    fn drop(&mut self) {
        let Some(arena) = self.arena.upgrade() else { return };
        // In a forked child the books are a copy, and their lock may be held by a thread that is not there.
        if arena.check().is_ok() {
            let mut state = arena.state();
            state.room.give(self.spot);
            state.wait_queue.tell();
        }
    }
}

impl fmt::Debug for ArenaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaMemory")
            .field("segment", &self.segment.base())
            .field("offset", &self.spot.offset)
            .field("len", &self.len)
            .finish()
    }
}

// SAFETY: the segment stays mapped while this holds it (M1, M8); the room gives each of its bytes to one block at a time,
// and other processes can only read them (M2).
unsafe impl Allocation for ArenaMemory {
    fn base(&self) -> NonNull<u8> {
        part(self.segment.base(), self.spot.offset)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Arena
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        true
    }
}

/// What frees lent memory that has come back.
static RECLAIM: OnceLock<fn()> = OnceLock::new();

/// Has `free` called before an arena grows, and before it tells what it holds: whoever lends memory frees what has come back.
pub(crate) fn reclaim_by(free: fn()) {
    // There is one way to lend.
    let _ = RECLAIM.set(free);
}

fn reclaim() {
    if let Some(free) = RECLAIM.get() {
        free();
    }
}

/// The segment that a buffer's bytes lie in, and where in it its first one does, if it is of an arena of this process. Who
/// hands it to a peer holds a handle of the buffer until the peer's lease is back (M11).
pub(crate) fn lendable(buffer: &Buffer) -> Option<(&Arc<Segment>, usize)> {
    let memory: &dyn Any = buffer.allocation()?;
    let segment = &memory.downcast_ref::<ArenaMemory>()?.segment;
    segment.is_own().then(|| (segment, buffer.as_ptr().addr() - segment.base().addr().get()))
}

/// The address of a byte within a segment.
fn part(base: NonNull<u8>, offset: usize) -> NonNull<u8> {
    NonNull::new(base.as_ptr().wrapping_add(offset))
        .unwrap_or_else(|| unreachable!("a mapping does not wrap around"))
}
