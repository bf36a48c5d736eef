//! Pipes of a link: to ring the doorbell, and to detect that every process at the other end is gone.
//!
//! The peer has the same open file descriptions and may make them blocking at any time. No call here ever
//! blocks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::error::Result;

/// The most bytes discarded at once.
const DISCARD_MAX: usize = 64;

/// Creates a pipe: its read end, and its write end.
pub(super) fn new() -> Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from)?)
}

/// Returns true if the descriptor is the read end of a pipe.
pub(super) fn is_reading_end(descriptor: &OwnedFd) -> bool {
    is_end(descriptor, OFlags::RDONLY)
}

/// Returns true if the descriptor is the write end of a pipe.
pub(super) fn is_writing_end(descriptor: &OwnedFd) -> bool {
    is_end(descriptor, OFlags::WRONLY)
}

fn is_end(descriptor: &OwnedFd, mode: OFlags) -> bool {
    let is_pipe =
        fstat(descriptor).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
    is_pipe && fcntl_getfl(descriptor).is_ok_and(|flags| (flags & OFlags::ACCMODE) == mode)
}

/// Returns true if no process has the write end any more. Bytes in the pipe stay.
pub(super) fn has_hung_up(reading: &OwnedFd) -> bool {
    let mut reading = [PollFd::new(reading, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut reading, Some(&now)).is_ok() && reading[0].revents().contains(PollFlags::HUP)
}

/// /dev/null, where bytes from pipes are discarded.
#[derive(Clone, Copy, Debug)]
pub(super) struct NullSink(&'static OwnedFd);

impl NullSink {
    pub(super) fn open() -> Result<Self> {
        static NULL: OnceLock<OwnedFd> = OnceLock::new();
        if let Some(null) = NULL.get() {
            return Ok(Self(null));
        }
        let opened = File::options().write(true).open("/dev/null")?;
        Ok(Self(NULL.get_or_init(|| opened.into())))
    }

    /// Discards the bytes written so far. Returns true at the end of the pipe.
    pub(super) fn discard(self, reading: &OwnedFd) -> bool {
        splice(reading, None, self.0, None, DISCARD_MAX, SpliceFlags::NONBLOCK) == Ok(0)
    }
}
