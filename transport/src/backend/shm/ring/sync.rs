//! The ring's atomics and cells: the real ones, or those of loom, which runs every interleaving and every
//! value that memory may show. `cargo xtask loom` builds the ring with the latter.

#[cfg(towline_loom)]
pub(super) use modelled::*;
#[cfg(not(towline_loom))]
pub(super) use real::*;

#[cfg(not(towline_loom))]
mod real {
    use std::mem::MaybeUninit;
    use std::ptr;

    pub(in super::super) use std::cell::UnsafeCell;
    pub(in super::super) use std::sync::atomic::{AtomicU64, Ordering, fence};

    /// A full fence. `mfence`, which the compiler would emit, takes four times as long.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(in super::super) fn full_fence() {
        // SAFETY: M9: a locked instruction orders all loads and stores of this thread before and after it,
        // and this one leaves the stack unchanged.
        unsafe { std::arch::asm!("lock or dword ptr [rsp], 0") };
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    pub(in super::super) fn full_fence() {
        fence(Ordering::SeqCst);
    }

    use crate::memory::{RawBytes, foreign};

    /// Copies `from` to memory that only this process writes.
    ///
    /// # Safety
    ///
    /// The bytes are writable during the call, and nothing else in this process accesses them meanwhile.
    #[inline]
    pub(in super::super) unsafe fn store(from: RawBytes<'_>, to: *const UnsafeCell<u8>) {
        let to = ptr::slice_from_raw_parts_mut(to.cast_mut().cast::<MaybeUninit<u8>>(), from.len());
        // SAFETY: guaranteed by the caller: writable, accessed by nothing else here (M9), hence no part of
        // `from`.
        from.copy_to(unsafe { &mut *to });
    }

    /// Copies from memory that another process may write at any time.
    ///
    /// # Safety
    ///
    /// The bytes are readable during the call, and nothing in this process writes them meanwhile.
    pub(in super::super) unsafe fn load(from: *const UnsafeCell<u8>, into: &mut [MaybeUninit<u8>]) {
        // SAFETY: guaranteed by the caller: readable, written by other processes only (M9).
        unsafe { foreign::load(from.cast(), into) }
    }
}

#[cfg(towline_loom)]
mod modelled {
    use std::mem::MaybeUninit;

    pub(in super::super) use loom::cell::UnsafeCell;
    pub(in super::super) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    use crate::memory::RawBytes;

    /// The model of the real one.
    pub(in super::super) fn full_fence() {
        fence(Ordering::SeqCst);
    }

    /// The model of the real one, byte by byte. Loom fails the model if another copy of the same byte can
    /// overlap.
    ///
    /// # Safety
    ///
    /// There are as many cells from `to` on as bytes.
    pub(in super::super) unsafe fn store(from: RawBytes<'_>, to: *const UnsafeCell<u8>) {
        let mut bytes = Vec::new();
        from.append_to(&mut bytes);
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: guaranteed by the caller: the cell exists (M1).
            let cell = unsafe { &*to.add(at) };
            cell.with_mut(|to| {
                // SAFETY: loom has checked that nothing else accesses the cell (M9).
                unsafe { to.write(*byte) }
            });
        }
    }

    /// The model of the real one, byte by byte. Loom fails the model if a write of the same byte can overlap.
    ///
    /// # Safety
    ///
    /// There are as many cells from `from` on as bytes.
    pub(in super::super) unsafe fn load(from: *const UnsafeCell<u8>, into: &mut [MaybeUninit<u8>]) {
        for (at, byte) in into.iter_mut().enumerate() {
            // SAFETY: guaranteed by the caller: the cell exists (M1).
            let cell = unsafe { &*from.add(at) };
            byte.write(cell.with(|from| {
                // SAFETY: loom has checked that nothing writes the cell meanwhile (M9).
                unsafe { from.read() }
            }));
        }
    }
}
