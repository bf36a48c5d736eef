//! `towline explain`: the path to a peer, the reasons, its prediction, and its measurement.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use towline::{Address, Path, Scheme};

use super::bench::ready;
use super::serve;
use super::wait_for::WaitFor;
use crate::case::Pace;
use crate::case::{Case, Pattern, Transport, Wait};
use crate::data::payload::Check;
use crate::data::place::Places;
use crate::data::units::Size;
use crate::failure::Failure;
use crate::patterns::runner::CaseRunner;
use crate::peer::{Candidate, Peer, PeerView, Speed};
use crate::results::ceiling::Ceiling;
use crate::results::sample::Repeat;
use crate::security::trust::Trust;
use crate::terminal::output::Output;
use crate::terminal::progress::Progress;

const EXAMPLE: &str = "\
Examples:
  towline explain                                   # `towline serve` runs on this machine
  towline explain towline://10.0.0.2:7000           # `towline serve` runs there
  towline explain tls://worker-1:7000 --ca ca.pem   # with --cert and --key where the listener asks for them
  towline explain tcp://10.0.0.2:7000 --wait-for 30 # it is about to start
  towline explain tcp://127.0.0.1:7000 --json | jq .chosen";

/// A peer that has not answered by then is not `towline serve`.
const HELLO_WITHIN: Duration = Duration::from_secs(3);

/// The durations of the probe.
const PROBE: Pace = Pace { warmup: Duration::from_millis(50), duration: Duration::from_millis(250) };

/// Connect, and list every candidate path: chosen or refused and why, predicted and measured
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// The address of a `towline serve`
    #[arg(default_value = serve::ADDRESS)]
    address: Address,
    #[command(flatten)]
    wait_for: WaitFor,
    /// How to wait for the peer
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    complete: bool,
    chosen: String,
    candidates: Vec<Explained>,
    /// Notes on the path.
    notes: Vec<String>,
    /// The other end's view; `null` if it is not `towline serve`.
    peer: Option<PeerView>,
}

/// A candidate, with the probe's result if it is the chosen one.
#[derive(Debug, Serialize)]
struct Explained {
    #[serde(flatten)]
    candidate: Candidate,
    measured: Option<Speed>,
    /// Our share of the ceiling's bandwidth.
    share: Option<f64>,
    copies: Option<f64>,
    encryption: Option<&'static str>,
    integrity: Option<&'static str>,
    /// Sockets that carry the bytes.
    streams: Option<usize>,
}

/// The result of the probe.
#[derive(Debug)]
struct ProbeResult {
    speed: Speed,
    share: Option<f64>,
    copies: Option<f64>,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    options.output.check()?;
    let address = &options.address;
    if address.scheme() == Scheme::Mem {
        return Err(Failure::usage(format!(
            "{address}: mem reaches only its own process, and no peer runs in this one"
        )));
    }
    options.trust.check(address)?;
    let endpoint = options.trust.endpoint(options.wait)?;
    let transport = Transport::to(address);
    ready(transport.name, &endpoint.backends())?;
    let connect = async || endpoint.connect(address).await;
    let peer = Peer::new(options.wait_for.connect(connect, |error| Some(error.clone())).await?);
    let explanation = peer.connection.explain().await;
    let path = &explanation.path;
    let mut progress = Progress::start();
    let about = match tokio::time::timeout(HELLO_WITHIN, peer.hello()).await {
        Ok(about) => Some(about?),
        Err(_) => {
            progress
                .keep("the other end is not `towline serve`: nothing is measured, and its view is unknown");
            None
        }
    };
    peer.close().await?;
    let found = match about {
        Some(_) => Some(probe(options, transport, &mut progress).await?),
        None => None,
    };
    drop(progress);
    let document = Document {
        schema: 1,
        complete: true,
        chosen: path.chosen().to_owned(),
        candidates: Candidate::all_of(&explanation)
            .into_iter()
            .map(|candidate| {
                let chosen = candidate.transport == path.chosen();
                Explained::new(candidate, found.as_ref().filter(|_| chosen), chosen.then_some(path))
            })
            .collect(),
        notes: explanation.notes.clone(),
        peer: about,
    };
    options.output.give(&document, |out: &mut dyn Write| document.write(out))
}

