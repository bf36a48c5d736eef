//! The allocation behind a buffer: its address, its owner's access rights, and the fence of its content.

#![expect(unsafe_code, reason = "an allocation's promises are what every slice of it rests on")]

use std::any::Any;
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{Place, foreign};
use crate::error::{Error, ErrorKind, Result};

/// The code that may read and write an allocation's bytes. It decides how their pointer may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only this process can write, through its one writable handle: slices may be formed.
    Owned,
    /// The CPU can read, but others may write at any time: other processes, devices, or code of this process
    /// such as an interpreter's. Only pointers and copies are allowed.
    ///
    /// Such memory is sent without being staged: a link reads it while it sends. If it is written meanwhile,
    /// the peer gets any mixture of the old and the new bytes, and nothing else differs. The receiver gets the
    /// memory itself, as foreign memory, only if it is a [`ForeignBlock`](super::ForeignBlock)'s and lent by
    /// `shm`; else not even within one process.
    Foreign,
    /// The CPU cannot load or store there: only `copy_out` and `copy_in` reach the bytes.
    Remote,
}

/// A range of memory that stays allocated until its last handle drops.
///
/// Dropping the implementor frees the memory. The drop may run on any thread, must be short, and must not
/// panic.
///
/// Through the `Any` supertrait a backend recognises memory of its own: see
/// [`Buffer::allocation`](super::Buffer::allocation).
///
/// # Safety
///
/// While the value lives, [`base`](Self::base), [`len`](Self::len), [`place`](Self::place),
/// [`access`](Self::access) and [`writable`](Self::writable) never change, `len` is at most `isize::MAX`, and
/// `base..base + len` stays allocated at that address, from any thread (M1). The value is the memory's only
/// owner. Where it is [`writable`](Self::writable), nothing in this process reads or writes the memory except
/// through handles of this value (M2). Where it is not, nothing in this process writes the memory.
/// [`Access::Owned`] promises the same for every other process and device. [`Access::Foreign`] promises less:
/// others may share, read and write the memory at any time, and Rust code of this process does so by atomic
/// accesses alone (M5).
/// Both promise that the CPU can load from the memory, and can store to it where it is writable. A successful [`copy_out`](Self::copy_out) has initialised all of its destination. Neither copy
/// touches anything beyond the given range and slice.
pub unsafe trait Allocation: Any + Debug + Send + Sync {
    /// Returns the address of the first byte.
    fn base(&self) -> NonNull<u8>;

    /// Returns the number of bytes.
    fn len(&self) -> usize;

    /// Returns the place of the bytes.
    fn place(&self) -> Place;

    /// Returns which code may access the bytes.
    fn access(&self) -> Access;

    /// Returns true if a [`BufferMut`](super::BufferMut) of this memory may exist.
    fn writable(&self) -> bool;

    /// Returns true if the length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the allocation that this one wraps, for example the block of a pool. `None` if it wraps none.
    fn inner(&self) -> Option<&dyn Allocation> {
        None
    }

    /// Copies `offset..offset + dst.len()` into `dst`. An implementor with [`Access::Remote`] must override
    /// it.
    ///
    /// # Safety
    ///
    /// The range is in bounds and initialised, and no handle of this process writes it during the call.
    unsafe fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        let from = self.base().as_ptr().wrapping_add(offset);
        match self.access() {
            // SAFETY: M1 keeps the range allocated. The caller promises that it is initialised (M4) and that
            // nothing writes it (M2).
            Access::Owned => unsafe { ptr::copy_nonoverlapping(from, dst.as_mut_ptr().cast(), dst.len()) },
            // SAFETY: M1 keeps the range allocated and readable; this copy tolerates concurrent writers as M5
            // requires.
            Access::Foreign => unsafe { foreign::load(from, dst) },
            Access::Remote => return Err(no_copy(self.place())),
        }
        Ok(())
    }

    /// Copies `src` to `offset..offset + src.len()`. An implementor with [`Access::Remote`] must override it.
    ///
    /// # Safety
    ///
    /// The memory is writable, the range in bounds, and the caller holds the only handle of the range.
    unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> Result<()> {
        let to = self.base().as_ptr().wrapping_add(offset);
        match self.access() {
            // SAFETY: M1 keeps the range allocated. M2 makes the caller its only user, so `src` does not
            // overlap it.
            Access::Owned => unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) },
            // SAFETY: M1 keeps the range allocated and writable; this copy tolerates concurrent accesses as
            // M5 requires.
            Access::Foreign => unsafe { foreign::store(src, to) },
            Access::Remote => return Err(no_copy(self.place())),
        }
        Ok(())
    }
}

/// Reports when bytes that another device or thread still produces may be read: an event for device memory,
/// none for host memory.
///
/// A fence does not keep the memory alive. The producer of the bytes holds a handle of them itself (M3).
pub trait Fence: Debug + Send + Sync {
    /// Returns true once the bytes may be read. It never returns to false.
    fn is_ready(&self) -> bool;

    /// Blocks until the bytes may be read.
    fn wait(&self) -> Result<()>;
}

/// Two fences in sequence: ready once both are, so that a second fence never shortens the first.
#[derive(Debug)]
pub(super) struct FencePair(pub(super) Arc<dyn Fence>, pub(super) Arc<dyn Fence>);

impl Fence for FencePair {
    fn is_ready(&self) -> bool {
        self.0.is_ready() && self.1.is_ready()
    }

    fn wait(&self) -> Result<()> {
        self.0.wait()?;
        self.1.wait()
    }
}

/// An allocation's place and access. Each handle holds a copy, so that reading them costs no virtual call.
#[derive(Clone, Copy)]
pub(super) struct MemoryKind {
    place_key: u32,
    pub(super) access: Access,
}

impl MemoryKind {
    pub(super) const HOST: Self = Self { place_key: Place::Host.key(), access: Access::Owned };

    pub(super) fn of(allocation: &dyn Allocation) -> Self {
        Self { place_key: allocation.place().key(), access: allocation.access() }
    }

    /// Returns the attributes of an empty buffer in `place`.
    pub(super) const fn empty_in(place: Place) -> Self {
        let access = if place.cpu_can_touch() { Access::Owned } else { Access::Remote };
        Self { place_key: place.key(), access }
    }

    pub(super) const fn place(self) -> Place {
        Place::from_key(self.place_key)
    }
}

/// Returns the innermost allocation, below any pools.
pub(super) fn innermost(owner: &dyn Allocation) -> &dyn Allocation {
    let mut allocation = owner;
    while let Some(inner) = allocation.inner() {
        allocation = inner;
    }
    allocation
}

fn no_copy(place: Place) -> Error {
    Error::new(ErrorKind::Unsupported, format!("memory in {place} brings no copy functions"))
}
