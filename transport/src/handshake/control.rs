//! The stream of a handshake afterwards: taken over by a link that carries control itself, or kept as the
//! control stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::tls::{Tls, TlsSession, TlsStream, secure_as_acceptor, secure_as_connector};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::Environment;
use crate::wire::handshake::{BINDING_LEN, Role};

/// The stream that a handshake ran on.
#[derive(Debug)]
pub struct Control(Transport);

#[derive(Debug)]
enum Transport {
    Socket(TcpStream),
    Tls(Box<TlsStream>),
    Process(DuplexStream),
}

impl From<TcpStream> for Control {
    fn from(stream: TcpStream) -> Self {
        Self(Transport::Socket(stream))
    }
}

impl From<DuplexStream> for Control {
    fn from(stream: DuplexStream) -> Self {
        Self(Transport::Process(stream))
    }
}

impl Control {
    /// Returns the socket, non-blocking, for a link that carries control in its own protocol.
    ///
    /// # Errors
    /// `Unsupported` if the handshake did not run on a plain socket.
    pub fn into_socket(self) -> Result<std::net::TcpStream> {
        match self.into_parts()? {
            (socket, None) => Ok(socket),
            (_, Some(_)) => Err(Error::new(ErrorKind::Unsupported, "the handshake ran on TLS")),
        }
    }

    /// Returns the socket, non-blocking, and the TLS session on it, if there is one.
    pub(crate) fn into_parts(self) -> Result<(std::net::TcpStream, Option<TlsSession>)> {
        match self.0 {
            Transport::Socket(stream) => Ok((stream.into_std().map_err(Error::io)?, None)),
            Transport::Tls(stream) => stream.into_parts().map(|(socket, tls)| (socket, Some(tls))),
            Transport::Process(_) => {
                Err(Error::new(ErrorKind::Unsupported, "the handshake did not run on a socket"))
            }
        }
    }

    /// Sets up TLS on a socket that has carried nothing yet; for a connector, `host` is that of the
    /// listener's address. A stream within the process is returned unchanged.
    pub(super) async fn secure(
        self,
        role: Role,
        tls: &Tls,
        host: &str,
        environment: &dyn Environment,
    ) -> Result<Self> {
        let Transport::Socket(socket) = self.0 else { return Ok(self) };
        let stream = match role {
            Role::Connector => secure_as_connector(socket, tls, host, environment).await?,
            Role::Acceptor => secure_as_acceptor(socket, tls, environment).await?,
        };
        Ok(Self(Transport::Tls(Box::new(stream))))
    }

    /// Completes once the first byte of a new socket has arrived, or the socket has ended.
    pub(crate) async fn first_byte_or_end(&self) {
        if let Transport::Socket(socket) = &self.0 {
            // The next read reports an error.
            let _ = socket.readable().await;
        }
    }

    /// Returns the channel binding of the TLS session, if there is one.
    pub(crate) fn binding(&self) -> Result<Option<[u8; BINDING_LEN]>> {
        match &self.0 {
            Transport::Tls(stream) => stream.binding().map(Some),
            Transport::Socket(_) | Transport::Process(_) => Ok(None),
        }
    }

    /// Discards unsent data and sends a reset, which does not wait for acknowledgements as a FIN does. The
    /// stream cannot be used afterwards. Has no effect on a stream within the process.
    pub(super) fn reset(&self) {
        let socket = match &self.0 {
            Transport::Socket(stream) => stream.as_fd(),
            Transport::Tls(stream) => stream.descriptor(),
            Transport::Process(_) => return,
        };
        // A socket that is no longer connected needs no reset.
        let _ = rustix::net::connect_unspec(socket);
    }

    /// Returns the socket addresses of this end and of the peer; `None` within a process. IPv4 addresses of an
    /// IPv6 socket are returned as IPv4 addresses, so that both ends report the same.
    pub(crate) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let local = match &self.0 {
            Transport::Socket(stream) => stream.local_addr().ok(),
            Transport::Tls(stream) => stream.local_addr().ok(),
            Transport::Process(_) => None,
        };
        let canonical = |address: SocketAddr| match address {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
                SocketAddr::new(address.ip().to_canonical(), address.port())
            }
            other => other,
        };
        Some((canonical(local?), canonical(self.peer_addr()?)))
    }

    /// Returns the peer's address; `None` within a process.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Transport::Socket(stream) => stream.peer_addr().ok(),
            Transport::Tls(stream) => stream.peer_addr().ok(),
            Transport::Process(_) => None,
        }
    }
}

impl AsyncRead for Control {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Transport::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Transport::Process(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Control {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Transport::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            Transport::Process(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Transport::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Transport::Process(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Transport::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Transport::Process(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
