//! A pool recycles the memory of one place. Touching a fresh page costs more than copying it, so receives use
//! warm pages.
//!
//! The allocation of a taken buffer is a [`PooledBlock`]. When its last handle drops, the block returns to
//! the free list of its class.

#![expect(unsafe_code, reason = "a lent block is an allocation, and vouches for the one inside it")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, MutexGuard, Weak};

use super::class::SizeClass;
use super::host::HostMemory;
use super::shared::{SHARE_BELOW_BYTES, SharedBlock, lines};
use super::{Access, Allocation, BufferMut, Place, available};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;

/// Recycles memory of one place, with a bound on the idle bytes. Clones are the same pool.
///
/// A buffer taken from it returns its memory when the last handle drops, slices and frozen handles included,
/// and may outlive the pool.
///
/// In a forked child, the pool still allocates, and inherited buffers may be dropped, but it recycles
/// nothing.
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
pub struct Pool(Arc<PoolInner>);

/// Allocates a pool's memory when no idle block fits.
pub trait MemorySource: fmt::Debug + Send + Sync {
    /// Returns the place of the memory.
    fn place(&self) -> Place;

    /// Allocates writable memory of at least `len` bytes. The caller gets its only handle.
    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>>;

    /// Returns an error if this process may not use memory of this source. The pool calls it before each
    /// take, because it may reuse an idle block. An arena refuses in a forked child, which would write the
    /// parent's memory.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A snapshot of a pool's memory, and how many takes it served from idle blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes of live buffers, rounded up to blocks.
    pub in_use_bytes: usize,
    /// Bytes of idle blocks.
    pub idle_bytes: usize,
    /// Upper bound on the idle bytes.
    pub idle_bytes_max: usize,
    /// Number of takes served from an idle block.
    pub hits: u64,
    /// Number of takes that allocated memory.
    pub misses: u64,
}

impl Pool {
    /// Creates a pool of host memory with at most `idle_bytes_max` idle bytes.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self::with_source(Arc::new(HostSource), idle_bytes_max)
    }

    /// Creates a pool of the memory that `source` allocates.
    pub fn with_source(source: Arc<dyn MemorySource>, idle_bytes_max: usize) -> Self {
        let place = source.place();
        let free_lists = Mutex::new(FreeLists::new(idle_bytes_max));
        Self(Arc::new(PoolInner { source, place, free_lists, process: Process::current() }))
    }

    /// Returns a buffer with this capacity, none of it filled. `take(0)` allocates nothing.
    ///
    /// # Errors
    ///
    /// Any error of the source: `TooLarge` if it has no memory left.
    pub fn take(&self, capacity: usize) -> Result<BufferMut> {
        if capacity == 0 {
            return Ok(BufferMut::empty_in(self.0.place));
        }
        let class = SizeClass::of(capacity)?;
        self.0.source.check()?;
        let idle = self.0.free_lists().and_then(|mut free_lists| free_lists.take(class));
        let block = match idle {
            Some(block) => block,
            None => self.0.allocate(class)?,
        };
        let lent = PooledBlock { block: Some(block), class, pool: Arc::downgrade(&self.0) };
        let mut buffer =
            BufferMut::from_allocation(Arc::new(lent)).map_err(|_| invalid_block(self.0.place))?;
        buffer.limit(capacity);
        Ok(buffer)
    }

    /// Returns a buffer of `len` zeroes, to be overwritten in place. `take_zeroed(0)` allocates nothing.
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take), and any error of the place's copy function: `Unsupported` for memory
    /// that the CPU cannot write and that has no copy functions.
    pub fn take_zeroed(&self, len: usize) -> Result<BufferMut> {
        let mut buffer = self.take(len)?;
        buffer.resize(len, 0)?;
        Ok(buffer)
    }

    /// Returns one buffer for each length, in order, with that capacity. Buffers of 16 KiB and more have a
    /// block of their own. Smaller ones share blocks of at most 64 KiB, each aligned to a cache line. Empty
    /// ones have no block.
    ///
    /// # Errors
    ///
    /// As with [`take`](Self::take).
    pub fn destinations(&self, lengths: impl Iterator<Item = usize> + Clone) -> Result<Vec<BufferMut>> {
        let small = |len: &usize| *len < SHARE_BELOW_BYTES;
        let mut small_bytes = lengths.clone().filter(small).map(lines).fold(0, usize::saturating_add);
        let mut shared = SharedBlock::default();
        let destination = |len: usize| {
            let destination = shared.destination(self, len, small_bytes.min(SHARED_BYTES_MAX));
            if small(&len) {
                small_bytes = small_bytes.saturating_sub(lines(len));
            }
            destination
        };
        lengths.map(destination).collect()
    }

    /// Returns the place of the memory.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// Returns the current sizes and counts. In a process that inherited the pool, all are zero.
    pub fn stats(&self) -> PoolStats {
        self.0.free_lists().map(|free_lists| free_lists.stats).unwrap_or_default()
    }

    /// Frees all idle blocks.
    pub fn trim(&self) {
        self.0.trim();
    }

    /// Frees the blocks that nothing has used since the last call. Called at a steady interval, it returns
    /// memory that was idle for one to two intervals, and keeps what is in use now and then.
    /// [`Builder::pool_idle_time`](crate::Builder::pool_idle_time) does so for an endpoint's pools.
    ///
    /// ```
    /// use towline::Pool;
    ///
    /// let pool = Pool::new(64 << 20);
    /// drop(pool.take(100_000)?);
    /// pool.age(); // the block was used since the last call
    /// assert!(pool.stats().idle_bytes > 0);
    /// pool.age();
    /// assert_eq!(pool.stats().idle_bytes, 0);
    /// # Ok::<(), towline::Error>(())
    /// ```
    pub fn age(&self) {
        let freed = self.0.free_lists().map(|mut free_lists| free_lists.age());
        drop(freed); // after the lock, because freeing a mapping is slow
    }

    /// Changes the bound on the idle bytes, and frees idle blocks beyond it.
    pub fn set_idle_bytes_max(&self, idle_bytes_max: usize) {
        let freed = self.0.free_lists().map(|mut free_lists| {
            free_lists.stats.idle_bytes_max = idle_bytes_max;
            free_lists.shrink_to(idle_bytes_max)
        });
        drop(freed);
    }
}

