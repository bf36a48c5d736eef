//! Unique, writable bytes, filled from the front and then frozen.

#![expect(unsafe_code, reason = "slices of the filled and the spare part are formed from the pointer here")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use super::allocation::{MemoryKind, innermost};
use super::buffer::same_len;
use super::host::{HostMemory, VecMemory};
use super::{Access, Allocation, Buffer, Place};
use crate::error::{Error, ErrorKind, Result};

/// Unique, writable bytes in one [`Place`]: the first [`len`](Self::len) of [`capacity`](Self::capacity) are filled.
/// It never grows. [`freeze`](Self::freeze) makes the filled part a [`Buffer`].
///
/// ```
/// use towline::BufferMut;
///
/// let mut buffer = BufferMut::with_capacity(8);
/// buffer.extend_from_slice(b"tow")?;
/// buffer.extend_from_slice(b"line!")?;
/// assert!(buffer.extend_from_slice(b"!").is_err()); // full
/// assert_eq!(buffer.freeze().as_slice(), Some(&b"towline!"[..]));
/// # Ok::<(), towline::Error>(())
/// ```
pub struct BufferMut {
    start: *mut u8,
    len: usize,
    capacity: usize,
    /// `None` if the capacity is zero.
    owner: Option<Arc<dyn Allocation>>,
    kind: MemoryKind,
}

// SAFETY: the pointer reaches only memory that the allocation, itself Send, keeps there (M1), through one
// writer (M2).
unsafe impl Send for BufferMut {}
// SAFETY: writing needs `&mut`; a shared reference only reads (M2), and the allocation is Sync.
unsafe impl Sync for BufferMut {}

impl BufferMut {
    /// Creates a buffer without capacity in host memory. Allocates nothing.
    pub const fn new() -> Self {
        Self::empty(MemoryKind::HOST)
    }

    /// Creates a buffer of host memory with this capacity. It is aligned to 64 bytes, from 4 KiB on to a
    /// page, and from 2 MiB on to 2 MiB. From 2 MiB on it is a mapping of its own, in huge pages where the
    /// system has them.
    ///
    /// # Panics
    ///
    /// If the system has not enough memory. [`with_alignment`](Self::with_alignment) returns an error
    /// instead.
    pub fn with_capacity(capacity: usize) -> Self {
        Self::on_host(capacity, 1, false).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`with_capacity`](Self::with_capacity), aligned to at least `align` bytes.
    ///
    /// # Errors
    ///
    /// `Invalid` if `align` is no power of two, `TooLarge` if the system has not enough memory.
    pub fn with_alignment(capacity: usize, align: usize) -> Result<Self> {
        Self::on_host(capacity, align, false)
    }

