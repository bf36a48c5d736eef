//! Memory that faults for ever: whoever reads it, the kernel included, waits until it is dropped (userfaultfd). As it is with
//! pages of a file system that does not answer.

#![expect(unsafe_code, reason = "maps memory that no reference may point to")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, munmap, userfaultfd};

/// Of userfaultfd(2).
const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const MISSING: u64 = 1;

/// Pages whose faults nobody resolves.
#[derive(Debug)]
pub struct Faulting {
    start: NonNull<u8>,
    len: usize,
    /// Closed before the pages go: whoever waits goes on.
    faults: Option<OwnedFd>,
}

// SAFETY: M6: it is an address, of which nothing is read.
unsafe impl Send for Faulting {}
// SAFETY: M6: as above.
unsafe impl Sync for Faulting {}

impl Faulting {
    /// Maps so many bytes, whole pages.
    ///
    /// # Errors
    /// What the kernel says where it does not let this process have any.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: L1: it makes a descriptor.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: M10: a new private mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let faulting = Self { start, len, faults: Some(faults) };
        faulting.control(API, &mut [0xaa, 0, 0])?;
        faulting.control(REGISTER, &mut [faulting.address(), len as u64, MISSING, 0])?;
        Ok(faulting)
    }

    /// Where they are.
    pub fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    fn control<const N: usize>(&self, request: libc::Ioctl, words: &mut [u64; N]) -> io::Result<()> {
        let faults = self.faults.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: L2: the request reads and writes no more than its words, which are as many.
        match unsafe { libc::ioctl(faults, request, words.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Faulting {
    fn drop(&mut self) {
        self.faults = None;
        // SAFETY: M10: it was mapped by this, and nothing refers to it. Its failure would cost the pages alone.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
