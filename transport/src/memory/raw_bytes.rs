//! Bytes to send, read by pointer. Others may write foreign memory at any time, so no slice of it is formed.

#![expect(unsafe_code, reason = "bytes that others may write are reached through a raw pointer")]

use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::slice;

use super::{Access, Buffer, foreign};

/// Bytes that the CPU can load: [`Access::Owned`], or [`Access::Foreign`], of which each copy may differ.
///
/// Links send from these. A link reads each byte once on its way to the peer, or computes nothing from it
/// that must agree with what the peer gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawBytes<'a> {
    start: *const u8,
    len: usize,
    /// Never [`Access::Remote`].
    access: Access,
    memory: PhantomData<&'a [u8]>,
}

impl Buffer {
    /// Returns the bytes to read by pointer. `None` if the CPU cannot load them, or their fence is pending.
    #[inline]
    pub(crate) fn raw_bytes(&self) -> Option<RawBytes<'_>> {
        self.is_readable().then(|| RawBytes {
            start: self.as_ptr(),
            len: self.len(),
            access: self.access(),
            memory: PhantomData,
        })
    }

    /// Becomes a private copy of itself if others may write its bytes and they are ready. Returns the number of
    /// bytes copied.
    #[inline]
    pub(crate) fn copy_if_foreign(&mut self) -> usize {
        if self.access() == Access::Foreign { self.copy_privately() } else { 0 }
    }

    fn copy_privately(&mut self) -> usize {
        let Some(bytes) = self.raw_bytes() else { return 0 };
        let mut copy = Vec::with_capacity(bytes.len());
        bytes.append_to(&mut copy);
        *self = Self::from(copy);
        self.len()
    }
}

impl<'a> RawBytes<'a> {
    /// Returns the number of bytes.
    #[inline]
    pub(crate) const fn len(self) -> usize {
        self.len
    }

    /// Returns true if there are no bytes.
    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns the bytes as a slice, if nothing can write them.
    #[inline]
    pub(crate) fn as_slice(self) -> Option<&'a [u8]> {
        if self.access != Access::Owned {
            return None;
        }
        // SAFETY: the borrowed owner keeps them there (M1), unwritten (M2) and initialised (M4).
        Some(unsafe { slice::from_raw_parts(self.start, self.len) })
    }

    /// Returns the first `at` bytes, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "split at {at} of {} bytes", self.len);
        let rest = Self { start: self.start.wrapping_add(at), len: self.len - at, ..self };
        (Self { len: at, ..self }, rest)
    }

    /// Copies the bytes to `dst`, which is as long, and returns it. Each byte is read once.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn copy_to(self, dst: &mut [MaybeUninit<u8>]) -> &mut [u8] {
        assert!(dst.len() == self.len, "a copy of {} bytes into a slice of {}", self.len, dst.len());
        if let Some(bytes) = self.as_slice() {
            return dst.write_copy_of_slice(bytes);
        }
        // SAFETY: the borrowed owner keeps them readable (M1). Whoever writes them meanwhile does so as M5
        // says.
        unsafe { foreign::load(self.start, dst) };
        // SAFETY: the copy above has initialised all of it (M4).
        unsafe { dst.assume_init_mut() }
    }

    /// Appends a copy of the bytes to `out`. Each byte is read once.
    #[inline]
    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        if let Some(bytes) = self.as_slice() {
            return out.extend_from_slice(bytes);
        }
        out.reserve(self.len);
        self.copy_to(&mut out.spare_capacity_mut()[..self.len]);
        // SAFETY: the copy above has initialised so many bytes of the spare capacity (M4).
        unsafe { out.set_len(out.len() + self.len) };
    }

    /// Returns the address and the length for a system call.
    ///
    /// # Safety
    ///
    /// The result is passed to the kernel alone. Nothing dereferences it: others may write the bytes.
    #[inline]
    pub(crate) unsafe fn io_slice(self) -> IoSlice<'a> {
        let vector = libc::iovec { iov_base: self.start.cast_mut().cast(), iov_len: self.len };
        // SAFETY: M5: an `IoSlice` is an `iovec`, as its documentation guarantees, and forms a slice only when
        // it is dereferenced. The borrowed owner keeps the bytes readable (M1).
        unsafe { mem::transmute::<libc::iovec, IoSlice<'a>>(vector) }
    }
}

impl<'a> From<&'a [u8]> for RawBytes<'a> {
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        Self { start: bytes.as_ptr(), len: bytes.len(), access: Access::Owned, memory: PhantomData }
    }
}
