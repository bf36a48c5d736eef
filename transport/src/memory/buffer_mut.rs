//! Unique, writable bytes: filled from the front, then frozen.

#![expect(unsafe_code, reason = "slices of the filled and the spare part are formed from the pointer here")]

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use super::allocation::{Kind, innermost};
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
    /// `None` where the capacity is zero.
    owner: Option<Arc<dyn Allocation>>,
    kind: Kind,
}

// SAFETY: the pointer reaches only what the allocation, itself Send, keeps there (M1), by one writer (M2).
unsafe impl Send for BufferMut {}
// SAFETY: writing needs `&mut`; a shared reference only reads (M2), and the allocation is Sync.
unsafe impl Sync for BufferMut {}

impl BufferMut {
    /// No capacity, in host memory. Allocates nothing.
    pub const fn new() -> Self {
        Self::nothing(Kind::HOST)
    }

    /// Room for `capacity` bytes of host memory, aligned to 64 bytes; from 4 KiB on to a page; from 2 MiB on mapped,
    /// aligned to 2 MiB, in huge pages where the system has them.
    ///
    /// # Panics
    ///
    /// Where the system has not that much memory; [`with_alignment`](Self::with_alignment) reports it instead.
    pub fn with_capacity(capacity: usize) -> Self {
        Self::on_host(capacity, 1, false).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`with_capacity`](Self::with_capacity), aligned to `align` bytes at least.
    ///
    /// # Errors
    ///
    /// `Invalid` where `align` is no power of two, `TooLarge` where the system has not that much memory.
    pub fn with_alignment(capacity: usize, align: usize) -> Result<Self> {
        Self::on_host(capacity, align, false)
    }

