//! Memory that the CPU cannot access: its pages have no permissions, and its bytes move only through its copy
//! functions.
//!
//! Code that works with it does not read, write or form a slice of device memory.

#![expect(unsafe_code, reason = "an allocation's promises are what every handle of it rests on")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use towline::memory::{Access, Allocation, Fence, MemorySource};
use towline::{Buffer, BufferMut, Error, Place, Pool, Result};

/// The source of a [`Pool`] of guarded memory.
#[derive(Clone, Copy, Debug)]
pub struct Guarded;

impl Guarded {
    /// Creates a pool of guarded memory.
    pub fn pool() -> Pool {
        Pool::with_source(Arc::new(Self), 16 << 20)
    }

    /// Creates a buffer with this capacity.
    ///
    /// # Errors
    /// Any error of the operating system.
    pub fn buffer(capacity: usize) -> Result<BufferMut> {
        if capacity == 0 {
            return Self::pool().take(0);
        }
        let taken = BufferMut::from_allocation(Arc::new(Pages::new(capacity)?));
        Ok(taken.unwrap_or_else(|_| unreachable!("it is writable, and this its only handle")))
    }

    /// Creates a buffer of guarded memory with these bytes.
    ///
    /// # Errors
    /// Any error of the operating system.
    pub fn filled(bytes: &[u8]) -> Result<Buffer> {
        let mut buffer = Self::buffer(bytes.len())?;
        buffer.extend_from_slice(bytes)?;
        Ok(buffer.freeze())
    }

    /// Creates memory that a device is still writing. `bytes` arrive after `delay`; the buffer's fence is
    /// ready then.
    ///
    /// # Errors
    /// Any error of the operating system.
    pub fn produced(bytes: Vec<u8>, delay: Duration) -> Result<Buffer> {
        let pages = Arc::new(Pages::new(bytes.len().max(1))?);
        let produced = Arc::new(Produced::default());
        thread::Builder::new().name("device".into()).spawn({
            let (pages, produced) = (pages.clone(), produced.clone());
            move || {
                thread::sleep(delay);
                let written = pages.write(0, &bytes);
                // The device drops its handle first, so that a ready buffer belongs to the caller alone.
                drop(pages);
                produced.say(written.is_ok());
            }
        })?;
        // SAFETY: M4: the device's thread initialises all bytes before the fence attached here is ready.
        let buffer = unsafe { Buffer::from_allocation(pages) };
        Ok(buffer.with_fence(produced))
    }
}

impl MemorySource for Guarded {
    fn place(&self) -> Place {
        Place::Guarded
    }

    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(Pages::new(len)?))
    }
}

/// A memory file, mapped without permissions: the mapping provides the address, the file the copies.
#[derive(Debug)]
struct Pages {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: M1: the mapping stays at its address until drop, from any thread; no code can access it.
unsafe impl Send for Pages {}
// SAFETY: M6: a shared reference only gives the address away, and the kernel reads and writes the file.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(len: usize) -> Result<Self> {
        let file = memfd_create("guarded", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        ftruncate(&file, len as u64).map_err(io::Error::from)?;
        // SAFETY: M1: a new mapping at an address that the kernel chooses replaces nothing.
        let base = unsafe { mmap(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::SHARED, &file, 0) };
        let base = NonNull::new(base.map_err(io::Error::from)?.cast());
        Ok(Self { base: base.unwrap_or_else(|| unreachable!("nothing is mapped at zero")), len, file })
    }

    fn write(&self, offset: usize, mut src: &[u8]) -> Result<()> {
        let mut at = offset as u64;
        while !src.is_empty() {
            let written = pwrite(&self.file, src, at).map_err(io::Error::from)?;
            (src, at) = (&src[written..], at + written as u64);
        }
        Ok(())
    }

    fn read(&self, offset: usize, mut dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        let mut at = offset as u64;
        while !dst.is_empty() {
            let (read, rest) = pread(&self.file, dst, at).map_err(io::Error::from)?;
            if read.is_empty() {
                return Err(Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            (dst, at) = (rest, at + read.len() as u64);
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: M1: a whole mapping that this value owns, with no handle left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

// SAFETY: M1: the mapping stays until drop. M2: no other code has the file, except a device whose writes the
// fence announces. M6: the memory is remote, and the copies below read and write the file, exactly in the
// given range.
unsafe impl Allocation for Pages {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Guarded
    }

    fn access(&self) -> Access {
        Access::Remote
    }

    fn writable(&self) -> bool {
        true
    }

    unsafe fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        self.read(offset, dst)
    }

    unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.write(offset, src)
    }
}

/// A fence that is ready once the device has finished.
#[derive(Debug, Default)]
struct Produced {
    well: Mutex<Option<bool>>,
    said: Condvar,
}

impl Produced {
    fn say(&self, well: bool) {
        *self.well.lock().unwrap_or_else(PoisonError::into_inner) = Some(well);
        self.said.notify_all();
    }
}

impl Fence for Produced {
    fn is_ready(&self) -> bool {
        *self.well.lock().unwrap_or_else(PoisonError::into_inner) == Some(true)
    }

    fn wait(&self) -> Result<()> {
        let mut well = self.well.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *well {
                Some(true) => return Ok(()),
                Some(false) => return Err(Error::from(io::Error::other("the device failed"))),
                None => well = self.said.wait(well).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
