//! `towline serve`: the echo, sink and region peer for `explain` and `bench --connect`.

use std::io::{Read, Write};
use std::net::SocketAddr;

use prometheus_client::registry::Registry;
use serde::Serialize;
use towline::{Address, Endpoint, ErrorKind};

use crate::bench::case::Wait;
use crate::failure::Failure;
use crate::metrics::Exporter;
use crate::output::Output;
use crate::peer::{self, CpuClock};
use crate::trust::Trust;

const EXAMPLE: &str = "\
Examples:
  towline serve tcp://127.0.0.1:7000
  towline serve 'towline://*:7000' --token-file secret    # any path that both ends have
  towline serve 'tls://*:7000' --cert cert.pem --key key.pem --ca ca.pem    # whom ca.pem signed comes in
  towline serve tcp://127.0.0.1:7000 --metrics 127.0.0.1:9100
  towline bench --connect tcp://127.0.0.1:7000            # in another terminal";

/// Be the other end of `explain` and `bench --connect`, until interrupted
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes any free one. The bound address is printed
    address: Address,
    /// How to wait for the peer
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    /// Answer `GET /metrics` there, for Prometheus: whoever can reach it reads it. Port 0 takes any free one
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    output: Output,
    /// End when standard input does: a parent's death is noticed that way
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    address: String,
    /// Where the metrics are, if they are served.
    metrics: Option<String>,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    options.output.check()?;
    options.trust.check(&options.address)?;
    let endpoint = options.trust.endpoint(options.wait)?;
    let listener = endpoint.listen(&options.address).await.map_err(refused)?;
    let exporter = match options.metrics {
        Some(at) => Some(Exporter::bind(at, registry_of(&endpoint)).await?),
        None => None,
    };
    let metrics = exporter.as_ref().map(|(_, url)| url.clone());
    let document = Document { schema: 1, address: listener.address().to_string(), metrics };
    options.output.give(&document, |out: &mut dyn Write| {
        writeln!(out, "{}", document.address)?;
        document.metrics.iter().try_for_each(|url| writeln!(out, "metrics at {url}"))
    })?;
    if let Some((exporter, _)) = exporter {
        tokio::spawn(exporter.serve());
    }
    let serving = peer::serve(listener, CpuClock::Process);
    if options.until_stdin_ends {
        tokio::select! {
            outcome = serving => outcome,
            () = stdin_ends() => Ok(()),
        }
    } else {
        serving.await
    }
}

/// What the endpoint counts.
pub(crate) fn registry_of(endpoint: &Endpoint) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(endpoint.metrics()));
    registry
}

/// An address that cannot be had is wrong usage; everything else is a failure.
pub(crate) fn refused(error: towline::Error) -> Failure {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Unsupported => Failure::usage(error.to_string()),
        _ => error.into(),
    }
}

async fn stdin_ends() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while std::io::stdin().read(&mut byte).is_ok_and(|count| count > 0) {}
        // Nobody listens where the command has ended first.
        let _ = ended.send(());
    });
    // A thread that could not tell has ended as well.
    let _ = wait.await;
}