    /// Creates a buffer of `len` zeroes in host memory, aligned as in [`with_capacity`](Self::with_capacity).
    /// For other places, see [`Arena::take_zeroed`](super::Arena::take_zeroed) and
    /// [`Pool::take_zeroed`](super::Pool::take_zeroed).
    ///
    /// # Panics
    ///
    /// If the system has not enough memory.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::on_host(len, 1, true).unwrap_or_else(|error| panic!("{error}"));
        buffer.len = len;
        buffer
    }

    /// Creates a buffer whose capacity is all of an allocation. No byte is filled.
    ///
    /// # Errors
    ///
    /// The allocation, if it is not writable or this is not its only handle.
    pub fn from_allocation(mut allocation: Arc<dyn Allocation>) -> Result<Self, Arc<dyn Allocation>> {
        if !allocation.writable() || Arc::get_mut(&mut allocation).is_none() {
            return Err(allocation);
        }
        let (start, capacity) = (allocation.base().as_ptr(), allocation.len());
        let kind = MemoryKind::of(&*allocation);
        Ok(Self::part_of(Some(allocation), start, 0, capacity, kind))
    }

    /// Returns the number of filled bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if no byte is filled.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the capacity in bytes, filled ones included.
    pub const fn capacity(&self) -> usize {
        self.capacity
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
    /// capacity is zero.
    pub const fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Returns the address of the first byte, to write to. Outside [`Access::Owned`] it is for the kernel or
    /// a device.
    pub const fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    /// Returns the filled part, if no one else can write it: [`Access::Owned`].
    #[inline]
    pub fn as_slice(&self) -> Option<&[u8]> {
        // SAFETY: the handle keeps the bytes there (M1), writes need `&mut self` (M2), and `len` counts
        // filled ones (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts(self.start, self.len) })
    }

    /// Returns the filled part to change, if no one else can write it.
    #[inline]
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        // SAFETY: the handle keeps the bytes there (M1), is the only one (M2), and `len` counts filled ones
        // (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts_mut(self.start, self.len) })
    }

    /// Returns the part that is not filled yet, if no one else can write it. Call [`set_len`](Self::set_len)
    /// after filling it.
    #[inline]
    pub fn spare_mut(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        let spare = self.start.wrapping_add(self.len).cast();
        // SAFETY: the rest of the capacity is there (M1), belongs to this handle alone (M2), and may be
        // uninitialised (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts_mut(spare, self.capacity - self.len) })
    }

    /// Returns the innermost allocation, below any pool: see [`Buffer::allocation`].
    pub fn allocation(&self) -> Option<&dyn Allocation> {
        self.owner.as_deref().map(innermost)
    }

    /// Sets the length of the filled part.
    ///
    /// # Safety
    ///
    /// `len` is at most [`capacity`](Self::capacity), and that many bytes are initialised.
    pub const unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity, "filled beyond the capacity");
        self.len = len;
    }

    /// Sets the length to zero. The capacity stays.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Shortens the filled part to `len` bytes. Does nothing if it is not longer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Sets the length of the filled part to `len`: appends bytes of `value`, or drops the bytes beyond
    /// `len`. Safe code can then write the content in place, for example in arena memory.
    ///
    /// ```
    /// let mut buffer = towline::Arena::new(1 << 20)?.take(1000)?;
    /// buffer.resize(1000, 0)?;
    /// for (at, byte) in buffer.as_mut_slice().expect("the CPU can write it").iter_mut().enumerate() {
    ///     *byte = at as u8;
    /// }
    /// # assert_eq!(buffer.freeze().as_slice().map(|bytes| bytes[999]), Some(231));
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As with [`extend_from_slice`](Self::extend_from_slice). Nothing is appended then.
    pub fn resize(&mut self, len: usize, value: u8) -> Result<()> {
        let Some(more) = len.checked_sub(self.len) else {
            self.truncate(len);
            return Ok(());
        };
        self.room_for(more)?;
        if let Some(spare) = self.spare_mut() {
            spare[..more].fill(MaybeUninit::new(value));
            self.len = len;
            return Ok(());
        }
        let len_before = self.len;
        let piece = vec![value; more.min(BOUNCE_BYTES_MAX)];
        while self.len < len {
            let rest = (len - self.len).min(piece.len());
            self.extend_from_slice(&piece[..rest]).inspect_err(|_| self.truncate(len_before))?;
        }
        Ok(())
    }

    /// Appends a copy of `src`. Works in every place.
    ///
    /// # Errors
    ///
    /// `TooLarge` if `src` exceeds the remaining capacity; any error of the place's copy function. Nothing is
    /// appended then.
    pub fn extend_from_slice(&mut self, src: &[u8]) -> Result<()> {
        self.room_for(src.len())?;
        let Some(owner) = self.owner.as_ref().filter(|_| !src.is_empty()) else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get() + self.len;
        // SAFETY: `room_for` keeps it in bounds (M1), and this handle alone has a writable range (M2).
        unsafe { owner.copy_in(offset, src) }?;
        self.len += src.len();
        Ok(())
    }

    /// Appends a copy of `source`, from any place into any place. Blocks until its fence is ready. It takes
    /// one copy if the CPU can access either side, and otherwise two, through a piece of host memory.
    ///
    /// # Errors
    ///
    /// As with [`extend_from_slice`](Self::extend_from_slice). Nothing is appended then.
    pub fn fill_from(&mut self, source: &Buffer) -> Result<()> {
        self.room_for(source.len())?;
        if let Some(spare) = self.spare_mut() {
            source.copy_to_uninit(&mut spare[..source.len()])?;
            self.len += source.len();
            return Ok(());
        }
        if let Some(fence) = source.fence() {
            fence.wait()?;
        }
        if let Some(bytes) = source.as_slice() {
            return self.extend_from_slice(bytes);
        }
        let len_before = self.len;
        self.fill_by_bounce(source).inspect_err(|_| self.truncate(len_before))
    }

    /// Passes the remaining capacity to `fill`, appends the bytes that it wrote to the front, and returns
    /// their number. A read from a file or a socket thus goes straight to its destination, without zeroing it
    /// first.
    ///
    /// ```
    /// use std::fs::File;
    ///
    /// let file = File::open("Cargo.toml")?;
    /// let mut buffer = towline::BufferMut::with_capacity(100);
    /// let n = buffer.fill_with(|room| {
    ///     let (filled, _rest) = rustix::io::pread(&file, room, 0).map_err(std::io::Error::from)?;
    ///     Ok(filled)
    /// })?;
    /// assert_eq!(buffer.len(), n);
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Any error of `fill`, and `Unsupported` outside [`Access::Owned`]. Nothing is appended then.
    ///
    /// # Panics
    ///
    /// If `fill` returns a slice that is not the front of its argument.
    pub fn fill_with(
        &mut self,
        fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<&mut [u8]>,
    ) -> Result<usize> {
        let place = self.place();
        let room = self.spare_mut().ok_or_else(|| {
            let why = format!("{place} memory cannot be filled in place: use fill_from or extend_from_slice");
            Error::new(ErrorKind::Unsupported, why)
        })?;
        let (start, room_len) = (room.as_ptr().addr(), room.len());
        let filled = fill(room)?;
        let n = filled.len();
        // Initialised bytes elsewhere would prove nothing about the remaining capacity.
        let in_front = n <= room_len && (n == 0 || filled.as_ptr().addr() == start);
        assert!(in_front, "`fill` returned a slice that is not the front of its argument");
        self.len += n;
        Ok(n)
    }

    /// Copies the filled part to `dst`.
    ///
    /// # Errors
    ///
    /// `Invalid` if `dst` has another length; any error of the place's copy function.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<()> {
        same_len(self.len, dst.len())?;
        let Some(owner) = self.owner.as_ref().filter(|_| self.len > 0) else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get();
        // SAFETY: the same bytes, as possibly uninitialised ones: `copy_out` only ever writes initialised
        // bytes (M4).
        let dst = unsafe { &mut *(dst as *mut [u8] as *mut [MaybeUninit<u8>]) };
        // SAFETY: the filled part is in bounds (M1), initialised (M4), and writes need `&mut self` (M2).
        unsafe { owner.copy_out(offset, dst) }
    }

    /// Splits off the capacity from `at` on, with the filled bytes in it, and returns it: two unique buffers
    /// of one allocation. `at` counts capacity, not filled bytes. Takes constant time.
    ///
    /// # Panics
    ///
    /// If `at` is beyond [`capacity`](Self::capacity).
    ///
    /// ```
    /// let mut head = towline::BufferMut::zeroed(6);
    /// let tail = head.split_off(4);
    /// assert_eq!((head.len(), tail.len()), (4, 2));
    /// head.rejoin(tail).unwrap();
    /// assert_eq!(head.len(), 6);
    /// ```
    #[must_use = "the capacity split off is in the returned buffer"]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.capacity, "split at {at} of a capacity of {}", self.capacity);
        let tail = Self::part_of(
            self.owner.clone(),
            self.start.wrapping_add(at),
            self.len.saturating_sub(at),
            self.capacity - at,
            self.kind,
        );
        self.limit(at);
        tail
    }

    /// Appends a part that [`split_off`](Self::split_off) took off. `other` must start where this buffer
    /// ends, in the same allocation. This buffer must be full or `other` empty, so that the filled part stays
    /// contiguous. A buffer without capacity joins any other.
    ///
    /// # Errors
    ///
    /// `other`, unchanged, if the two are not adjacent parts.
    pub fn rejoin(&mut self, other: Self) -> Result<(), Self> {
        if other.capacity == 0 {
            return Ok(());
        }
        if self.capacity == 0 {
            *self = other;
            return Ok(());
        }
        let same_owner = match (&self.owner, &other.owner) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        };
        let in_front = self.len == self.capacity || other.len == 0;
        if !same_owner || !in_front || self.start.wrapping_add(self.capacity) != other.start {
            return Err(other);
        }
        self.capacity += other.capacity;
        self.len += other.len;
        Ok(())
    }

    /// Converts the filled part into a shared, immutable buffer. Takes constant time.
    pub fn freeze(self) -> Buffer {
        Buffer::part_of(self.owner, self.start, self.len, self.kind)
    }

    /// Returns the range at `start` of an allocation of that `kind`. The caller has the only handle of the
    /// range.
    pub(super) fn part_of(
        owner: Option<Arc<dyn Allocation>>,
        start: *mut u8,
        len: usize,
        capacity: usize,
        kind: MemoryKind,
    ) -> Self {
        match capacity {
            0 => Self::empty(kind),
            _ => Self { start, len, capacity, owner, kind },
        }
    }

    /// Returns a buffer without capacity in `place`.
    pub(super) const fn empty_in(place: Place) -> Self {
        Self::empty(MemoryKind::empty_in(place))
    }

    /// Drops the capacity beyond `capacity`.
    pub(super) fn limit(&mut self, capacity: usize) {
        if capacity == 0 {
            *self = Self::empty(self.kind);
        } else {
            self.capacity = self.capacity.min(capacity);
            self.len = self.len.min(capacity);
        }
    }

    const fn empty(kind: MemoryKind) -> Self {
        Self { start: NonNull::dangling().as_ptr(), len: 0, capacity: 0, owner: None, kind }
    }

    fn on_host(capacity: usize, align: usize, zeroed: bool) -> Result<Self> {
        if !align.is_power_of_two() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("an alignment of {align} is no power of two"),
            ));
        }
        if capacity == 0 {
            return Ok(Self::new());
        }
        let memory = HostMemory::new(capacity, align, zeroed)?;
        let start = memory.base().as_ptr();
        Ok(Self::part_of(Some(Arc::new(memory)), start, 0, capacity, MemoryKind::HOST))
    }

    const fn is_owned(&self) -> bool {
        matches!(self.kind.access, Access::Owned)
    }

    fn room_for(&self, more: usize) -> Result<()> {
        let room = self.capacity - self.len;
        if more <= room {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TooLarge, format!("{more} bytes into a remaining capacity of {room}")))
    }

    fn fill_by_bounce(&mut self, source: &Buffer) -> Result<()> {
        let mut bounce = Self::with_capacity(source.len().min(BOUNCE_BYTES_MAX));
        let mut rest = source.clone();
        while !rest.is_empty() {
            bounce.clear();
            bounce.fill_from(&rest.split_to(rest.len().min(bounce.capacity)))?;
            self.extend_from_slice(bounce.as_slice().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Large enough to hide the fixed cost of a device copy, small enough for a processor's cache.
const BOUNCE_BYTES_MAX: usize = 1 << 20;

impl Default for BufferMut {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferMut")
            .field("place", &format_args!("{}", self.place()))
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}

impl From<Vec<u8>> for BufferMut {
    fn from(vec: Vec<u8>) -> Self {
        if vec.capacity() == 0 {
            return Self::new();
        }
        let (len, capacity) = (vec.len(), vec.capacity());
        let memory = VecMemory::new(vec);
        let start = memory.base().as_ptr();
        Self::part_of(Some(Arc::new(memory)), start, len, capacity, MemoryKind::HOST)
    }
}

const _: () = assert!(size_of::<BufferMut>() <= 56);
