//! What the commands share that listen until they are interrupted.

use std::io::Write;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use towline::{Address, Endpoint, ErrorKind, Scheme};
use towline_runtime::Scheduler;

use super::metrics::{Exporter, MetricsAddress};
use crate::case::Wait;
use crate::failure::Failure;
use crate::security::trust::Trust;
use crate::terminal::output::Output;
use crate::terminal::print::say;

/// The address to listen at, the trust, and how the address is reported.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Listening {
    /// The address to listen at; port 0 takes any free port. The bound address is printed
    pub(crate) address: Address,
    /// Print this address instead of the bound one, if peers reach it by another: behind address translation,
    /// or in a container with a published port. Port 0 stands for the bound port
    #[arg(long, value_name = "ADDR")]
    advertise: Option<Address>,
    /// How to wait for peers
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    /// Serve `GET /metrics` at this address for Prometheus, such as 127.0.0.1:9100, localhost:9100, or :9100
    /// for every interface. It needs no authentication. Port 0 takes any free port
    #[arg(long, value_name = "ADDR")]
    metrics: Option<MetricsAddress>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    complete: bool,
    address: String,
    /// The URL of the metrics, if they are served.
    metrics: Option<String>,
}

impl Listening {
    /// Returns the endpoint; a failure of its settings is wrong usage.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Failure> {
        self.output.check()?;
        self.trust.check(&self.address)?;
        if let Some(address) = &self.advertise
            && (address.is_wildcard() || address.scheme() == Scheme::Mem)
        {
            let why = format!(
                "--advertise {address}: it cannot be advertised: write the host and port where others find it"
            );
            return Err(Failure::usage(why));
        }
        self.trust.endpoint(self.wait)
    }

    /// Returns the address at which peers reach the bound one.
    fn published(&self, bound: &Address) -> Result<Address, towline::Error> {
        match &self.advertise {
            None => Ok(bound.clone()),
            Some(address) if address.port() == 0 => {
                Address::new(address.scheme(), address.host(), bound.port())?.with_options_of(address)
            }
            Some(address) => Ok(address.clone()),
        }
    }

    /// Prints where it listens. With `--metrics`, serves the metrics of the endpoint and of the scheduler.
    pub(crate) async fn announce(
        &self,
        bound: &Address,
        endpoint: &Endpoint,
        scheduler: Option<&Scheduler>,
    ) -> Result<(), Failure> {
        self.renew_at_hangups(endpoint)?;
        let exporter = match &self.metrics {
            Some(at) => Some(Exporter::bind(at, endpoint, scheduler).await?),
            None => None,
        };
        let metrics = exporter.as_ref().map(|(_, url)| url.clone());
        let document =
            Document { schema: 1, complete: true, address: self.published(bound)?.to_string(), metrics };
        self.output.give(&document, |out: &mut dyn Write| {
            writeln!(out, "{}", document.address)?;
            document.metrics.iter().try_for_each(|url| writeln!(out, "metrics at {url}"))
        })?;
        if let Some((exporter, _)) = exporter {
            tokio::spawn(exporter.serve());
        }
        Ok(())
    }
}

impl Listening {
    /// Reads certificates, keys and the token again at every SIGHUP.
    fn renew_at_hangups(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let mut hangups = signal(SignalKind::hangup())
            .map_err(|error| Failure::run(format!("watching for SIGHUP: {error}")))?;
        let (trust, endpoint) = (self.trust.clone(), endpoint.clone());
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                match trust.renew(&endpoint) {
                    Ok(()) => say("SIGHUP: certificates and token were read anew, for connections to come"),
                    Err(failure) => {
                        say(format_args!("SIGHUP: certificates and token are unchanged: {failure}"))
                    }
                }
            }
        });
        Ok(())
    }
}

/// An address that cannot be bound is wrong usage; everything else is a failure.
pub(crate) fn refused(error: towline::Error) -> Failure {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Unsupported => Failure::usage(error.to_string()),
        _ => error.into(),
    }
}
