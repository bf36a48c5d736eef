//! Host memory: aligned heap memory, mappings, and the memory of a `Vec`, of `Bytes` or of a static slice.

#![expect(unsafe_code, reason = "this is where host memory comes from")]

use std::alloc::{self, Layout};
use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{Access, Allocation, Place, huge};
use crate::error::{Error, ErrorKind, Result};

const CACHE_LINE: usize = 64;
const PAGE: usize = 4 << 10;

/// Aligned memory from the heap or, if large, from a mapping of its own.
#[derive(Debug)]
pub(super) struct HostMemory {
    base: NonNull<u8>,
    len: usize,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Heap(Layout),
    Mapped { len_mapped: usize },
}

// SAFETY: plain memory, reached only through the one value that owns it (M2).
unsafe impl Send for HostMemory {}
// SAFETY: a shared reference only gives the address away (M2).
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Allocates `len` bytes, aligned to at least `align`. `len` is not zero; `align` is a power of two.
    pub(super) fn new(len: usize, align: usize, zeroed: bool) -> Result<Self> {
        if len >= huge::PAGE {
            return Self::map(len, align.max(huge::PAGE));
        }
        let align = align.max(if len >= PAGE { PAGE } else { CACHE_LINE });
        Self::heap(len, align, zeroed)
    }

    fn heap(len: usize, align: usize, zeroed: bool) -> Result<Self> {
        assert!(len > 0, "the heap's layouts are not empty");
        let layout = Layout::from_size_align(len, align).map_err(|_| too_large(len))?;
        let base = if zeroed {
            // SAFETY: the layout is not empty, by the assertion above.
            unsafe { alloc::alloc_zeroed(layout) }
        } else {
            // SAFETY: the layout is not empty, by the assertion above.
            unsafe { alloc::alloc(layout) }
        };
        let base = NonNull::new(base).ok_or_else(|| too_large(len))?;
        Ok(Self { base, len, origin: Origin::Heap(layout) })
    }

    /// Maps `align` bytes more than needed and unmaps both ends. Only an aligned mapping gets a huge page
    /// from its first byte on. A fresh mapping is zeroed.
    fn map(len: usize, align: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let len_mapped = len.checked_next_multiple_of(page).ok_or_else(|| too_large(len))?;
        let len_asked = len_mapped.checked_add(align).ok_or_else(|| too_large(len))?;
        if len_asked > isize::MAX as usize {
            return Err(too_large(len));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses replaces nothing (M1).
        let found =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len_asked, protection, MapFlags::PRIVATE) };
        let start = found.map_err(|errno| too_large(len).caused_by(errno))?.cast::<u8>();
        let skip = start.align_offset(align);
        let base = start.wrapping_add(skip);
        unmap(start, skip);
        unmap(base.wrapping_add(len_mapped), len_asked - skip - len_mapped);
        // SAFETY: the advice changes no content. The kernel refuses it where huge pages are off, which costs
        // only speed.
        let _ = unsafe { rustix::mm::madvise(base.cast(), len_mapped, Advice::LinuxHugepage) };
        let base = NonNull::new(base).ok_or_else(|| too_large(len))?;
        Ok(Self { base, len, origin: Origin::Mapped { len_mapped } })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: allocated with this layout, and no handle is left (M1).
            Origin::Heap(layout) => unsafe { alloc::dealloc(self.base.as_ptr(), layout) },
            Origin::Mapped { len_mapped } => unmap(self.base.as_ptr(), len_mapped),
        }
    }
}

// SAFETY: heap or mapped memory stays at its address until drop (M1); no other code has the address (M2).
unsafe impl Allocation for HostMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        true
    }
}

