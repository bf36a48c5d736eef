//! The door's stream after the handshake: taken by a link that carries control itself, or kept here for heartbeats.
//!
//! Kept, it carries single bytes: ask, answer. Its end is the peer's end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use crate::environment::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::liveness::{Due, Liveness};

const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// The stream that a handshake ran on.
#[derive(Debug)]
pub struct Control(Line);

#[derive(Debug)]
enum Line {
    Socket(TcpStream),
    Process(DuplexStream),
}

impl From<TcpStream> for Control {
    fn from(stream: TcpStream) -> Self {
        Self(Line::Socket(stream))
    }
}

impl From<DuplexStream> for Control {
    fn from(stream: DuplexStream) -> Self {
        Self(Line::Process(stream))
    }
}

impl Control {
    /// The socket itself, non-blocking, for a link that carries control in its own frames.
    ///
    /// # Errors
    /// `Unsupported` if the handshake did not run on a plain socket.
    pub fn into_socket(self) -> Result<std::net::TcpStream> {
        match self.0 {
            Line::Socket(stream) => stream.into_std().map_err(Error::io),
            Line::Process(_) => {
                Err(Error::new(ErrorKind::Unsupported, "the handshake did not run on a socket"))
            }
        }
    }

    /// Where the other end of the socket is; `None` within a process.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Line::Socket(stream) => stream.peer_addr().ok(),
            Line::Process(_) => None,
        }
    }

    /// Asks and answers until the peer is lost, and tells how; `None` if `ended` came first.
    pub(crate) async fn attend(
        mut self,
        heartbeat: Duration,
        environment: &dyn Environment,
        ended: impl Future<Output = ()>,
    ) -> Option<Error> {
        let mut ended = std::pin::pin!(ended);
        let mut liveness = Liveness::new(heartbeat, environment.now());
        loop {
            let mut timer = environment.sleep_until(environment.now() + heartbeat / 4);
            let mut byte = [0];
            let event = {
                let mut read = std::pin::pin!(self.read(&mut byte));
                std::future::poll_fn(|cx| {
                    if ended.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    if let Poll::Ready(read) = read.as_mut().poll(cx) {
                        return Poll::Ready(Some(Some(read)));
                    }
                    timer.as_mut().poll(cx).map(|()| Some(None))
                })
                .await?
            };
            match &event {
                Some(Ok(0)) => return Some(Error::new(ErrorKind::PeerLost, "its control stream ended")),
                Some(Err(error)) => return Some(Error::io(error.kind().into())),
                Some(Ok(_)) => liveness.heard(environment.now()),
                None => {}
            }
            let said = event.is_some().then_some(byte[0]);
            let say = match (said, liveness.due(environment.now())) {
                (_, Due::Lost(silent)) => {
                    let why = format!("no sign of life for {:.1} s", silent.as_secs_f64());
                    return Some(Error::new(ErrorKind::PeerLost, why));
                }
                (Some(ASK), _) => ANSWER,
                (None | Some(ANSWER), Due::Ask) => ASK,
                (None | Some(ANSWER), Due::Nothing) => continue,
                (Some(other), _) => {
                    let why = format!("byte {other} on the control stream means nothing");
                    return Some(Error::new(ErrorKind::Corrupt, why));
                }
            };
            if let Err(error) = self.write_all(&[say]).await {
                return Some(Error::io(error));
            }
        }
    }
}

impl AsyncRead for Control {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Line::Process(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Control {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Line::Process(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Line::Process(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Line::Process(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
