//! A pool recycles the memory of one place: a fresh page costs more than copying it, so receives land in warm ones.
//!
//! A taken buffer's allocation is a [`Lent`] block; when its last handle drops, the block goes back on its shelf.

#![expect(unsafe_code, reason = "a lent block is an allocation, and vouches for the one inside it")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, MutexGuard, Weak};

use super::class::Class;
use super::host::HostMemory;
use super::shared::{SHARE_BELOW_BYTES, Shared, lines};
use super::{Access, Allocation, BufferMut, Place, available};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// Recycles memory of one place, within a bound on what lies idle. Clones are the same pool.
///
/// A buffer taken from it returns its memory when the last handle drops, slices and frozen ones included, and may
/// outlive the pool.
///
/// A process forked from the one that made it may go on taking from it, and dropping what it inherited: nothing is recycled
/// there.
///
/// ```
/// use towline::Pool;
///
/// let pool = Pool::new(64 << 20);
/// let mut buffer = pool.take(100_000)?;
/// assert_eq!((buffer.len(), buffer.capacity()), (0, 100_000));
/// buffer.extend_from_slice(b"towline")?;
/// let shared = buffer.freeze();
/// drop(shared);
/// assert_eq!(pool.stats().in_use_bytes, 0);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

/// Where a pool's memory comes from when no idle block fits.
pub trait Source: fmt::Debug + Send + Sync {
    /// Where the memory lives.
    fn place(&self) -> Place;

    /// Writable memory of at least `len` bytes, of which the caller gets the only handle.
    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>>;

    /// Whether memory of it may be lent here, asked before a pool lends a block that lay idle. An arena's may not in a
    /// forked child, which has the parent's idle blocks, and the same memory.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What a pool holds, and how often it had what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// In buffers that live, rounded up to blocks.
    pub in_use_bytes: usize,
    /// In blocks that wait to be taken.
    pub idle_bytes: usize,
    /// The most that may wait.
    pub idle_bytes_max: usize,
    /// How often a waiting block served.
    pub hits: u64,
    /// How often memory had to be allocated.
    pub misses: u64,
}

impl Pool {
    /// A pool of host memory, of which at most `idle_bytes_max` wait to be taken.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self::with_source(Arc::new(HostSource), idle_bytes_max)
    }

    /// A pool of whatever memory `source` allocates.
    pub fn with_source(source: Arc<dyn Source>, idle_bytes_max: usize) -> Self {
        let place = source.place();
        let shelves = Mutex::new(Shelves::new(idle_bytes_max));
        Self(Arc::new(Inner { source, place, shelves, process: Process::current() }))
    }

    /// Room for `capacity` bytes, none filled. `take(0)` allocates nothing.
    ///
    /// # Errors
    ///
    /// Whatever the source reports: `TooLarge` where there is no memory to give.
    pub fn take(&self, capacity: usize) -> Result<BufferMut> {
        if capacity == 0 {
            return Ok(BufferMut::nothing_in(self.0.place));
        }
        let class = Class::of(capacity)?;
        self.0.source.check()?;
        let idle = self.0.shelves().and_then(|mut shelves| shelves.take(class));
        let block = match idle {
            Some(block) => block,
            None => self.0.allocate(class)?,
        };
        let lent = Lent { block: Some(block), class, pool: Arc::downgrade(&self.0) };
        let mut buffer = BufferMut::from_allocation(Arc::new(lent)).map_err(|_| useless(self.0.place))?;
        buffer.limit(capacity);
        Ok(buffer)
    }

    /// `len` zeroes, to be overwritten in place. `take_zeroed(0)` allocates nothing.
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take), and whatever the place's copy reports: `Unsupported` for memory that the CPU cannot write and
    /// that brings no copy functions.
    pub fn take_zeroed(&self, len: usize) -> Result<BufferMut> {
        let mut buffer = self.take(len)?;
        buffer.resize(len, 0)?;
        Ok(buffer)
    }

    /// One buffer for each length, in order, each with that capacity. Those of 16 KiB and more have a block of their
    /// own; smaller ones share blocks of at most 64 KiB, each from a cache line of its own on; empty ones have none.
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take).
    pub fn destinations(&self, lengths: impl Iterator<Item = usize> + Clone) -> Result<Vec<BufferMut>> {
        let small = |len: &usize| *len < SHARE_BELOW_BYTES;
        let mut small_bytes = lengths.clone().filter(small).map(lines).fold(0, usize::saturating_add);
        let mut shared = Shared::default();
        let destination = |len: usize| {
            let destination = shared.destination(self, len, small_bytes.min(SHARED_BYTES_MAX));
            if small(&len) {
                small_bytes = small_bytes.saturating_sub(lines(len));
            }
            destination
        };
        lengths.map(destination).collect()
    }

    /// Where the memory lives.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// What it holds now; nothing in a process that inherited it.
    pub fn stats(&self) -> PoolStats {
        self.0.shelves().map(|shelves| shelves.stats).unwrap_or_default()
    }

    /// Frees all that waits to be taken.
    pub fn trim(&self) {
        self.0.trim();
    }
}