/// The raw parts of a `Vec`, capacity included, from which it can be rebuilt. They are raw because a `Vec`
/// may assume that no other pointer writes its memory.
#[derive(Debug)]
pub(super) struct VecMemory {
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: plain memory, reached only through the one value that owns it (M2).
unsafe impl Send for VecMemory {}
// SAFETY: a shared reference only gives the address away (M2).
unsafe impl Sync for VecMemory {}

impl VecMemory {
    pub(super) fn new(vec: Vec<u8>) -> Self {
        let mut vec = mem::ManuallyDrop::new(vec);
        let capacity = vec.capacity();
        let base = NonNull::new(vec.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Self { base, capacity }
    }

    /// Returns the `Vec` of the first `len` bytes, if `owner` is a `VecMemory` that starts at `start` and
    /// this is its only handle.
    ///
    /// # Safety
    ///
    /// The first `len` bytes from `start` on are within the allocation and initialised.
    pub(super) unsafe fn reclaim(
        owner: &mut Arc<dyn Allocation>,
        start: *const u8,
        len: usize,
    ) -> Option<Vec<u8>> {
        let memory: &mut dyn Any = Arc::get_mut(owner)?;
        let memory = memory.downcast_mut::<Self>()?;
        if !ptr::eq(memory.base.as_ptr(), start) {
            return None;
        }
        let mut vec = memory.take();
        // SAFETY: the caller promises that these bytes are initialised (M4).
        unsafe { vec.set_len(len) };
        Some(vec)
    }

    /// Rebuilds the `Vec`, empty, and leaves the parts of one without capacity.
    fn take(&mut self) -> Vec<u8> {
        let base = mem::replace(&mut self.base, NonNull::dangling());
        let capacity = mem::take(&mut self.capacity);
        // SAFETY: the parts of a `Vec` taken apart, or of one without capacity; no handle is left (M1).
        unsafe { Vec::from_raw_parts(base.as_ptr(), 0, capacity) }
    }
}

impl Drop for VecMemory {
    fn drop(&mut self) {
        drop(self.take());
    }
}

// SAFETY: the memory of a `Vec` that no code touches stays at its address (M1); no other code owns it (M2).
unsafe impl Allocation for VecMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.capacity
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        true
    }
}

/// A share of [`Bytes`].
pub(super) struct BytesMemory {
    base: NonNull<u8>,
    bytes: Bytes,
    place: Place,
}

impl BytesMemory {
    pub(super) fn new(bytes: Bytes, place: Place) -> Self {
        Self { base: address_of(&bytes), bytes, place }
    }
}

impl Drop for BytesMemory {
    /// `Bytes` may have an owner that the application defined. The last handle may drop on the driver thread
    /// or under a link's lock. A panic of that owner's destructor must not reach either.
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(bytes))) {
            tracing::error!("the destructor of a buffer's owner panicked");
            // The payload may have such a destructor too. The payload of a second panic is leaked.
            if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                mem::forget(another);
            }
        }
    }
}

// SAFETY: the value only returns the address; `Bytes`, which keep the memory alive, are Send.
unsafe impl Send for BytesMemory {}
// SAFETY: immutable (M2); `Bytes` are Sync.
unsafe impl Sync for BytesMemory {}

impl fmt::Debug for BytesMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BytesMemory").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

// SAFETY: `Bytes` stay at their address for their life (M1) and are immutable (M2): not writable here.
unsafe impl Allocation for BytesMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn place(&self) -> Place {
        self.place
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        false
    }
}

/// A static slice.
pub(super) struct StaticMemory(&'static [u8]);

impl StaticMemory {
    pub(super) fn new(bytes: &'static [u8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for StaticMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticMemory").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

// SAFETY: a static slice never moves (M1) and is immutable (M2): not writable here.
unsafe impl Allocation for StaticMemory {
    fn base(&self) -> NonNull<u8> {
        address_of(self.0)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self) -> Place {
        Place::Host
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        false
    }
}

fn address_of(bytes: &[u8]) -> NonNull<u8> {
    NonNull::from(bytes).cast()
}

pub(super) fn unmap(start: *mut u8, len: usize) {
    if len == 0 {
        return;
    }
    // Through libc and not `rustix`, whose system calls bypass libc. UCX caches memory registrations and
    // hooks `munmap` in libc to invalidate them. Without the hook, a device would use pages that are no
    // longer at their address.
    // SAFETY: whole pages of a mapping that `memory` made, with no handle to them (M1).
    let done = unsafe { libc::munmap(start.cast(), len) };
    debug_assert!(done == 0, "munmap: {}", std::io::Error::last_os_error());
}

fn too_large(len: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("cannot allocate {len} bytes of host memory"))
}
