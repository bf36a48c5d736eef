//! `--metrics`: what an endpoint and what runs on it count, for a Prometheus server that asks over HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::failure::Failure;

/// A request takes less, or is dropped.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// A request's head is shorter, or is refused.
const HEAD_LEN_MAX: usize = 8 << 10;
/// Requests answered at once; more wait in the operating system's queue.
const REQUESTS_MAX: usize = 16;
/// How long a listener that ran out of descriptors waits before it tries again.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers `GET /metrics` at one address until it is dropped.
#[derive(Debug)]
pub(crate) struct Exporter {
    listener: TcpListener,
    registry: Arc<Registry>,
}

impl Exporter {
    /// Listens for Prometheus, and tells where, as a URL.
    pub(crate) async fn bind(at: SocketAddr, registry: Registry) -> Result<(Self, String), Failure> {
        let bind = async {
            let listener = TcpListener::bind(at).await?;
            let url = format!("http://{}/metrics", listener.local_addr()?);
            Ok((Self { listener, registry: Arc::new(registry) }, url))
        };
        bind.await.map_err(|error: io::Error| Failure::usage(format!("metrics at {at}: {error}")))
    }

    pub(crate) async fn serve(self) {
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let registry = self.registry.clone();
                    tokio::spawn(async move {
                        // Who asks badly or slowly is nobody else's concern.
                        let _ = tokio::time::timeout(REQUEST_WITHIN, answer(stream, &registry)).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    let ends = |head: &[u8]| head.windows(4).any(|four| four == b"\r\n\r\n");
    while !ends(&head) {
        if head.len() >= HEAD_LEN_MAX {
            return respond(&mut stream, "431 Request Header Fields Too Large", "text/plain", "too long\n")
                .await;
        }
        let room = (HEAD_LEN_MAX - head.len()) as u64;
        if (&mut stream).take(room).read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            let mut page = String::new();
            text::encode(&mut page, registry).map_err(io::Error::other)?;
            respond(&mut stream, "200 OK", kind, &page).await
        }
        (Some(b"GET"), _) => {
            respond(&mut stream, "404 Not Found", "text/plain", "the metrics are at /metrics\n").await
        }
        _ => respond(&mut stream, "405 Method Not Allowed", "text/plain", "only GET is answered\n").await,
    }
}

async fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
