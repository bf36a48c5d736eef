//! What stands behind a buffer: one allocation, who may touch it, and when its bytes are ready.

#![expect(unsafe_code, reason = "an allocation's promises are what every slice of it rests on")]

use std::any::Any;
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{Place, foreign};
use crate::error::{Error, ErrorKind, Result};

/// Who may touch an allocation's bytes, hence what may be made of its pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// This process alone can write, through its one writable handle: slices may be formed.
    Owned,
    /// The CPU can read, but others may write at any time: pointer and copies only.
    Foreign,
    /// The CPU cannot load or store there: only through `copy_out` and `copy_in`.
    Remote,
}

/// A stretch of memory that lives until its last handle drops. Dropping the implementor frees it, on any thread; it must be short
/// and must not panic.
///
/// The `Any` underneath lets a backend recognise memory of its own: see [`Buffer::allocation`](super::Buffer::allocation).
///
/// # Safety
///
/// While the value lives, [`base`](Self::base), [`len`](Self::len), [`place`](Self::place), [`access`](Self::access)
/// and [`writable`](Self::writable) never change, `len` is at most `isize::MAX`, and `base..base + len` stays allocated
/// at that address, from any thread (M1). The value is the memory's only owner: where it is
/// [`writable`](Self::writable), nothing in this process reads or writes it except through handles of this value (M2);
/// where it is not, nothing in this process writes it. [`Access::Owned`] also promises that for every other process
/// and device, and it or [`Access::Foreign`] that the CPU can load from it, and store to it where writable.
/// A successful [`copy_out`](Self::copy_out) has initialised all of its destination and neither copy touches anything
/// beyond the range and the slice given.
pub unsafe trait Allocation: Any + Debug + Send + Sync {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;

    /// The number of bytes.
    fn len(&self) -> usize;

    /// Where they live.
    fn place(&self) -> Place;

    /// Who may touch them.
    fn access(&self) -> Access;

    /// Whether a [`BufferMut`](super::BufferMut) of this memory may exist.
    fn writable(&self) -> bool;

    /// Whether there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The allocation that this one lends out, for example a pool's.
    fn inner(&self) -> Option<&dyn Allocation> {
        None
    }

    /// Copies `offset..offset + dst.len()` into `dst`. Memory that is [`Access::Remote`] must bring its own.
    ///
    /// # Safety
    ///
    /// The range is in bounds and initialised, and no handle of this process writes it meanwhile.
    unsafe fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        let from = self.base().as_ptr().wrapping_add(offset);
        match self.access() {
            // SAFETY: M1 keeps the range there, the caller has it initialised (M4) and unwritten (M2).
            Access::Owned => unsafe { ptr::copy_nonoverlapping(from, dst.as_mut_ptr().cast(), dst.len()) },
            // SAFETY: M1 keeps the range there and readable; M5 is what this copy is made for.
            Access::Foreign => unsafe { foreign::load(from, dst) },
            Access::Remote => return Err(no_copy(self.place())),
        }
        Ok(())
    }

    /// Copies `src` to `offset..offset + src.len()`. Memory that is [`Access::Remote`] must bring its own.
    ///
    /// # Safety
    ///
    /// The memory is writable, the range in bounds, and the caller holds the only handle of the range.
    unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> Result<()> {
        let to = self.base().as_ptr().wrapping_add(offset);
        match self.access() {
            // SAFETY: M1 keeps the range there, M2 makes the caller its only user, so `src` lies elsewhere.
            Access::Owned => unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) },
            // SAFETY: M1 keeps the range there and writable; M5 is what this copy is made for.
            Access::Foreign => unsafe { foreign::store(src, to) },
            Access::Remote => return Err(no_copy(self.place())),
        }
        Ok(())
    }
}

/// When bytes that something else is still producing may be read: an event for device memory, nothing for host.
///
/// A fence says when to read, not how long to hold: whoever produces the bytes holds a handle of them itself (M3).
pub trait Fence: Debug + Send + Sync {
    /// Whether the bytes are there. Once true, true for ever.
    fn is_ready(&self) -> bool;

    /// Blocks until they are.
    fn wait(&self) -> Result<()>;
}

/// Both fences: a second one never shortens the first.
#[derive(Debug)]
pub(super) struct Both(pub(super) Arc<dyn Fence>, pub(super) Arc<dyn Fence>);

impl Fence for Both {
    fn is_ready(&self) -> bool {
        self.0.is_ready() && self.1.is_ready()
    }

    fn wait(&self) -> Result<()> {
        self.0.wait()?;
        self.1.wait()
    }
}

/// An allocation's place and access, copied into each handle so that asking costs no call.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    place_key: u32,
    pub(super) access: Access,
}

impl Kind {
    pub(super) const HOST: Self = Self { place_key: Place::Host.key(), access: Access::Owned };

    pub(super) fn of(allocation: &dyn Allocation) -> Self {
        Self { place_key: allocation.place().key(), access: allocation.access() }
    }

    /// Of no bytes at all in `place`.
    pub(super) const fn nothing_in(place: Place) -> Self {
        let access = if place.cpu_can_touch() { Access::Owned } else { Access::Remote };
        Self { place_key: place.key(), access }
    }

    pub(super) const fn place(self) -> Place {
        Place::from_key(self.place_key)
    }
}

/// The allocation at the bottom, below pools.
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
