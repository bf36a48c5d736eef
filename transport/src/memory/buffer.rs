//! Shared, immutable bytes: a pointer, a length, and a share of the allocation that keeps them there.

#![expect(unsafe_code, reason = "a slice is formed from the pointer here, and nowhere above")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Bound, RangeBounds};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;

use super::allocation::{Both, Kind, innermost};
use super::host::{BytesMemory, StaticMemory, VecMemory};
use super::{Access, Allocation, BufferMut, Fence, Place};
use crate::error::{Error, ErrorKind, Result};

/// Shared, immutable bytes in one [`Place`]. A clone or a slice shares the memory; the last handle frees it.
///
/// There is no `Deref`: [`as_slice`](Self::as_slice) exists only where nobody else can write the bytes. Device memory,
/// mapped files and the like offer a pointer and [`copy_to`](Self::copy_to). An empty buffer keeps nothing alive.
///
/// ```
/// use towline::{Buffer, Place};
///
/// let whole = Buffer::from(vec![1, 2, 3, 4]);
/// let tail = whole.slice(2..);
/// assert_eq!(tail.as_slice(), Some(&[3, 4][..]));
/// assert_eq!(tail.as_ptr(), whole.as_ptr().wrapping_add(2));
/// assert_eq!(tail.place(), Place::Host);
///
/// drop(tail);
/// assert_eq!(whole.try_into_vec().unwrap(), [1, 2, 3, 4]); // the same Vec, not a copy
/// ```
#[derive(Clone)]
pub struct Buffer {
    start: *mut u8,
    len: usize,
    /// `None` where there are no bytes.
    owner: Option<Arc<dyn Allocation>>,
    fence: Option<Arc<dyn Fence>>,
    kind: Kind,
}

