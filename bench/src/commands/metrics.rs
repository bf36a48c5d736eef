//! `--metrics`: what an endpoint and what runs on it count, for a Prometheus server that asks over HTTP.

mod address;
mod request;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use towline::Admission;

pub(crate) use self::address::MetricsAddress;
use self::request::{HttpRequest, Refusal};
use crate::failure::Failure;

/// A request takes less, or is dropped.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// A request's head is shorter, or is refused.
const HEAD_LEN_MAX: usize = 8 << 10;
/// What is read of a request that was refused, after its head.
const REST_LEN_MAX: u64 = 64 << 10;
/// Connections at once. Where there are so many, the oldest makes room for a newcomer.
const CONNECTIONS_MAX: usize = 64;

/// Answers `GET /metrics` at one address until it is dropped.
#[derive(Debug)]
pub(crate) struct Exporter {
    listener: TcpListener,
    registry: Arc<Registry>,
}

impl Exporter {
    /// Listens for Prometheus, and tells where, as a URL.
    pub(crate) async fn bind(at: &MetricsAddress, registry: Registry) -> Result<(Self, String), Failure> {
        let bind = async {
            let listener = at.bind().await?;
            let url = format!("http://{}/metrics", listener.local_addr()?);
            Ok((Self { listener, registry: Arc::new(registry) }, url))
        };
        bind.await.map_err(|error: io::Error| Failure::usage(format!("--metrics {at}: {error}")))
    }

    pub(crate) async fn serve(self) {
        let (admission, clock) = (Admission::new(CONNECTIONS_MAX), Instant::now());
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let admitted = admission.place_since(clock, from.ip().into()).await;
                    let registry = self.registry.clone();
                    tokio::spawn(async move {
                        // Who asks badly or slowly is nobody else's concern.
                        admitted.hold(timeout(REQUEST_WITHIN, answer(stream, &registry))).await
                    });
                }
                Err(error) => {
                    tokio::time::sleep(admission.accept_failed(&error, clock.elapsed())).await;
                }
            }
            // Whose request is here already is heard before the next one comes in.
            tokio::task::yield_now().await;
        }
    }
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let Some(HttpRequest { asks_for, head_only }) = request(&mut stream).await? else { return Ok(()) };
    let (status, kind, body) = match asks_for {
        Ok(format) => ("200 OK", format.content_type(), format.page(registry).map_err(io::Error::other)?),
        Err(refusal) => (refusal.status(), "text/plain; charset=utf-8", refusal.sentence().to_owned()),
    };
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    if !head_only {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await?;
    if asks_for.is_err() {
        // What is left unread would reset the connection, and the peer might lose the answer by that.
        tokio::io::copy(&mut stream.take(REST_LEN_MAX), &mut tokio::io::sink()).await?;
    }
    Ok(())
}

/// What a peer asks for; nothing if it goes before it has said so.
async fn request(stream: &mut TcpStream) -> io::Result<Option<HttpRequest>> {
    let mut head = Vec::with_capacity(1024);
    while head.len() < HEAD_LEN_MAX {
        let room = (HEAD_LEN_MAX - head.len()) as u64;
        if (&mut *stream).take(room).read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        if let Some(request) = HttpRequest::read(&head) {
            return Ok(Some(request));
        }
    }
    Ok(Some(HttpRequest::refused(Refusal::TooLong)))
}
