//! The socket: vectored and non-blocking, reading into memory that need not be initialised. Over TLS it
//! encrypts, with the same interface to its link.

#![expect(unsafe_code, reason = "the operating system fills memory that no Rust code initialised")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::ops::DerefMut;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};
use smallvec::SmallVec;

use super::encrypted::Encrypted;
use crate::backend::streamed::{IoOutcome, StreamIo};
use crate::handshake::TlsSession;
use crate::memory::{BufferMut, RawBytes};

/// A connected, non-blocking socket, plain or over TLS.
#[derive(Debug)]
pub(super) struct Socket {
    raw: Raw,
    tls: Option<Encrypted>,
}

/// A connected, non-blocking socket.
#[derive(Debug)]
pub(super) struct Raw {
    stream: TcpStream,
    calls: AtomicU64,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, tls: Option<TlsSession>) -> Self {
        Self { raw: Raw { stream, calls: AtomicU64::new(0) }, tls: tls.map(Encrypted::new) }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.raw.stream.as_fd()
    }

    pub(super) fn calls(&self) -> u64 {
        self.raw.calls.load(Ordering::Relaxed)
    }

    /// Sends pending ciphertext. Returns false if the socket is full.
    pub(super) fn flush(&self) -> io::Result<bool> {
        self.tls.as_ref().map_or(Ok(true), |tls| tls.flush(&self.raw))
    }

    /// Ends the output.
    pub(super) fn shutdown_write(&self) {
        if let Some(tls) = &self.tls {
            tls.send_close_notify(&self.raw);
        }
        // Fails if the socket is already closed, with nothing to shut down.
        let _ = rustix::net::shutdown(&self.raw.stream, Shutdown::Write);
    }

    /// Discards unsent data and sends a reset, which does not wait for acknowledgements as a FIN does.
    pub(super) fn reset(&self) {
        // Fails if the socket is no longer connected, with nothing to reset.
        let _ = rustix::net::connect_unspec(&self.raw.stream);
    }

    fn read_slices(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<IoOutcome> {
        let Some(tls) = &self.tls else {
            return self.raw.call(|| rustix::io::readv(&self.raw.stream, slices));
        };
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        tls.read(&self.raw, wanted, filling(slices))
    }
}

impl StreamIo for &Socket {
    fn has_buffered(&self) -> bool {
        self.tls.as_ref().is_some_and(Encrypted::has_buffered)
    }

    fn write(&mut self, pieces: &[RawBytes<'_>]) -> io::Result<IoOutcome> {
        if let Some(tls) = &self.tls {
            return tls.write(&self.raw, pieces);
        }
        if let [piece] = pieces {
            // Small messages need no list. SAFETY: M5: the slice goes to `sendmsg` alone.
            return self.raw.send(&[unsafe { piece.io_slice() }]);
        }
        // SAFETY: M5: the slices go to `sendmsg` alone.
        let slices = pieces.iter().map(|piece| unsafe { piece.io_slice() });
        self.raw.send(&slices.collect::<SmallVec<[_; 16]>>())
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<IoOutcome> {
        match &self.tls {
            Some(tls) => tls.read(&self.raw, bytes.len(), filling(&mut [bytes])),
            None => self.raw.receive(bytes),
        }
    }

    /// Reads into the spare capacity of `buffers`, up to the given number of bytes each, and then into
    /// `then`. Each buffer's length grows by what was read into it.
    fn read_into(
        &mut self,
        buffers: &mut [(&mut BufferMut, usize)],
        then: &mut [u8],
    ) -> io::Result<IoOutcome> {
        let mut slices = Vec::with_capacity(buffers.len() + 1);
        for (buffer, room) in buffers.iter_mut() {
            // A buffer that the CPU cannot write to, or that is full, receives nothing and counts 0 bytes.
            let spare = buffer.spare_mut().unwrap_or_default();
            *room = (*room).min(spare.len());
            slices.push(uninitialised(&mut spare[..*room]));
        }
        slices.push(IoSliceMut::new(then));
        let moved = self.read_slices(&mut slices)?;
        if let IoOutcome::Bytes(mut len) = moved {
            for (buffer, room) in buffers {
                let filled = len.min(*room);
                let new_len = buffer.len() + filled;
                // SAFETY: M4: the first `filled` bytes of this buffer's spare capacity were written, by the
                // operating system or by TLS, since slices are filled in order and `len` is what remains of
                // their count.
                unsafe { buffer.set_len(new_len) };
                len -= filled;
            }
        }
        Ok(moved)
    }

    /// Reads into a region's bytes, and then into `then`.
    fn read_region(&mut self, bytes: &mut [u8], then: &mut [u8]) -> io::Result<IoOutcome> {
        self.read_slices(&mut [IoSliceMut::new(bytes), IoSliceMut::new(then)])
    }
}

impl Raw {
    pub(super) fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<IoOutcome> {
        self.call(|| {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::sendmsg(&self.stream, slices, &mut SendAncillaryBuffer::default(), flags)
        })
    }

    pub(super) fn receive(&self, bytes: &mut [u8]) -> io::Result<IoOutcome> {
        self.call(|| rustix::io::read(&self.stream, &mut *bytes))
    }

    fn call(&self, mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<IoOutcome> {
        loop {
            self.calls.fetch_add(1, Ordering::Relaxed);
            return match call() {
                Ok(len) => Ok(IoOutcome::Bytes(len)),
                Err(Errno::AGAIN) => Ok(IoOutcome::WouldBlock),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

/// Returns a closure that copies its arguments into `slices`, in order. The arguments never exceed the
/// slices' total length.
fn filling<'a, S: DerefMut<Target = [u8]>>(slices: &'a mut [S]) -> impl FnMut(&[u8]) + 'a {
    let (mut at, mut filled) = (0, 0);
    move |mut bytes| {
        while !bytes.is_empty() && at < slices.len() {
            let room = &mut slices[at][filled..];
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            filled += len;
            if filled == slices[at].len() {
                (at, filled) = (at + 1, 0);
            }
        }
    }
}

/// Returns uninitialised memory as a slice for the operating system to write to.
fn uninitialised(bytes: &mut [MaybeUninit<u8>]) -> IoSliceMut<'_> {
    let (start, len) = (bytes.as_mut_ptr().cast::<u8>(), bytes.len());
    // SAFETY: M2, M4: the range is exclusively borrowed for as long as the slice lives, and the slice is only
    // ever handed to `readv` or to `filling`, which write and do not read.
    IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(start, len) })
}
