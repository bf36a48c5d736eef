//! The door's stream after the handshake: taken by a link that carries control itself, or kept here for heartbeats.
//!
//! Kept, it carries single bytes: ask, answer. Its end is the peer's end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::tls::{Tls, TlsStream, secure_as_acceptor, secure_as_connector};
use crate::environment::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::handshake::{BINDING_LEN, Role};
use crate::wire::liveness::{Due, Liveness};

const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// The stream that a handshake ran on.
#[derive(Debug)]
pub struct Control(Line);

#[derive(Debug)]
enum Line {
    Socket(TcpStream),
    Tls(Box<TlsStream>),
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
        match self.into_parts()? {
            (socket, None) => Ok(socket),
            (_, Some(_)) => Err(Error::new(ErrorKind::Unsupported, "the handshake ran on TLS")),
        }
    }

    /// The socket, non-blocking, and the TLS session on it, if there is one.
    pub(crate) fn into_parts(self) -> Result<(std::net::TcpStream, Option<rustls::Connection>)> {
        match self.0 {
            Line::Socket(stream) => Ok((stream.into_std().map_err(Error::io)?, None)),
            Line::Tls(stream) => stream.into_parts().map(|(socket, tls)| (socket, Some(tls))),
            Line::Process(_) => {
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
        let Line::Socket(socket) = self.0 else { return Ok(self) };
        let stream = match role {
            Role::Connector => secure_as_connector(socket, tls, host, environment).await?,
            Role::Acceptor => secure_as_acceptor(socket, tls, environment).await?,
        };
        Ok(Self(Line::Tls(Box::new(stream))))
    }

    /// What the TLS session is known by, if there is one.
    pub(crate) fn binding(&self) -> Result<Option<[u8; BINDING_LEN]>> {
        match &self.0 {
            Line::Tls(stream) => stream.binding().map(Some),
            Line::Socket(_) | Line::Process(_) => Ok(None),
        }
    }

    /// Where the other end of the socket is; `None` within a process.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Line::Socket(stream) => stream.peer_addr().ok(),
            Line::Tls(stream) => stream.peer_addr().ok(),
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
        // A word that the peer makes no room for waits beside everything else, and so holds nothing up.
        let mut unsaid = None;
        loop {
            let mut timer = environment.sleep_until(environment.now() + heartbeat / 4);
            let event = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                match self.poll_turn(cx, &mut unsaid) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => timer.as_mut().poll(cx).map(|()| Some(Ok(Event::Nothing))),
                }
            })
            .await?;
            let said = match event {
                Ok(Event::Heard(byte)) => Some(byte),
                Ok(Event::Nothing) => None,
                Ok(Event::End) => return Some(Error::new(ErrorKind::PeerLost, "its control stream ended")),
                Err(error) => return Some(Error::io(error)),
            };
            if said.is_some() {
                liveness.heard(environment.now());
            }
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
            if unsaid != Some(ANSWER) {
                unsaid = Some(say);
            }
        }
    }

    /// Says what is unsaid if it can, and hears a byte if there is one.
    fn poll_turn(&mut self, cx: &mut Context<'_>, unsaid: &mut Option<u8>) -> Poll<io::Result<Event>> {
        if let Some(word) = *unsaid
            && let Poll::Ready(written) = Pin::new(&mut *self).poll_write(cx, &[word])
        {
            written?;
            *unsaid = None;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(self).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().first().map_or(Event::End, |byte| Event::Heard(*byte))))
    }
}

/// What happens on a control stream.
enum Event {
    Heard(u8),
    End,
    /// Time passed.
    Nothing,
}

impl AsyncRead for Control {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Line::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Line::Process(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Control {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Line::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            Line::Process(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Line::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Line::Process(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Line::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Line::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Line::Process(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::environment::System;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_holds_up_no_end() {
        let (near, mut far) = tokio::io::duplex(4);
        let system = System::start().unwrap();
        let over = Notify::new();
        let attending = Control::from(near).attend(Duration::from_secs(60), &system, over.notified());
        let asking = async {
            // Four answers fill the stream, and the others find no room.
            far.write_all(&[ASK; 16]).await.unwrap();
            over.notify_one();
            std::future::pending::<()>().await;
        };
        let end = tokio::time::timeout(Duration::from_secs(5), async {
            tokio::select! {
                end = attending => end,
                () = asking => unreachable!("it waits"),
            }
        });
        assert!(end.await.expect("it hears of the end").is_none());
    }
}
