//! `towline scheduler`: the scheduler of a task runtime's workers and clients.

use std::io::Write;
use std::net::SocketAddr;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use towline::Address;
use towline_runtime::Scheduler;

use crate::STOP_WITHIN;
use crate::bench::case::Wait;
use crate::failure::{Failure, transport};
use crate::metrics::Exporter;
use crate::output::Output;
use crate::serve::{refused, registry_of};
use crate::trust::Trust;

const EXAMPLE: &str = "\
Examples:
  towline scheduler towline://127.0.0.1:7100
  towline scheduler 'towline://*:7100' --token-file secret    # workers and clients show the same secret
  towline scheduler towline://127.0.0.1:7100 --metrics 127.0.0.1:9100
  towline top towline://127.0.0.1:7100                        # in another terminal: how it is

A worker is a program with functions of yours in it, in ten lines: examples/examples/worker.rs.
It ends in good order when it is interrupted (exit code 130) or terminated (exit code 0).";

/// Schedule the tasks of a task runtime: workers and clients find it here
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes any free one. The bound address is printed
    address: Address,
    /// How to wait for peers
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    /// Answer `GET /metrics` there, for Prometheus: whoever can reach it reads it. Port 0 takes any free one
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    address: String,
    /// Where the metrics are, if they are served.
    metrics: Option<String>,
}

pub(crate) async fn run(options: &Options, interrupted: &Notify) -> Result<(), Failure> {
    options.output.check()?;
    options.trust.check(&options.address)?;
    // From here on, before anything is promised, a termination is ours.
    let mut termination = signal(SignalKind::terminate())
        .map_err(|error| Failure::run(format!("watching for a termination: {error}")))?;
    let endpoint = options.trust.endpoint(options.wait)?;
    let started = Scheduler::start(&endpoint, &options.address).await;
    let scheduler = started.map_err(|error| transport(&error).map_or_else(|| error.into(), refused))?;
    let exporter = match options.metrics {
        Some(at) => {
            let mut registry = registry_of(&endpoint);
            registry.register_collector(Box::new(scheduler.metrics()));
            Some(Exporter::bind(at, registry).await?)
        }
        None => None,
    };
    let metrics = exporter.as_ref().map(|(_, url)| url.clone());
    let document = Document { schema: 1, address: scheduler.address().to_string(), metrics };
    options.output.give(&document, |out: &mut dyn Write| {
        writeln!(out, "{}", document.address)?;
        document.metrics.iter().try_for_each(|url| writeln!(out, "metrics at {url}"))
    })?;
    if let Some((exporter, _)) = exporter {
        tokio::spawn(exporter.serve());
    }
    let outcome = tokio::select! {
        () = interrupted.notified() => Err(Failure::Interrupted),
        _ = termination.recv() => Ok(()),
    };
    // A peer that takes no part must not hold it up.
    let _ = tokio::time::timeout(STOP_WITHIN / 2, scheduler.close()).await;
    outcome
}
