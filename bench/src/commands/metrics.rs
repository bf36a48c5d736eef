//! `--metrics`: the metrics of an endpoint and of its command, for Prometheus over HTTP.

mod address;
mod request;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use towline::{Admission, Endpoint};
use towline_runtime::Scheduler;

pub(crate) use self::address::MetricsAddress;
use self::request::{HttpRequest, Refusal};
use crate::failure::Failure;

/// The time limit of a request.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// The longest head of a request.
const HEAD_LEN_MAX: usize = 8 << 10;
/// How much of a refused request is read after its head.
const REST_LEN_MAX: u64 = 64 << 10;
/// Connections at once. A further connection replaces the oldest.
const CONNECTIONS_MAX: usize = 64;

/// Answers `GET /metrics` at one address until it is dropped.
#[derive(Debug)]
pub(crate) struct Exporter {
    listener: TcpListener,
    registry: Arc<Registry>,
}

impl Exporter {
    /// Listens for scrapes of the endpoint and, if there is one, of the scheduler. Returns the URL too.
    pub(crate) async fn bind(
        at: &MetricsAddress,
        endpoint: &Endpoint,
        scheduler: Option<&Scheduler>,
    ) -> Result<(Self, String), Failure> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(endpoint.metrics()));
        if let Some(scheduler) = scheduler {
            registry.register_collector(Box::new(scheduler.metrics()));
        }
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
                        // A bad or slow request affects no other connection.
                        admitted.hold(timeout(REQUEST_WITHIN, answer(stream, &registry))).await
                    });
                }
                Err(error) => {
                    tokio::time::sleep(admission.accept_failed(&error, clock.elapsed())).await;
                }
            }
            // Handle requests that have arrived before accepting the next connection.
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
        // Unread bytes would reset the connection, and the peer might lose the answer.
        tokio::io::copy(&mut stream.take(REST_LEN_MAX), &mut tokio::io::sink()).await?;
    }
    Ok(())
}

/// Reads a request; `None` if the peer closes first.
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