const SHARED_BYTES_MAX: usize = 64 << 10;

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("place", &self.0.place).field("stats", &self.stats()).finish()
    }
}

struct PoolInner {
    source: Arc<dyn MemorySource>,
    place: Place,
    free_lists: Mutex<FreeLists>,
    process: Process,
}

impl PoolInner {
    /// Returns `None` in a process that inherited the pool: a thread of the parent may have held the lock at
    /// the fork.
    fn free_lists(&self) -> Option<MutexGuard<'_, FreeLists>> {
        self.process.is_this().then(|| self.free_lists.lock())
    }

    /// Allocates a block that is already counted as in use. If that fails, frees the idle blocks of all
    /// classes and retries.
    fn allocate(&self, class: SizeClass) -> Result<Arc<dyn Allocation>> {
        let found = self.source.allocate(class.bytes).or_else(|_| {
            self.trim();
            self.source.allocate(class.bytes)
        });
        found.and_then(|block| self.check(block, class)).inspect_err(|_| {
            if let Some(mut free_lists) = self.free_lists() {
                free_lists.forget(class);
            }
        })
    }

    /// Checks a source's block before the pool uses it (M2), because a source is safe code and may break its
    /// contract.
    fn check(&self, mut block: Arc<dyn Allocation>, class: SizeClass) -> Result<Arc<dyn Allocation>> {
        let fits = block.len() >= class.bytes && block.place() == self.place && block.writable();
        if fits && Arc::get_mut(&mut block).is_some() { Ok(block) } else { Err(invalid_block(self.place)) }
    }

    fn trim(&self) {
        let freed = self.free_lists().map(|mut free_lists| free_lists.empty());
        drop(freed); // after the lock, because freeing a mapping is slow
    }
}

fn invalid_block(place: Place) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "the source of a pool in {place} returned a block that is short, shared, read-only or elsewhere"
        ),
    )
}

/// The idle blocks of all classes, and the statistics.
struct FreeLists {
    free_lists: Vec<FreeList>,
    stats: PoolStats,
    /// Counts takes and returns.
    clock: u64,
}

/// The idle blocks of one class: last in, first out, so that a taken block is warm.
#[derive(Default)]
struct FreeList {
    blocks: Vec<Arc<dyn Allocation>>,
    /// The fewest blocks since the pool aged last: so many at the front were not used since.
    unused: usize,
    block_bytes: usize,
    used_at: u64,
}

impl FreeList {
    fn pop(&mut self) -> Option<Arc<dyn Allocation>> {
        let block = self.blocks.pop();
        self.unused = self.unused.min(self.blocks.len());
        block
    }
}

impl FreeLists {
    fn new(idle_bytes_max: usize) -> Self {
        Self { free_lists: Vec::new(), stats: PoolStats { idle_bytes_max, ..PoolStats::default() }, clock: 0 }
    }

