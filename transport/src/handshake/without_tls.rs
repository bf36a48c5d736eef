//! The types of TLS in a build without the feature `tls`. None of them has a value: `tls://` addresses are
//! refused before a connection begins, and other code need not check the feature.

use std::io;
use std::net::{SocketAddr, TcpStream as Socket};
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::Result;
use crate::platform::environment::Environment;
use crate::wire::handshake::BINDING_LEN;

/// The settings of TLS. Without the feature `tls` it has no value, and `tls://` addresses are refused with
/// `Unsupported`.
#[derive(Clone, Debug)]
pub enum Tls {}

impl Tls {
    pub(crate) fn does_what(&self, _: &Self) -> bool {
        match *self {}
    }

    pub(crate) fn knows_clients(&self) -> bool {
        match *self {}
    }

    pub(crate) fn server(&self) -> Result<TlsSession> {
        match *self {}
    }

    pub(crate) fn client(&self) -> Result<TlsSession> {
        match *self {}
    }

    pub(crate) fn server_name(&self, _: &str) -> Result<String> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum TlsSession {}

#[derive(Debug)]
pub(crate) enum TlsStream {}

impl TlsStream {
    pub(crate) fn into_parts(self) -> Result<(Socket, TlsSession)> {
        match self {}
    }

    pub(crate) fn binding(&self) -> Result<[u8; BINDING_LEN]> {
        match *self {}
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match *self {}
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}

pub(crate) async fn secure_as_connector(
    _: TcpStream,
    tls: &Tls,
    _: &str,
    _: &dyn Environment,
) -> Result<TlsStream> {
    match *tls {}
}

pub(crate) async fn secure_as_acceptor(_: TcpStream, tls: &Tls, _: &dyn Environment) -> Result<TlsStream> {
    match *tls {}
}