/// Measures latency and bandwidth briefly, beside their ceilings.
async fn probe(
    options: &Options,
    transport: Transport,
    progress: &mut Progress,
) -> Result<ProbeResult, Failure> {
    progress.show("measuring");
    let mut runner = CaseRunner::new(PROBE, &options.trust, Some(&options.address), progress);
    let case = |pattern: Pattern, size, window| Case {
        transport: transport.clone(),
        pattern,
        size: Size(size),
        wait: options.wait,
        frames: 1,
        window,
        buffers: None,
        workers: 2,
        rate: None,
        check: Check::Edges,
        places: Places::default(),
    };
    let latency = runner.repeat(&case(Pattern::Latency, 8, 1)).await?;
    let bandwidth = runner.repeat(&case(Pattern::Bandwidth, 1 << 20, 16)).await?;
    let Repeat { path, sample, ceilings } = bandwidth;
    // In memory, the ceiling is a copy; otherwise the bare socket that is most similar.
    let fits = |ceiling: &&Ceiling| !matches!(&path[..], "mem" | "shm") || ceiling.kind == "memcpy";
    let ceiling = ceilings.iter().rev().find(fits).and_then(|ceiling| ceiling.gb_per_s);
    let gb_per_s = sample.gb_per_s();
    Ok(ProbeResult {
        speed: Speed { gb_per_s, p50_us: latency.sample.times.value_at_quantile(0.5) as f64 / 1e3 },
        share: ceiling.map(|ceiling| gb_per_s / ceiling),
        copies: sample.copies(),
    })
}

impl Explained {
    /// `path` is given for the chosen one.
    fn new(candidate: Candidate, found: Option<&ProbeResult>, path: Option<&Path>) -> Self {
        Self {
            candidate,
            measured: found.map(|found| found.speed),
            share: found.and_then(|found| found.share),
            copies: found.and_then(|found| found.copies),
            encryption: path.map(Path::encryption),
            integrity: path.map(Path::integrity),
            streams: path.map(Path::streams),
        }
    }
}

impl Document {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "chosen: {}", self.chosen)?;
        for explained in &self.candidates {
            let Candidate { transport, state, reason, remedy, predicted, basis } = &explained.candidate;
            writeln!(out, "  {transport:<6} {state:<10} {reason}")?;
            if let Some(remedy) = remedy {
                writeln!(out, "         to have it: {remedy}")?;
            }
            if let (Some(speed), Some(basis)) = (predicted, basis) {
                writeln!(out, "         predicted: {speed}, as fast as {basis}")?;
            }
            if predicted.is_none() && state != "refused" {
                writeln!(out, "         predicted: nothing on this machine tells")?;
            }
            if let Some(speed) = &explained.measured {
                writeln!(out, "         measured:  {speed}")?;
            }
            if let (Some(share), Some(copies)) = (explained.share, explained.copies) {
                writeln!(
                    out,
                    "         {:.0} % of the ceiling, {copies:.1} copies of each byte",
                    share * 100.0
                )?;
            }
            let Explained { encryption, integrity, streams, .. } = explained;
            if let (Some(encryption), Some(integrity), Some(streams)) = (encryption, integrity, streams) {
                writeln!(out, "         encryption {encryption}, integrity {integrity}, streams {streams}")?;
            }
        }
        write_notes(out, &self.notes)?;
        if let Some(PeerView { version, host, process, chosen, candidates, notes }) = &self.peer {
            writeln!(out, "peer: process {process} on {host}, towline {version}, sees {chosen}")?;
            for Candidate { transport, state, reason, .. } in candidates {
                writeln!(out, "  {transport:<6} {state:<10} {reason}")?;
            }
            write_notes(out, notes)?;
        }
        Ok(())
    }
}

fn write_notes(out: &mut dyn Write, notes: &[String]) -> io::Result<()> {
    notes.iter().try_for_each(|note| writeln!(out, "  {note}"))
}