    /// Takes an idle block of that class, if there is one. Counts a block as in use either way.
    fn take(&mut self, class: SizeClass) -> Option<Arc<dyn Allocation>> {
        let free_list = self.free_list(class);
        let block = free_list.pop();
        self.stats.in_use_bytes += class.bytes;
        if block.is_some() {
            self.stats.idle_bytes -= class.bytes;
            self.stats.hits += 1;
        } else {
            self.stats.misses += 1;
        }
        block
    }

    /// Returns a block. Blocks that exceed the bound are returned, to be freed: first those of the least
    /// recently used classes, so that after a change of sizes the pool does not stay full of blocks of the
    /// old ones.
    fn put_back(&mut self, class: SizeClass, block: Arc<dyn Allocation>) -> Vec<Arc<dyn Allocation>> {
        self.forget(class);
        let room = self.stats.idle_bytes_max.checked_sub(class.bytes);
        let mut freed = Vec::new();
        let Some(room) = room else { return vec![block] };
        self.free_list(class);
        while self.stats.idle_bytes > room {
            let used = self.free_lists.iter_mut().filter(|free_list| !free_list.blocks.is_empty());
            let Some(stale) = used.min_by_key(|free_list| free_list.used_at) else { break };
            if stale.used_at == self.clock {
                freed.push(block); // only this class is left, and its idle blocks are as good
                return freed;
            }
            freed.extend(stale.pop());
            self.stats.idle_bytes -= stale.block_bytes;
        }
        self.stats.idle_bytes += class.bytes;
        self.free_list(class).blocks.push(block);
        freed
    }

    fn forget(&mut self, class: SizeClass) {
        self.stats.in_use_bytes -= class.bytes;
    }

    /// Returns the blocks that nothing has used since the last call, to be freed.
    fn age(&mut self) -> Vec<Arc<dyn Allocation>> {
        let mut freed = Vec::new();
        for free_list in &mut self.free_lists {
            self.stats.idle_bytes -= free_list.unused * free_list.block_bytes;
            freed.extend(free_list.blocks.drain(..free_list.unused));
            free_list.unused = free_list.blocks.len();
        }
        freed
    }

    /// Returns blocks to be freed until at most `idle_bytes` are idle, first those of the least recently used
    /// classes.
    fn shrink_to(&mut self, idle_bytes: usize) -> Vec<Arc<dyn Allocation>> {
        let mut freed = Vec::new();
        while self.stats.idle_bytes > idle_bytes {
            let used = self.free_lists.iter_mut().filter(|free_list| !free_list.blocks.is_empty());
            let Some(stale) = used.min_by_key(|free_list| free_list.used_at) else { break };
            freed.extend(stale.pop());
            self.stats.idle_bytes -= stale.block_bytes;
        }
        freed
    }

    fn empty(&mut self) -> Vec<FreeList> {
        self.stats.idle_bytes = 0;
        std::mem::take(&mut self.free_lists)
    }

    fn free_list(&mut self, class: SizeClass) -> &mut FreeList {
        self.clock += 1;
        if self.free_lists.len() <= class.index {
            self.free_lists.resize_with(class.index + 1, FreeList::default);
        }
        let free_list = &mut self.free_lists[class.index];
        free_list.used_at = self.clock;
        free_list.block_bytes = class.bytes;
        free_list
    }
}

/// A block in use. It drops with the last handle of the taken buffer.
#[derive(Debug)]
struct PooledBlock {
    /// `None` only during drop.
    block: Option<Arc<dyn Allocation>>,
    class: SizeClass,
    /// Weak, because buffers may outlive their pool and must not keep its idle blocks alive.
    pool: Weak<PoolInner>,
}

impl PooledBlock {
    fn block(&self) -> &dyn Allocation {
        self.block.as_deref().unwrap_or_else(|| unreachable!("only drop takes the block out"))
    }
}

impl Drop for PooledBlock {
    fn drop(&mut self) {
        let (Some(block), Some(pool)) = (self.block.take(), self.pool.upgrade()) else { return };
        let freed = pool.free_lists().map(|mut free_lists| free_lists.put_back(self.class, block));
        drop(freed); // after the lock, because freeing a mapping is slow
    }
}

// SAFETY: every property is the block's, which is held until drop (M1); the pool checked that it had the only
// handle (M2).
unsafe impl Allocation for PooledBlock {
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

/// Blocks from this length on are allocated only if enough memory is available. The check takes less than a
/// tenth of the time that the kernel needs to fill the pages.
const CHECKED_FROM_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct HostSource;

impl MemorySource for HostSource {
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