const SHARED_BYTES_MAX: usize = 64 << 10;

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("place", &self.0.place).field("stats", &self.stats()).finish()
    }
}

struct Inner {
    source: Arc<dyn Source>,
    place: Place,
    shelves: Mutex<Shelves>,
    process: Process,
}

impl Inner {
    /// None in a process that inherited the pool: somebody may have been at them when it was forked.
    fn shelves(&self) -> Option<MutexGuard<'_, Shelves>> {
        self.process.is_this().then(|| self.shelves.lock())
    }

    /// A new block, already counted as in use; idle ones of other classes make way if they must.
    fn allocate(&self, class: Class) -> Result<Arc<dyn Allocation>> {
        let found = self.source.allocate(class.bytes).or_else(|_| {
            self.trim();
            self.source.allocate(class.bytes)
        });
        found.and_then(|block| self.check(block, class)).inspect_err(|_| {
            if let Some(mut shelves) = self.shelves() {
                shelves.forget(class);
            }
        })
    }

    /// A source is safe code: what it gives is checked before it is lent (M2).
    fn check(&self, mut block: Arc<dyn Allocation>, class: Class) -> Result<Arc<dyn Allocation>> {
        let fits = block.len() >= class.bytes && block.place() == self.place && block.writable();
        if fits && Arc::get_mut(&mut block).is_some() { Ok(block) } else { Err(useless(self.place)) }
    }

    fn trim(&self) {
        let freed = self.shelves().map(|mut shelves| shelves.empty());
        drop(freed); // after the lock: freeing a mapping takes its time
    }
}

fn useless(place: Place) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("the source of a pool in {place} gave a block that is short, shared, read-only or elsewhere"),
    )
}

/// Idle blocks by class, and the books.
struct Shelves {
    shelves: Vec<Shelf>,
    stats: PoolStats,
    /// Counts takes and returns.
    clock: u64,
}

/// The idle blocks of one class: last in, first out, so that what is taken is warm.
#[derive(Default)]
struct Shelf {
    blocks: Vec<Arc<dyn Allocation>>,
    block_bytes: usize,
    used_at: u64,
}

impl Shelves {
    fn new(idle_bytes_max: usize) -> Self {
        Self { shelves: Vec::new(), stats: PoolStats { idle_bytes_max, ..PoolStats::default() }, clock: 0 }
    }

    /// An idle block of that class, if there is one. Counts it as in use either way.
    fn take(&mut self, class: Class) -> Option<Arc<dyn Allocation>> {
        let block = self.shelf(class).blocks.pop();
        self.stats.in_use_bytes += class.bytes;
        if block.is_some() {
            self.stats.idle_bytes -= class.bytes;
            self.stats.hits += 1;
        } else {
            self.stats.misses += 1;
        }
        block
    }

