//! Shared, immutable bytes: a pointer, a length, and a share of the allocation that keeps them alive.

#![expect(unsafe_code, reason = "a slice is formed from the pointer here, and nowhere above")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Bound, RangeBounds};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;

use super::allocation::{FencePair, MemoryKind, innermost};
use super::host::{BytesMemory, StaticMemory, VecMemory};
use super::{Access, Allocation, BufferMut, Fence, Place};
use crate::error::{Error, ErrorKind, Result};

/// Shared, immutable bytes in one [`Place`]. A clone or a slice shares the memory; the last handle frees it.
///
/// There is no `Deref`: [`as_slice`](Self::as_slice) returns a slice only where no one else can write the
/// bytes. Device memory, mapped files and other places offer a pointer and [`copy_to`](Self::copy_to). An
/// empty buffer keeps no allocation alive.
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
    /// `None` if the buffer is empty.
    owner: Option<Arc<dyn Allocation>>,
    fence: Option<Arc<dyn Fence>>,
    kind: MemoryKind,
}

// SAFETY: the pointer reaches only memory that the allocation, itself Send, keeps there (M1), and only to
// read (M2).
unsafe impl Send for Buffer {}
// SAFETY: a shared handle only reads bytes that no one writes (M2), and copies those that others write as M5
// says; the allocation and the fence are Sync.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Creates an empty buffer in host memory. Allocates nothing.
    pub const fn new() -> Self {
        Self::empty(MemoryKind::HOST)
    }

    /// Creates a buffer of all bytes of an allocation.
    ///
    /// # Safety
    ///
    /// All bytes are initialised, or will be before the fence that the caller attaches next is ready. No
    /// [`BufferMut`] of them exists.
    pub unsafe fn from_allocation(allocation: Arc<dyn Allocation>) -> Self {
        let (start, len, kind) = (allocation.base().as_ptr(), allocation.len(), MemoryKind::of(&*allocation));
        Self::part_of(Some(allocation), start, len, kind)
    }

    /// Returns the number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the place of the bytes.
    pub const fn place(&self) -> Place {
        self.kind.place()
    }

    /// Returns which code may access the bytes.
    pub const fn access(&self) -> Access {
        self.kind.access
    }

    /// Returns the address of the first byte. It is valid as long as a handle lives, and dangling if the
    /// buffer is empty. Outside [`Access::Owned`] it is for the kernel or a device: the CPU must not form a
    /// slice from it.
    pub const fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Returns the bytes if no one else can write them and they are ready: [`Access::Owned`], no fence
    /// pending.
    #[inline]
    pub fn as_slice(&self) -> Option<&[u8]> {
        if self.kind.access != Access::Owned || !self.is_ready() {
            return None;
        }
        // SAFETY: the handle keeps them there (M1), unwritten (M2), and they were filled before this handle (M4).
        Some(unsafe { slice::from_raw_parts(self.start, self.len) })
    }

    /// Returns true if the CPU can load the bytes and they are ready: no [`Access::Remote`], no fence pending.
    #[inline]
    pub(crate) fn is_readable(&self) -> bool {
        self.kind.access != Access::Remote && self.is_ready()
    }

    /// Returns the innermost allocation, below any pool. A backend recognises its own memory by downcasting
    /// it (`&dyn Allocation` is `&dyn Any`). `None` for an empty buffer.
    pub fn allocation(&self) -> Option<&dyn Allocation> {
        self.owner.as_deref().map(innermost)
    }

    /// Returns a part of the bytes, which shares the memory. Takes constant time.
    ///
    /// # Panics
    ///
    /// If the range starts after its end or ends beyond [`len`](Self::len), as with slices.
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

    /// Splits off the first `at` bytes and returns them. The rest stays in this buffer. Takes constant time.
    ///
    /// # Panics
    ///
    /// If `at` is beyond [`len`](Self::len).
    #[must_use = "the bytes split off are in the returned buffer"]
    pub fn split_to(&mut self, at: usize) -> Self {
        let head = self.slice(..at);
        self.keep(at, self.len);
        head
    }

    /// Splits off the bytes from `at` on and returns them. The first `at` stay in this buffer. Takes constant
    /// time.
    ///
    /// # Panics
    ///
    /// If `at` is beyond [`len`](Self::len).
    #[must_use = "the bytes split off are in the returned buffer"]
    pub fn split_off(&mut self, at: usize) -> Self {
        let tail = self.slice(at..);
        self.keep(0, at);
        tail
    }

    /// Appends a part that a split took off: `other` must start where this buffer ends, in the same
    /// allocation, with the same fence. An empty buffer joins any other.
    ///
    /// # Errors
    ///
    /// `other`, unchanged, if the two are not adjacent parts.
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

    /// Copies the bytes to `dst`. Blocks until the fence is ready.
    ///
    /// # Errors
    ///
    /// `Invalid` if `dst` has another length; any error of the fence or of the place's copy function.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<()> {
        // SAFETY: the same bytes, as possibly uninitialised ones: `copy_out` only ever writes initialised
        // bytes (M4).
        let dst = unsafe { &mut *(dst as *mut [u8] as *mut [MaybeUninit<u8>]) };
        self.copy_to_uninit(dst)
    }

    /// As [`copy_to`](Self::copy_to), into memory that need not be initialised. On success, all of it is.
    pub fn copy_to_uninit(&self, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        same_len(self.len, dst.len())?;
        if let Some(fence) = &self.fence {
            fence.wait()?;
        }
        let Some(owner) = &self.owner else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get();
        // SAFETY: a handle's range is in bounds (M1), initialised once the fence is ready (M4), and unwritten
        // (M2).
        unsafe { owner.copy_out(offset, dst) }
    }

    /// Returns a copy of the bytes. Blocks until the fence is ready.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut copy = Vec::with_capacity(self.len);
        self.copy_to_uninit(&mut copy.spare_capacity_mut()[..self.len])?;
        // SAFETY: the copy succeeded, so it initialised this many bytes (M4).
        unsafe { copy.set_len(self.len) };
        Ok(copy)
    }

    /// Converts the buffer into a writable one without a copy. Its length and capacity are this buffer's
    /// length.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, unless this is the only handle of the allocation, the allocation is writable,
    /// and no fence is pending.
    pub fn try_into_mut(mut self) -> Result<BufferMut, Self> {
        let sole = |owner: &mut Arc<dyn Allocation>| owner.writable() && Arc::get_mut(owner).is_some();
        if !self.is_ready() || !self.owner.as_mut().is_none_or(sole) {
            return Err(self);
        }
        Ok(BufferMut::part_of(self.owner, self.start, self.len, self.len, self.kind))
    }

    /// Converts the buffer back into the `Vec` it was created from, without a copy.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, unless it was created from a `Vec`, still starts at its first byte, is the only
    /// handle, and has no fence pending. [`to_vec`](Self::to_vec) always works, but copies.
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

    /// Converts the buffer into [`Bytes`], without a copy.
    ///
    /// # Errors
    ///
    /// The buffer, unchanged, if [`as_slice`](Self::as_slice) returns `None`.
    pub fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.as_slice() {
            Some(_) => Ok(Bytes::from_owner(Readable(self))),
            None => Err(self),
        }
    }

    /// Returns the fence that reports when the bytes may be read, if one was attached.
    pub fn fence(&self) -> Option<&Arc<dyn Fence>> {
        self.fence.as_ref()
    }

    /// Attaches `fence`: the bytes may be read only once it is ready too. It does not affect earlier clones
    /// and slices.
    #[must_use]
    pub fn with_fence(mut self, fence: Arc<dyn Fence>) -> Self {
        self.fence = Some(match self.fence.take() {
            Some(earlier) if !earlier.is_ready() => Arc::new(FencePair(earlier, fence)),
            _ => fence,
        });
        self
    }

    /// Creates a buffer in another place whose bytes the CPU can touch. `bytes` is not empty.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn placed(bytes: Bytes, place: Place) -> Self {
        debug_assert!(place.cpu_can_touch() && !bytes.is_empty());
        // SAFETY: M4: `Bytes` are initialised, and M2: immutable for their life.
        unsafe { Self::from_allocation(Arc::new(BytesMemory::new(bytes, place))) }
    }

    /// Returns `len` bytes from `start` on of an allocation of that `kind`. The caller has filled them.
    pub(super) fn part_of(
        owner: Option<Arc<dyn Allocation>>,
        start: *mut u8,
        len: usize,
        kind: MemoryKind,
    ) -> Self {
        match len {
            0 => Self::empty(kind),
            _ => Self { start, len, owner, fence: None, kind },
        }
    }

    const fn empty(kind: MemoryKind) -> Self {
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
            *self = Self::empty(self.kind);
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

/// A buffer whose `as_slice` has returned a slice: a fence stays ready and access never changes.
struct Readable(Buffer);

impl AsRef<[u8]> for Readable {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// Returns `Invalid` unless a copy's destination has exactly as many bytes as its source.
pub(super) fn same_len(bytes: usize, room: usize) -> Result<()> {
    if bytes == room {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("a copy of {bytes} bytes into a slice of {room}")))
}

fn same<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

const _: () = assert!(size_of::<Buffer>() <= 56);