    /// `len` zeroes in host memory, aligned like [`with_capacity`](Self::with_capacity). For other places there are
    /// [`Arena::take_zeroed`](super::Arena::take_zeroed) and [`Pool::take_zeroed`](super::Pool::take_zeroed).
    ///
    /// # Panics
    ///
    /// Where the system has not that much memory.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::on_host(len, 1, true).unwrap_or_else(|error| panic!("{error}"));
        buffer.len = len;
        buffer
    }

    /// All of an allocation as capacity, none of it filled.
    ///
    /// # Errors
    ///
    /// The allocation, where it is not writable or this is not its only handle.
    pub fn from_allocation(mut allocation: Arc<dyn Allocation>) -> Result<Self, Arc<dyn Allocation>> {
        if !allocation.writable() || Arc::get_mut(&mut allocation).is_none() {
            return Err(allocation);
        }
        let (start, capacity) = (allocation.base().as_ptr(), allocation.len());
        let kind = Kind::of(&*allocation);
        Ok(Self::part_of(Some(allocation), start, 0, capacity, kind))
    }

    /// The number of filled bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none is filled.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of bytes there is room for, filled ones included.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where the bytes live.
    pub const fn place(&self) -> Place {
        self.kind.place()
    }

    /// Who may touch the bytes.
    pub const fn access(&self) -> Access {
        self.kind.access
    }

    /// The first byte's address: valid as long as a handle lives, dangling where the capacity is zero.
    pub const fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// The first byte's address, to write to. Outside [`Access::Owned`] it is for the kernel or the hardware.
    pub const fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    /// The filled part, where nobody else can write it: [`Access::Owned`].
    #[inline]
    pub fn as_slice(&self) -> Option<&[u8]> {
        // SAFETY: the handle keeps them there (M1), writes need `&mut self` (M2), and `len` counts filled ones (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts(self.start, self.len) })
    }

    /// The filled part to change, where nobody else can write it.
    #[inline]
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        // SAFETY: the handle keeps them there (M1), is the only one (M2), and `len` counts filled ones (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts_mut(self.start, self.len) })
    }

    /// The part still to be filled, where nobody else can write it. [`set_len`](Self::set_len) makes it count.
    #[inline]
    pub fn spare_mut(&mut self) -> Option<&mut [MaybeUninit<u8>]> {
        let spare = self.start.wrapping_add(self.len).cast();
        // SAFETY: the rest of the capacity is there (M1), this handle's alone (M2), and may be uninitialised (M4).
        self.is_owned().then(|| unsafe { slice::from_raw_parts_mut(spare, self.capacity - self.len) })
    }

    /// The allocation at the bottom, below any pool: see [`Buffer::allocation`].
    pub fn allocation(&self) -> Option<&dyn Allocation> {
        self.owner.as_deref().map(innermost)
    }

    /// Says that the first `len` bytes are filled.
    ///
    /// # Safety
    ///
    /// `len` is at most [`capacity`](Self::capacity), and that many bytes are initialised.
    pub const unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity, "filled beyond the capacity");
        self.len = len;
    }

    /// Forgets the filled part; the capacity stays.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets what is filled beyond `len`; nothing where less is filled.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the filled part `len` bytes long: appends bytes of `value`, or forgets what is beyond. With it, data can be produced in
    /// place and in safe code, in arena memory for example.
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

    /// Appends a copy of `src`, in any place.
    ///
    /// # Errors
    ///
    /// `TooLarge` where the room does not suffice; whatever the place's copy reports. Nothing is appended then.
    pub fn extend_from_slice(&mut self, src: &[u8]) -> Result<()> {
        self.room_for(src.len())?;
        let Some(owner) = self.owner.as_ref().filter(|_| !src.is_empty()) else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get() + self.len;
        // SAFETY: `room_for` keeps it in bounds (M1), and this handle alone has a writable range (M2).
        unsafe { owner.copy_in(offset, src) }?;
        self.len += src.len();
        Ok(())
    }

    /// Appends a copy of `source`, from any place into any place, waiting for its fence first. It is one copy where
    /// the CPU can touch one side, otherwise two, through a piece of host memory.
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

    /// Appends what `fill` writes to the front of the room that is left, and tells how much that was: a read from a file
    /// or a socket straight into its destination, without zeroing it first.
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
    /// What `fill` reports, and `Unsupported` outside [`Access::Owned`]. Nothing is appended then.
    ///
    /// # Panics
    ///
    /// Where `fill` returns something else than the front of the room it was given.
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
        // Initialised bytes of anywhere else would say nothing about the room.
        let in_front = n <= room_len && (n == 0 || filled.as_ptr().addr() == start);
        assert!(in_front, "what was filled is not the front of the room");
        self.len += n;
        Ok(n)
    }

    /// Copies the filled part to `dst`.
    ///
    /// # Errors
    ///
    /// `Invalid` where `dst` has another length; whatever the place's copy reports.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<()> {
        same_len(self.len, dst.len())?;
        let Some(owner) = self.owner.as_ref().filter(|_| self.len > 0) else { return Ok(()) };
        let offset = self.start.addr() - owner.base().addr().get();
        // SAFETY: the same bytes as possibly uninitialised ones: `copy_out` only ever writes initialised ones (M4).
        let dst = unsafe { &mut *(dst as *mut [u8] as *mut [MaybeUninit<u8>]) };
        // SAFETY: the filled part is in bounds (M1), initialised (M4), and writes need `&mut self` (M2).
        unsafe { owner.copy_out(offset, dst) }
    }

    /// Takes the room from `at` on off, with what is filled of it: two unique buffers of one allocation. `at` counts
    /// capacity, not filled bytes. Constant time.
    ///
    /// # Panics
    ///
    /// Where `at` is beyond [`capacity`](Self::capacity).
    ///
    /// ```
    /// let mut head = towline::BufferMut::zeroed(6);
    /// let tail = head.split_off(4);
    /// assert_eq!((head.len(), tail.len()), (4, 2));
    /// head.rejoin(tail).unwrap();
    /// assert_eq!(head.len(), 6);
    /// ```
    #[must_use = "the room taken off is in what is returned"]
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

    /// Puts back what [`split_off`](Self::split_off) took: `other` must start where this ends, in the same allocation,
    /// and the filled part must stay in front: this is full, or `other` empty. A side without capacity joins anything.
    ///
    /// # Errors
    ///
    /// `other`, unchanged, where the two do not meet.
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

    /// The filled part, shared and immutable from now on. Constant time.
    pub fn freeze(self) -> Buffer {
        Buffer::part_of(self.owner, self.start, self.len, self.kind)
    }

    /// The range at `start` of an allocation of that `kind`, of which the caller has the only handle.
    pub(super) fn part_of(
        owner: Option<Arc<dyn Allocation>>,
        start: *mut u8,
        len: usize,
        capacity: usize,
        kind: Kind,
    ) -> Self {
        match capacity {
            0 => Self::nothing(kind),
            _ => Self { start, len, capacity, owner, kind },
        }
    }

    /// No capacity, in `place`.
    pub(super) const fn nothing_in(place: Place) -> Self {
        Self::nothing(Kind::nothing_in(place))
    }

    /// Gives up the room beyond `capacity`.
    pub(super) fn limit(&mut self, capacity: usize) {
        if capacity == 0 {
            *self = Self::nothing(self.kind);
        } else {
            self.capacity = self.capacity.min(capacity);
            self.len = self.len.min(capacity);
        }
    }

    const fn nothing(kind: Kind) -> Self {
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
        Ok(Self::part_of(Some(Arc::new(memory)), start, 0, capacity, Kind::HOST))
    }

    const fn is_owned(&self) -> bool {
        matches!(self.kind.access, Access::Owned)
    }

    fn room_for(&self, more: usize) -> Result<()> {
        let room = self.capacity - self.len;
        if more <= room {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TooLarge, format!("{more} bytes into {room} bytes of room")))
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

/// Large enough that a device copy's fixed cost does not show, small enough for a processor's cache.
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
        Self::part_of(Some(Arc::new(memory)), start, len, capacity, Kind::HOST)
    }
}

const _: () = assert!(size_of::<BufferMut>() <= 56);