    /// Takes a block back. What is then too much is returned, to be freed: first blocks of the classes that have been
    /// of no use for longest, so that a change of sizes does not leave the pool full of the wrong ones.
    fn put_back(&mut self, class: Class, block: Arc<dyn Allocation>) -> Vec<Arc<dyn Allocation>> {
        self.forget(class);
        let room = self.stats.idle_bytes_max.checked_sub(class.bytes);
        let mut freed = Vec::new();
        let Some(room) = room else { return vec![block] };
        self.shelf(class);
        while self.stats.idle_bytes > room {
            let used = self.shelves.iter_mut().filter(|shelf| !shelf.blocks.is_empty());
            let Some(stale) = used.min_by_key(|shelf| shelf.used_at) else { break };
            if stale.used_at == self.clock {
                freed.push(block); // only this class is left, and its idle ones are as good
                return freed;
            }
            freed.extend(stale.blocks.pop());
            self.stats.idle_bytes -= stale.block_bytes;
        }
        self.stats.idle_bytes += class.bytes;
        self.shelf(class).blocks.push(block);
        freed
    }

    fn forget(&mut self, class: Class) {
        self.stats.in_use_bytes -= class.bytes;
    }

    fn empty(&mut self) -> Vec<Shelf> {
        self.stats.idle_bytes = 0;
        std::mem::take(&mut self.shelves)
    }

    fn shelf(&mut self, class: Class) -> &mut Shelf {
        self.clock += 1;
        if self.shelves.len() <= class.index {
            self.shelves.resize_with(class.index + 1, Shelf::default);
        }
        let shelf = &mut self.shelves[class.index];
        shelf.used_at = self.clock;
        shelf.block_bytes = class.bytes;
        shelf
    }
}

/// A block in use. Drops when the last handle of the taken buffer does.
#[derive(Debug)]
struct Lent {
    /// `None` only while dropping.
    block: Option<Arc<dyn Allocation>>,
    class: Class,
    /// Weak: buffers may outlive their pool, and do not keep its idle blocks.
    pool: Weak<Inner>,
}

impl Lent {
    fn block(&self) -> &dyn Allocation {
        self.block.as_deref().unwrap_or_else(|| unreachable!("a block is taken out by drop only"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(block), Some(pool)) = (self.block.take(), self.pool.upgrade()) else { return };
        let freed = pool.shelves().map(|mut shelves| shelves.put_back(self.class, block));
        drop(freed); // after the lock: freeing a mapping takes its time
    }
}

// SAFETY: all is the block's, held until drop (M1); the pool checked that it had its only handle (M2).
unsafe impl Allocation for Lent {
    fn base(&self) -> NonNull<u8> {
        self.block().base()
    }

    fn len(&self) -> usize {
        self.block().len()
    }

    fn place(&self) -> Place {
        self.block().place()
    }

    fn access(&self) -> Access {
        self.block().access()
    }

    fn writable(&self) -> bool {
        self.block().writable()
    }

    fn inner(&self) -> Option<&dyn Allocation> {
        Some(self.block())
    }

    unsafe fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        // SAFETY: the caller's promises are about the same bytes (M1, M2, M4).
        unsafe { self.block().copy_out(offset, dst) }
    }

    unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> Result<()> {
        // SAFETY: the caller's promises are about the same bytes (M1, M2).
        unsafe { self.block().copy_in(offset, src) }
    }
}

/// Blocks from this length on are taken only while there is memory for them: asking takes less than a tenth of what the
/// kernel needs to fill the pages.
const CHECKED_FROM_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct HostSource;

impl Source for HostSource {
    fn place(&self) -> Place {
        Place::Host
    }

    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>> {
        if len >= CHECKED_FROM_BYTES {
            available::check(len)?;
        }
        Ok(Arc::new(HostMemory::new(len, 1, false)?))
    }
}
