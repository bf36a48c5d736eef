//! Memory whose page faults are never resolved (userfaultfd). A thread that reads it, the kernel included,
//! blocks until it is dropped, as with pages of a file system that does not respond.

#![expect(unsafe_code, reason = "maps memory that no reference may point to")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, munmap, userfaultfd};

/// The requests of userfaultfd(2).
const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const MISSING: u64 = 1;

/// Pages whose faults are never resolved.
#[derive(Debug)]
pub struct Faulting {
    start: NonNull<u8>,
    len: usize,
    /// Closed before the pages are unmapped, so that blocked readers continue.
    faults: Option<OwnedFd>,
}

// SAFETY: M6: the value only holds an address and reads nothing through it.
unsafe impl Send for Faulting {}
// SAFETY: M6: as above.
unsafe impl Sync for Faulting {}

impl Faulting {
    /// Maps `len` bytes, which are whole pages.
    ///
    /// # Errors
    /// The kernel's error, if this process may not use userfaultfd.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: L1: the call creates a descriptor.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: M10: a new private mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let faulting = Self { start, len, faults: Some(faults) };
        faulting.control(API, &mut [0xaa, 0, 0])?;
        faulting.control(REGISTER, &mut [faulting.address(), len as u64, MISSING, 0])?;
        Ok(faulting)
    }

    /// Returns the address of the pages.
    pub fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    fn control<const N: usize>(&self, request: libc::Ioctl, words: &mut [u64; N]) -> io::Result<()> {
        let faults = self.faults.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: L2: the request reads and writes only its words, and `words` has as many.
        match unsafe { libc::ioctl(faults, request, words.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Faulting {
    fn drop(&mut self) {
        self.faults = None;
        // SAFETY: M10: this value mapped the pages, and no reference to them is left. A failure leaks only
        // the pages.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
