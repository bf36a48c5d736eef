//! Pipes as a link uses them: to ring, and to hear that every process at the other end is gone.
//!
//! A peer has the same descriptor of what it showed, and may change at any time whether a read of it waits. Nothing here does.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::error::Result;

/// Bytes that are taken out at once.
const DISCARD_MAX: usize = 64;

/// A new one: its reading end, and its writing end.
pub(super) fn new() -> Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from)?)
}

/// Whether this is a pipe, at its reading end.
pub(super) fn is_reading_end(descriptor: &OwnedFd) -> bool {
    is_end(descriptor, OFlags::RDONLY)
}

/// Whether this is a pipe, at its writing end.
pub(super) fn is_writing_end(descriptor: &OwnedFd) -> bool {
    is_end(descriptor, OFlags::WRONLY)
}

fn is_end(descriptor: &OwnedFd, mode: OFlags) -> bool {
    let is_pipe =
        fstat(descriptor).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
    is_pipe && fcntl_getfl(descriptor).is_ok_and(|flags| (flags & OFlags::ACCMODE) == mode)
}

/// Whether nobody has the writing end any more. What was written stays.
pub(super) fn has_hung_up(reading: &OwnedFd) -> bool {
    let mut reading = [PollFd::new(reading, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut reading, Some(&now)).is_ok() && reading[0].revents().contains(PollFlags::HUP)
}

/// Where goes what is taken out of pipes.
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

    /// Takes out what was written so far. True: that was all that will ever be.
    pub(super) fn discard(self, reading: &OwnedFd) -> bool {
        splice(reading, None, self.0, None, DISCARD_MAX, SpliceFlags::NONBLOCK) == Ok(0)
    }
}