// SAFETY: the pointer reaches only what the allocation, itself Send, keeps there (M1), and only to read (M2).
unsafe impl Send for Buffer {}
// SAFETY: a shared handle only reads bytes that nobody writes (M2); the allocation and the fence are Sync.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// No bytes, in host memory. Allocates nothing.
    pub const fn new() -> Self {
        Self::nothing(Kind::HOST)
    }

    /// All bytes of an allocation.
    ///
    /// # Safety
    ///
    /// All of them are initialised, or will be before the fence that is attached next is ready, and no
    /// [`BufferMut`] of them exists.
    pub unsafe fn from_allocation(allocation: Arc<dyn Allocation>) -> Self {
        let (start, len, kind) = (allocation.base().as_ptr(), allocation.len(), Kind::of(&*allocation));
        Self::part_of(Some(allocation), start, len, kind)
    }

    /// The number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes live.
    pub const fn place(&self) -> Place {
        self.kind.place()
    }

    /// Who may touch the bytes.
    pub const fn access(&self) -> Access {
        self.kind.access
    }

    /// The first byte's address: valid as long as a handle lives, dangling where the buffer is empty. Outside
    /// [`Access::Owned`] it is for the kernel or the hardware, not for the CPU to form a slice from.
    pub const fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// The bytes, where nobody else can write them and they are ready: [`Access::Owned`], no fence pending.
    #[inline]
    pub fn as_slice(&self) -> Option<&[u8]> {
        if self.kind.access != Access::Owned || !self.is_ready() {
            return None;
        }
        // SAFETY: the handle keeps them there (M1), unwritten (M2), and they were filled before this handle (M4).
        Some(unsafe { slice::from_raw_parts(self.start, self.len) })
    }

    /// The allocation at the bottom, below any pool, so that a backend recognises memory of its own by downcasting
    /// (`&dyn Allocation` is `&dyn Any`). `None` for an empty buffer.
    pub fn allocation(&self) -> Option<&dyn Allocation> {
        self.owner.as_deref().map(innermost)
    }

    /// A part of the bytes, sharing the memory, in constant time.
    ///
    /// # Panics
    ///
    /// Where the range starts after its end or ends beyond [`len`](Self::len), as with slices.
    #[inline]
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let begin = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&at) => at.saturating_add(1),
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len,
        };
        let mut part = self.clone();
        part.keep(begin, end);
        part
    }

    /// Takes the first `at` bytes off, leaving the rest here. Constant time.
    ///
    /// # Panics
    ///
    /// Where `at` is beyond [`len`](Self::len).
    #[must_use = "the bytes taken off are in what is returned"]
    pub fn split_to(&mut self, at: usize) -> Self {
        let head = self.slice(..at);
        self.keep(at, self.len);
        head
    }

    /// Takes the bytes from `at` on off, leaving the first `at` here. Constant time.
    ///
    /// # Panics
    ///
    /// Where `at` is beyond [`len`](Self::len).
    #[must_use = "the bytes taken off are in what is returned"]
    pub fn split_off(&mut self, at: usize) -> Self {
        let tail = self.slice(at..);
        self.keep(0, at);
        tail
    }

    /// Puts back what a split took off the end: `other` must start where this ends, in the same allocation, behind the
    /// same fence. An empty side joins anything.
    ///
    /// # Errors
    ///
    /// `other`, unchanged, where the two do not meet.
    ///
    /// ```
    /// let mut head = towline::Buffer::from("towline");
    /// let tail = head.split_off(3);
    /// head.rejoin(tail).unwrap();
    /// assert_eq!(head.as_slice(), Some(&b"towline"[..]));
    /// ```
    pub fn rejoin(&mut self, other: Self) -> Result<(), Self> {
        if other.is_empty() {
            return Ok(());
        }
        if self.is_empty() {
            *self = other;
            return Ok(());
        }
        let same_owner = same(self.owner.as_ref(), other.owner.as_ref());
        let same_fence = same(self.fence.as_ref(), other.fence.as_ref());
        if !same_owner || !same_fence || self.start.wrapping_add(self.len) != other.start {
            return Err(other);
        }
        self.len += other.len;
        Ok(())
    }

    /// Copies the bytes to `dst`, waiting for the fence first.
    ///
    /// # Errors
    ///
    /// `Invalid` where `dst` has another length; whatever the fence or the place's copy reports.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<()> {
        // SAFETY: the same bytes as possibly uninitialised ones: `copy_out` only ever writes initialised ones (M4).
        let dst = unsafe { &mut *(dst as *mut [u8] as *mut [MaybeUninit<u8>]) };
        self.copy_to_uninit(dst)
    }

    /// Like [`copy_to`](Self::copy_to), into memory that need not be initialised. On success all of it is.
    pub fn copy_to_uninit(&self, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        same_len(self.len, dst.len())?;
        if let Some(fence) = &self.fence {
            fence.wait()?;
        }
        let Some(owner) = &self.owner else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get();
        // SAFETY: a handle's range is in bounds (M1), initialised once the fence is ready (M4), and unwritten (M2).
        unsafe { owner.copy_out(offset, dst) }
    }

    /// A copy of the bytes, waiting for the fence first.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut copy = Vec::with_capacity(self.len);
        self.copy_to_uninit(&mut copy.spare_capacity_mut()[..self.len])?;
        // SAFETY: the copy succeeded, so it initialised this many bytes (M4).
        unsafe { copy.set_len(self.len) };
        Ok(copy)
    }

    /// The same bytes as a writable buffer, without a copy: length and capacity are this buffer's.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, unless this is the only handle of the allocation, it is writable, and no fence is
    /// pending.
    pub fn try_into_mut(mut self) -> Result<BufferMut, Self> {
        let sole = |owner: &mut Arc<dyn Allocation>| owner.writable() && Arc::get_mut(owner).is_some();
        if !self.is_ready() || !self.owner.as_mut().is_none_or(sole) {
            return Err(self);
        }
        Ok(BufferMut::part_of(self.owner, self.start, self.len, self.len, self.kind))
    }

    /// The `Vec` this was born as, without a copy.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, unless it was born a `Vec`, still starts where that does, is the only handle, and no
    /// fence is pending. [`to_vec`](Self::to_vec) always works, by copying.
    pub fn try_into_vec(mut self) -> Result<Vec<u8>, Self> {
        if !self.is_ready() {
            return Err(self);
        }
        let Some(owner) = &mut self.owner else { return Ok(Vec::new()) };
        // SAFETY: M4: a shared handle's bytes, here from the Vec's first on, are initialised.
        match unsafe { VecMemory::reclaim(owner, self.start, self.len) } {
            Some(vec) => Ok(vec),
            None => Err(self),
        }
    }

    /// The same bytes as [`Bytes`], without a copy.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, where [`as_slice`](Self::as_slice) has nothing to offer.
    pub fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.as_slice() {
            Some(_) => Ok(Bytes::from_owner(Readable(self))),
            None => Err(self),
        }
    }

    /// What says when the bytes may be read, if they may not have been there from the start.
    pub fn fence(&self) -> Option<&Arc<dyn Fence>> {
        self.fence.as_ref()
    }

    /// The same bytes, to be read only once `fence` is ready too; earlier clones and slices do not wait for it.
    #[must_use]
    pub fn with_fence(mut self, fence: Arc<dyn Fence>) -> Self {
        self.fence = Some(match self.fence.take() {
            Some(earlier) if !earlier.is_ready() => Arc::new(Both(earlier, fence)),
            _ => fence,
        });
        self
    }

    /// Bytes that stand in for some in another place whose bytes the CPU can touch. They are not empty.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn placed(bytes: Bytes, place: Place) -> Self {
        debug_assert!(place.cpu_can_touch() && !bytes.is_empty());
        // SAFETY: M4: `Bytes` are initialised, and M2: immutable for their life.
        unsafe { Self::from_allocation(Arc::new(BytesMemory::new(bytes, place))) }
    }

    /// `len` bytes from `start` on, which the caller has filled, of an allocation with that `kind`.
    pub(super) fn part_of(
        owner: Option<Arc<dyn Allocation>>,
        start: *mut u8,
        len: usize,
        kind: Kind,
    ) -> Self {
        match len {
            0 => Self::nothing(kind),
            _ => Self { start, len, owner, fence: None, kind },
        }
    }

    const fn nothing(kind: Kind) -> Self {
        Self { start: NonNull::dangling().as_ptr(), len: 0, owner: None, fence: None, kind }
    }

    #[inline]
    fn keep(&mut self, begin: usize, end: usize) {
        assert!(
            begin <= end && end <= self.len,
            "range {begin}..{end} is not within a buffer of {}",
            self.len
        );
        if begin == end {
            *self = Self::nothing(self.kind);
        } else {
            self.start = self.start.wrapping_add(begin);
            self.len = end - begin;
        }
    }

    #[inline]
    fn is_ready(&self) -> bool {
        self.fence.as_ref().is_none_or(|fence| fence.is_ready())
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Buffer");
        debug.field("place", &format_args!("{}", self.place())).field("len", &self.len);
        if let Some(fence) = &self.fence {
            debug.field("fence", fence);
        }
        debug.finish()
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(vec: Vec<u8>) -> Self {
        BufferMut::from(vec).freeze()
    }
}

