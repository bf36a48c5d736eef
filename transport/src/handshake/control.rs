//! The handshake's stream after the handshake: taken by a link that carries control itself, or kept for heartbeats.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::tls::{Session, Tls, TlsStream, secure_as_acceptor, secure_as_connector};
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
    /// The socket itself, non-blocking, for a link that carries control in its own frames.
    ///
    /// # Errors
    /// `Unsupported` if the handshake did not run on a plain socket.
    pub fn into_socket(self) -> Result<std::net::TcpStream> {
        match self.into_parts()? {
            (socket, None) => Ok(socket),
            (_, Some(_)) => Err(Error::new(ErrorKind::Unsupported, "the handshake ran on TLS")),
        }
    }

    /// The socket, non-blocking, and the TLS session on it, if there is one.
    pub(crate) fn into_parts(self) -> Result<(std::net::TcpStream, Option<Session>)> {
        match self.0 {
            Transport::Socket(stream) => Ok((stream.into_std().map_err(Error::io)?, None)),
            Transport::Tls(stream) => stream.into_parts().map(|(socket, tls)| (socket, Some(tls))),
            Transport::Process(_) => {
                Err(Error::new(ErrorKind::Unsupported, "the handshake did not run on a socket"))
            }
        }
    }

    /// TLS over a socket that has carried nothing yet, which is one of a listener at `host` for the connector; a stream
    /// within the process needs none.
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

    /// Ends once the other end of a socket that has carried nothing yet has said something, or has left.
    pub(crate) async fn first_byte_or_end(&self) {
        if let Transport::Socket(socket) = &self.0 {
            // Whoever reads next learns of an error.
            let _ = socket.readable().await;
        }
    }

    /// What the TLS session is known by, if there is one.
    pub(crate) fn binding(&self) -> Result<Option<[u8; BINDING_LEN]>> {
        match &self.0 {
            Transport::Tls(stream) => stream.binding().map(Some),
            Transport::Socket(_) | Transport::Process(_) => Ok(None),
        }
    }

    /// Discards unsent data and sends a reset, which does not wait for acknowledgements as a FIN does. Nothing can be read or
    /// written afterwards, except within a process.
    pub(super) fn reset(&self) {
        let socket = match &self.0 {
            Transport::Socket(stream) => stream.as_fd(),
            Transport::Tls(stream) => stream.descriptor(),
            Transport::Process(_) => return,
        };
        // A socket that is not connected any more has nothing to reset.
        let _ = rustix::net::connect_unspec(socket);
    }

    /// Where the other end of the socket is; `None` within a process.
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
