//! Stands for `tls_socket` in a build without the feature `tls`: no session exists.

use std::io::{self, ErrorKind, Read, Write};

use crate::security::trust::{Certificate, NO_TLS};

#[derive(Debug)]
pub(super) enum TlsSession {}

/// Fails: there is no TLS to show a certificate over.
pub(crate) fn certificate() -> io::Result<Certificate> {
    Err(unsupported())
}

impl TlsSession {
    pub(super) fn far(_: &Certificate) -> io::Result<Self> {
        Err(unsupported())
    }

    pub(super) fn near(_: &str) -> io::Result<Self> {
        Err(unsupported())
    }

    pub(super) fn shake(&mut self, _: &mut (impl Read + Write)) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn read(&mut self, _: &mut (impl Read + Write), _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(super) fn write_all(&mut self, _: &mut impl Write, _: &[u8]) -> io::Result<()> {
        match *self {}
    }
}

fn unsupported() -> io::Error {
    io::Error::new(ErrorKind::Unsupported, NO_TLS)
}
