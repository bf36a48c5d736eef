//! The socket: vectored, non-blocking, into memory that need not be initialised.

#![expect(unsafe_code, reason = "the operating system fills memory that no Rust code initialised")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

use crate::memory::BufferMut;

/// The most slices of one call.
pub(super) const SLICES_MAX: usize = 512;
/// The most buffers of one read.
pub(super) const BUFFERS_MAX: usize = 64;

/// A connected, non-blocking socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    calls: AtomicU64,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum Moved {
    /// So many bytes; 0 from a read is the end of the stream.
    Bytes(usize),
    /// The call would have waited.
    Nothing,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, calls: AtomicU64::new(0) }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<Moved> {
        self.call(|| {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::sendmsg(&self.stream, slices, &mut SendAncillaryBuffer::default(), flags)
        })
    }

    pub(super) fn read(&self, bytes: &mut [u8]) -> io::Result<Moved> {
        self.call(|| rustix::io::read(&self.stream, &mut *bytes))
    }

    /// Reads into the spare parts of `buffers`, each of which takes so many bytes, and what is left into `then`. The
    /// buffers' lengths grow by what they got.
    pub(super) fn read_into(
        &self,
        buffers: &mut [(&mut BufferMut, usize)],
        then: &mut [u8],
    ) -> io::Result<Moved> {
        let mut slices = Vec::with_capacity(buffers.len() + 1);
        for (buffer, room) in buffers.iter_mut() {
            // What the CPU cannot write to, or has no room for, gets nothing and counts nothing.
            let spare = buffer.spare_mut().unwrap_or_default();
            *room = (*room).min(spare.len());
            slices.push(uninitialised(&mut spare[..*room]));
        }
        slices.push(IoSliceMut::new(then));
        let moved = self.call(|| rustix::io::readv(&self.stream, &mut slices))?;
        if let Moved::Bytes(mut len) = moved {
            for (buffer, room) in buffers {
                let filled = len.min(*room);
                let new_len = buffer.len() + filled;
                // SAFETY: M4: the operating system wrote the first `filled` bytes of this buffer's spare part, since it
                // fills slices in order and `len` is what is left of its count.
                unsafe { buffer.set_len(new_len) };
                len -= filled;
            }
        }
        Ok(moved)
    }

    /// Reads into a region's bytes.
    pub(super) fn read_region(&self, bytes: &mut [u8], then: &mut [u8]) -> io::Result<Moved> {
        let mut slices = [IoSliceMut::new(bytes), IoSliceMut::new(then)];
        self.call(|| rustix::io::readv(&self.stream, &mut slices))
    }

    /// Nothing more will be written.
    pub(super) fn shutdown_write(&self) {
        // A socket that is gone already has nothing to shut.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
    }

    fn call(&self, mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<Moved> {
        loop {
            self.calls.fetch_add(1, Ordering::Relaxed);
            return match call() {
                Ok(len) => Ok(Moved::Bytes(len)),
                Err(Errno::AGAIN) => Ok(Moved::Nothing),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

/// Memory for the operating system to write to.
fn uninitialised(bytes: &mut [MaybeUninit<u8>]) -> IoSliceMut<'_> {
    let (start, len) = (bytes.as_mut_ptr().cast::<u8>(), bytes.len());
    // SAFETY: M2, M4: the range is exclusively borrowed for as long as the slice lives, and the slice is only ever handed
    // to `readv`, which writes and does not read.
    IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(start, len) })
}
