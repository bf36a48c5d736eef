//! Stands for `encrypted` in a build without the feature `tls`, where [`Encrypted`] has no values.

use std::io;

use super::socket::Raw;
use crate::backend::streamed::IoOutcome;
use crate::handshake::TlsSession;
use crate::memory::RawBytes;

#[derive(Debug)]
pub(super) enum Encrypted {}

impl Encrypted {
    pub(super) fn new(tls: TlsSession) -> Self {
        match tls {}
    }

    pub(super) fn has_buffered(&self) -> bool {
        match *self {}
    }

    pub(super) fn write(&self, _: &Raw, _: &[RawBytes<'_>]) -> io::Result<IoOutcome> {
        match *self {}
    }

    pub(super) fn flush(&self, _: &Raw) -> io::Result<bool> {
        match *self {}
    }

    pub(super) fn read(&self, _: &Raw, _: usize, _: impl FnMut(&[u8])) -> io::Result<IoOutcome> {
        match *self {}
    }

    pub(super) fn send_close_notify(&self, _: &Raw) {
        match *self {}
    }
}
