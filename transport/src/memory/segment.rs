//! Shared memory of this host: a [`Segment`] is owned by this process and mapped by others, a [`PeerSegment`]
//! is owned by a peer.
//!
//! Both exist only as a descriptor. They have no name in any file system, and nothing is left when the last
//! descriptor and mapping are gone. A segment is complete from the start and sealed: its size and its pages
//! never change, and only its owner's first mapping can write it.

#![expect(unsafe_code, reason = "this is where shared memory is mapped")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use super::host::unmap;
use super::{AvailableMemory, available, huge};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::process::Process;

/// A peer relies on these: the size stays, and no later mapping is writable. The seals also forbid punching
/// holes.
const SEALS: [(SealFlags, &str); 3] = [
    (SealFlags::SHRINK, "shrinking"),
    (SealFlags::GROW, "growing"),
    (SealFlags::FUTURE_WRITE, "future writes"),
];

/// File system of memfds without explicit huge pages (`TMPFS_MAGIC` of `linux/magic.h`).
const TMPFS: i64 = 0x0102_1994;

/// Shared memory that this process owns and alone writes. Other processes map it by its descriptor, to read.
#[derive(Debug)]
pub(crate) struct Segment {
    process: Process,
    descriptor: OwnedFd,
    mapping: Mapping,
}