impl From<String> for Buffer {
    fn from(text: String) -> Self {
        Self::from(text.into_bytes())
    }
}

impl From<Bytes> for Buffer {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            return Self::new();
        }
        // SAFETY: M4: `Bytes` are initialised, and M2: immutable for their life.
        unsafe { Self::from_allocation(Arc::new(BytesMemory::new(bytes, Place::Host))) }
    }
}

impl From<&'static [u8]> for Buffer {
    fn from(bytes: &'static [u8]) -> Self {
        if bytes.is_empty() {
            return Self::new();
        }
        // SAFETY: M4: a slice is initialised, and M2: immutable for its life.
        unsafe { Self::from_allocation(Arc::new(StaticMemory::new(bytes))) }
    }
}

impl<const N: usize> From<&'static [u8; N]> for Buffer {
    fn from(bytes: &'static [u8; N]) -> Self {
        Self::from(&bytes[..])
    }
}

impl From<&'static str> for Buffer {
    fn from(text: &'static str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl From<BufferMut> for Buffer {
    fn from(buffer: BufferMut) -> Self {
        buffer.freeze()
    }
}

/// A buffer whose `as_slice` was seen to have its bytes: fences stay ready and access never changes.
struct Readable(Buffer);

impl AsRef<[u8]> for Readable {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// `Invalid` unless a copy has as much room as it has bytes.
pub(super) fn same_len(bytes: usize, room: usize) -> Result<()> {
    if bytes == room {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("a copy of {bytes} bytes into {room} bytes of room")))
}

fn same<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

const _: () = assert!(size_of::<Buffer>() <= 56);
