//! What the ring is made of: the real thing, and loom's, which tries every order of steps and every value that memory may
//! show. `cargo xtask loom` builds the ring with the second.

#[cfg(towline_loom)]
pub(super) use modelled::*;
#[cfg(not(towline_loom))]
pub(super) use real::*;

#[cfg(not(towline_loom))]
mod real {
    use std::mem::MaybeUninit;

    pub(in super::super) use std::cell::UnsafeCell;
    pub(in super::super) use std::sync::atomic::{AtomicU64, Ordering, fence};

    /// A full fence. `mfence`, which the compiler would give, takes four times as long.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(in super::super) fn full_fence() {
        // SAFETY: M9: a locked instruction orders all loads and stores of this thread, before it and behind it, and this one leaves
        // the stack as it is.
        unsafe { std::arch::asm!("lock or dword ptr [rsp], 0") };
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    pub(in super::super) fn full_fence() {
        fence(Ordering::SeqCst);
    }

    use crate::memory::foreign;

    /// Copies `from` to where only this process writes.
    ///
    /// # Safety
    ///
    /// The bytes are writable for the length of the call, and nobody else in this process touches them meanwhile.
    pub(in super::super) unsafe fn store(from: &[u8], to: *const UnsafeCell<u8>) {
        // SAFETY: the caller's: writable, touched by nobody else here (M9), hence no part of `from`.
        unsafe { to.cast_mut().cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    /// Copies from where another process may write at any time.
    ///
    /// # Safety
    ///
    /// The bytes are readable for the length of the call, and nobody in this process writes them meanwhile.
    pub(in super::super) unsafe fn load(from: *const UnsafeCell<u8>, into: &mut [MaybeUninit<u8>]) {
        // SAFETY: the caller's: readable, written by other processes only (M9).
        unsafe { foreign::load(from.cast(), into) }
    }
}

#[cfg(towline_loom)]
mod modelled {
    use std::mem::MaybeUninit;

    pub(in super::super) use loom::cell::UnsafeCell;
    pub(in super::super) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    /// As the real one.
    pub(in super::super) fn full_fence() {
        fence(Ordering::SeqCst);
    }

    /// As the real one, byte by byte. Loom fails the model where this could meet another's copy of the same byte.
    ///
    /// # Safety
    ///
    /// From `to` on, there are as many cells as bytes.
    pub(in super::super) unsafe fn store(from: &[u8], to: *const UnsafeCell<u8>) {
        for (at, byte) in from.iter().enumerate() {
            // SAFETY: the caller's: a cell that is there (M1).
            let cell = unsafe { &*to.add(at) };
            cell.with_mut(|to| {
                // SAFETY: loom has checked that nobody else is in the cell (M9).
                unsafe { to.write(*byte) }
            });
        }
    }

    /// As the real one, byte by byte. Loom fails the model where this could meet another's write of the same byte.
    ///
    /// # Safety
    ///
    /// From `from` on, there are as many cells as bytes.
    pub(in super::super) unsafe fn load(from: *const UnsafeCell<u8>, into: &mut [MaybeUninit<u8>]) {
        for (at, byte) in into.iter_mut().enumerate() {
            // SAFETY: the caller's: a cell that is there (M1).
            let cell = unsafe { &*from.add(at) };
            byte.write(cell.with(|from| {
                // SAFETY: loom has checked that nobody writes the cell meanwhile (M9).
                unsafe { from.read() }
            }));
        }
    }
}