impl Segment {
    /// Creates a segment of `len` zeroes, rounded up to whole pages. All pages exist from the start: no later
    /// access, by any process, allocates memory or fails. From 2 MiB on it is aligned to 2 MiB, in huge pages
    /// where the system allows them for shared memory. `name` appears in `/proc/PID/maps` only.
    ///
    /// # Errors
    ///
    /// `TooLarge` if this machine has not enough memory or a limit forbids it; `Unsupported` if its kernel is
    /// too old.
    pub(crate) fn create(name: &str, len: usize) -> Result<Self> {
        let len = Self::permitted_len(len)?;
        available::check(len)?;
        let descriptor = memfd(name).map_err(|errno| failed("cannot be created", len, errno))?;
        rustix::fs::ftruncate(&descriptor, len as u64)
            .map_err(|errno| failed("cannot be sized", len, errno))?;
        let mapping = Mapping::new(descriptor.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
        if len >= huge::PAGE {
            // The kernel refuses this where shared memory has no huge pages, which costs only speed.
            let _ = mapping.advise(Advice::LinuxHugepage);
        }
        // Not `fallocate`: it ignores the mapping's advice and leaves the zeroing to the first touch.
        mapping.advise(Advice::LinuxPopulateWrite).map_err(|errno| failed("cannot be filled", len, errno))?;
        let seals = SEALS.iter().fold(SealFlags::SEAL, |all, (seal, _)| all | *seal);
        rustix::fs::fcntl_add_seals(&descriptor, seals)
            .map_err(|errno| failed("cannot be sealed", len, errno))?;
        Ok(Self { process: Process::current(), descriptor, mapping })
    }

    /// Returns `len` in whole pages, if this process may create a segment of that length now. It reads the
    /// limit on file sizes first, each time: the kernel answers a call that exceeds it with `SIGXFSZ`, which
    /// ends the process.
    ///
    /// # Errors
    ///
    /// `TooLarge`, naming the limit.
    pub(crate) fn permitted_len(len: usize) -> Result<usize> {
        let page = rustix::param::page_size();
        let len = len.max(1).checked_next_multiple_of(page).filter(|len| *len <= isize::MAX as usize / 2);
        let len = len.ok_or_else(|| Error::new(ErrorKind::TooLarge, "no machine has a segment that long"))?;
        let limit = Self::len_max();
        if len <= limit {
            return Ok(len);
        }
        let detail = format!(
            "a segment of {len} bytes exceeds the limit on the size of files, which is {limit} bytes and holds for shared \
             memory too (RLIMIT_FSIZE, `ulimit -f`)"
        );
        Err(Error::new(ErrorKind::TooLarge, detail))
    }

    /// Returns the longest segment that the limit on file sizes permits now, in bytes.
    pub(super) fn len_max() -> usize {
        let limit = getrlimit(Resource::Fsize).current;
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// As [`len_max`](Self::len_max), but at most half of the available memory: the limit for memory
    /// allocated in advance.
    pub(super) fn reserve_len_max() -> usize {
        let half = AvailableMemory::now().map_or(u64::MAX, |memory| memory.bytes / 2);
        Self::len_max().min(usize::try_from(half).unwrap_or(usize::MAX))
    }

    /// Returns true if this process created the segment. A forked child has a copy of this value, but must
    /// not use it.
    pub(crate) fn is_own(&self) -> bool {
        self.process.is_this()
    }

    /// Returns the descriptor, to send to a peer that may read all of the segment.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Returns the address of the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }

    /// Returns the number of bytes, which are whole pages.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }
}

/// Shared memory that a peer owns, mapped read-only. The peer may write it at any time. The caller decides
/// whether to treat it as [`Access::Foreign`](super::Access) or to trust the peer not to write (M5, M11).
#[derive(Debug)]
pub(crate) struct PeerSegment {
    mapping: Mapping,
}

impl PeerSegment {
    /// Maps a descriptor from an unauthenticated peer after checking that it is a valid segment. It must be a
    /// memfd of at most `len_max` bytes, sealed against shrinking, growing and future writes, with all pages
    /// allocated, so that no read faults or allocates.
    ///
    /// # Errors
    ///
    /// `Corrupt`, with the property that is missing; `TooLarge` if it cannot be mapped.
    pub(crate) fn map(descriptor: impl AsFd, len_max: usize) -> Result<Self> {
        let len = checked_len(descriptor.as_fd(), len_max)?;
        // The mapping keeps the memory alive; the descriptor is no longer needed.
        let mapping = Mapping::new(descriptor.as_fd(), len, ProtFlags::READ)?;
        Ok(Self { mapping })
    }

    /// Enters all pages into this process's page table, so that no first access faults. Takes some
    /// milliseconds per GiB, longer than [`map`](Self::map). May be called at any time, on any thread.
    pub(crate) fn populate(&self) -> Result<()> {
        self.mapping
            .advise(Advice::LinuxPopulateRead)
            .map_err(|errno| failed("cannot be entered", self.len(), errno))
    }

    /// Returns the address of the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.mapping.base
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len
    }
}

/// Checks that the descriptor may be mapped and returns its length. The seals are checked first: they
/// preserve what the later checks find.
fn checked_len(descriptor: BorrowedFd<'_>, len_max: usize) -> Result<usize> {
    let seals = rustix::fs::fcntl_get_seals(descriptor).map_err(|_| corrupt("it is no memfd"))?;
    if let Some((_, what)) = SEALS.iter().find(|(seal, _)| !seals.contains(*seal)) {
        return Err(corrupt(format!("it is not sealed against {what}")));
    }
    let filesystem =
        rustix::fs::fstatfs(descriptor).map_err(|errno| corrupt("it is no memfd").caused_by(errno))?;
    if filesystem.f_type as i64 != TMPFS {
        return Err(corrupt("it is of huge pages by itself, or no memfd"));
    }
    let found = rustix::fs::fstat(descriptor).map_err(|errno| corrupt("it has no size").caused_by(errno))?;
    let len = usize::try_from(found.st_size).unwrap_or(usize::MAX);
    if len == 0 || !len.is_multiple_of(rustix::param::page_size()) {
        return Err(corrupt(format!("its {len} bytes are not whole pages")));
    }
    if len > len_max {
        return Err(corrupt(format!("its {len} bytes are more than the {len_max} agreed")));
    }
    // The number of blocks proves nothing: it includes pages beyond the end.
    let hole = rustix::fs::seek(descriptor, SeekFrom::Hole(0));
    if hole != Ok(len as u64) {
        return Err(corrupt("it has pages that are not allocated"));
    }
    Ok(len)
}

/// A mapping of a whole descriptor. Dropping it unmaps the memory.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the value only returns an address, valid until drop from any thread (M1); its users decide who
// accesses the bytes.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference only gives the address away (M1).
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the descriptor, from 2 MiB on aligned to 2 MiB, as huge pages require. It reserves a larger
    /// address range first and maps into its middle.
    fn new(descriptor: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> Result<Self> {
        let align = if len >= huge::PAGE { huge::PAGE } else { rustix::param::page_size() };
        let len_taken = len.saturating_add(align);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping without access, at an address that the kernel chooses, replaces nothing (M1).
        let taken =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len_taken, ProtFlags::empty(), flags) };
        let start = taken.map_err(|errno| failed("cannot be mapped", len, errno))?.cast::<u8>();
        let skip = start.align_offset(align);
        let base = start.wrapping_add(skip);
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: it replaces a part of the range reserved above, which no other code has (M1).
        let mapped = unsafe { rustix::mm::mmap(base.cast(), len, protection, flags, descriptor, 0) };
        if let Err(errno) = mapped {
            unmap(start, len_taken);
            return Err(failed("cannot be mapped", len, errno));
        }
        unmap(start, skip);
        unmap(base.wrapping_add(len), align - skip);
        let base = NonNull::new(base).ok_or_else(|| failed("cannot be mapped", len, Errno::FAULT))?;
        Ok(Self { base, len })
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: whole pages of this mapping, and advice that changes no content (M1, M2).
        retry_on_intr(|| unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, advice) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.base.as_ptr(), self.len);
    }
}

/// Creates a memfd that can be sealed, and cannot be executed where the kernel supports that (from 6.3 on).
fn memfd(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        found => found,
    }
}

fn failed(what: &str, len: usize, errno: Errno) -> Error {
    let (kind, hint) = match errno {
        Errno::INVAL | Errno::NOSYS => (ErrorKind::Unsupported, "; it takes Linux 5.14 or newer"),
        // Populating a page that the kernel cannot allocate fails with `EFAULT`.
        Errno::NOMEM | Errno::NOSPC | Errno::FAULT | Errno::FBIG => {
            (ErrorKind::TooLarge, "; ask for less, or raise the limit on memory")
        }
        _ => (ErrorKind::Io, ""),
    };
    Error::new(kind, format!("a segment of {len} bytes {what}{hint}")).caused_by(errno)
}

fn corrupt(why: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a segment of the peer cannot be used: {}", why.as_ref()))
}
