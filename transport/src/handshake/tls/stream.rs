//! The TLS stream below a handshake, and how it is set up.

use std::io::{self, BufRead, ErrorKind::WouldBlock, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{ClientConnection, Connection, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{ALPN, Tls, errors};
use crate::handshake::refusal::{self, Refusal};
use crate::platform::environment::Environment;
use crate::wire::handshake::BINDING_LEN;
use crate::{Error, ErrorKind, Result};

/// The most encrypted bytes waiting to be sent; a handshake needs no more.
const UNSENT_LEN_MAX: usize = 64 << 10;
/// The record types that may begin a TLS connection: handshake or alert.
const RECORD_TYPES: [u8; 2] = [0x16, 0x15];

/// A socket, and TLS over it.
#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: TcpStream,
    tls: Connection,
}

/// Runs the connector's TLS handshake. The caller bounds its time.
pub(crate) async fn secure_as_connector(
    socket: TcpStream,
    tls: &Tls,
    host: &str,
    environment: &dyn Environment,
) -> Result<TlsStream> {
    let connection = ClientConnection::new(tls.client()?, tls.server_name(host)?).map_err(unusable)?;
    let mut stream = TlsStream::new(socket, connection.into());
    let secured = async {
        stream.flush().await?;
        let first = stream.first_byte().await?;
        if !RECORD_TYPES.contains(&first) {
            return Err(refusal::of_plain_listener(&mut stream.socket, environment).await);
        }
        stream.run_handshake().await
    };
    match secured.await {
        Ok(()) => Ok(stream),
        Err(refusal) => Err(stream.send_alert(refusal, environment).await),
    }
}

/// Runs the acceptor's TLS handshake. The caller bounds its time.
pub(crate) async fn secure_as_acceptor(
    socket: TcpStream,
    tls: &Tls,
    environment: &dyn Environment,
) -> Result<TlsStream> {
    let connection = ServerConnection::new(tls.server()?).map_err(unusable)?;
    let mut stream = TlsStream::new(socket, connection.into());
    let secured = async {
        if !RECORD_TYPES.contains(&stream.first_byte().await?) {
            return Err(refusal::of_plain_connector(&mut stream.socket, environment).await);
        }
        stream.run_handshake().await
    };
    match secured.await {
        Ok(()) => Ok(stream),
        Err(refusal) => Err(stream.send_alert(refusal, environment).await),
    }
}

impl TlsStream {
    fn new(socket: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(UNSENT_LEN_MAX));
        Self { socket, tls }
    }

    /// Returns the channel binding: a secret that only the two ends of this TLS session know.
    pub(crate) fn binding(&self) -> Result<[u8; BINDING_LEN]> {
        self.tls.export_keying_material([0; BINDING_LEN], b"EXPORTER-towline", None).map_err(unusable)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns this end's address.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns the peer's address.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Returns the socket, non-blocking, and the TLS session, which may hold bytes of either direction.
    pub(crate) fn into_parts(self) -> Result<(std::net::TcpStream, Connection)> {
        Ok((self.socket.into_std().map_err(Error::io)?, self.tls))
    }

    /// Waits for the other end's first byte, and leaves it unread.
    async fn first_byte(&self) -> Result<u8, Refusal> {
        let mut first = [0];
        match self.socket.peek(&mut first).await? {
            0 => Err(Refusal::without_reply(errors::cut_off())),
            _ => Ok(first[0]),
        }
    }

    /// Runs the TLS handshake until both ends have keys and have agreed on ALPN.
    async fn run_handshake(&mut self) -> Result<(), Refusal> {
        loop {
            self.flush().await?;
            if !self.tls.is_handshaking() {
                break;
            }
            if std::future::poll_fn(|cx| self.poll_fill(cx)).await? == 0 {
                return Err(Refusal::without_reply(errors::cut_off()));
            }
        }
        if self.tls.alpn_protocol() == Some(ALPN) {
            return Ok(());
        }
        let why = "not a Towline endpoint: it speaks TLS, and has not agreed to speak towline/1 over it";
        Err(Refusal::without_reply(Error::new(ErrorKind::Incompatible, why)))
    }

    async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// Sends the pending alert, ends the stream, and drains what is in flight.
    async fn send_alert(&mut self, refusal: Refusal, environment: &dyn Environment) -> Error {
        let Self { socket, tls } = self;
        let mut alert = Vec::new();
        while tls.wants_write() && tls.write_tls(&mut alert).is_ok() {}
        refusal.deliver_after(&alert, socket, environment).await
    }

    /// Reads ciphertext, once there is some. Returns 0 at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.tls.read_tls(&mut ReadySocket(&self.socket)) {
                Ok(len) => {
                    self.tls.process_new_packets().map_err(|error| errors::io_error(&self.tls, error))?;
                    return Poll::Ready(Ok(len));
                }
                Err(error) if error.kind() == WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes all pending ciphertext.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut ReadySocket(&self.socket)) {
                Err(error) if error.kind() != WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut plain = this.tls.reader();
            match plain.fill_buf() {
                Ok(bytes) => {
                    let len = bytes.len().min(buf.remaining());
                    buf.put_slice(&bytes[..len]);
                    plain.consume(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == WouldBlock => drop(ready!(this.poll_fill(cx))?),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Pending ciphertext is bounded; once it is all sent, there is room.
        ready!(this.poll_send(cx))?;
        let len = this.tls.writer().write(bytes)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The alert is sent once, however often this is polled.
        this.tls.send_close_notify();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

/// A socket assumed to be ready, with the I/O traits that rustls uses.
struct ReadySocket<'a>(&'a TcpStream);

impl Read for ReadySocket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for ReadySocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unusable(error: rustls::Error) -> Error {
    Error::new(ErrorKind::Invalid, "TLS cannot be set up with these settings").caused_by(error)
}
