//! `towline top`: the state of a scheduler's cluster, once or repeatedly.

mod table;
mod terminal;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use towline::{Address, Scheme};
use towline_runtime::{Client, PairStats, StageCounts, Stats, WorkerStats};

use self::terminal::Terminal;
use super::scheduler;
use super::wait_for::WaitFor;
use crate::case::Wait;
use crate::data::units::parse_seconds;
use crate::failure::{Failure, transport};
use crate::security::trust::Trust;
use crate::terminal::output::Output;
use crate::terminal::print::reason;

const EXAMPLE: &str = "\
Examples:
  towline top    # the scheduler of this machine
  towline top towline://127.0.0.1:7100 --once --json | jq .tasks
  towline top towline://10.0.0.2:7100 --token-file secret --interval 5

What is per second is of the last interval; `--once` waits for one. On a terminal `q` ends it, and columns that do not fit are
left out. Amounts of data are binary (1 MiB = 1,048,576 bytes), rates decimal (1 MB/s = 1,000,000 bytes a second).";

/// Show a scheduler's cluster: workers, tasks, memory, and the data that moves between workers, with its path
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// The address of a `towline scheduler`
    #[arg(default_value = scheduler::ADDRESS)]
    address: Address,
    #[command(flatten)]
    wait_for: WaitFor,
    /// Show the state once, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two updates
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
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
    /// The interval of the rates.
    interval_s: f64,
    clients: u32,
    workers_lost: u64,
    tasks: StageCounts,
    runs_done: u64,
    runs_failed: u64,
    tasks_per_s: f64,
    moved_bytes: u64,
    moved_bytes_per_s: f64,
    workers: Vec<WorkerRow>,
    pairs: Vec<Pair>,
}

#[derive(Debug, Serialize)]
struct WorkerRow {
    #[serde(flatten)]
    stats: WorkerStats,
    tasks_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Pair {
    #[serde(flatten)]
    stats: PairStats,
    bytes_per_s: f64,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let Options { address, wait_for, once, interval, trust, output } = options;
    if !once && output.is_asked_for() {
        return Err(Failure::usage("--json and --json-file write one state: add --once"));
    }
    if address.scheme() == Scheme::Mem {
        let why = format!("{address}: mem reaches only its own process, and no scheduler runs in this one");
        return Err(Failure::usage(why));
    }
    output.check()?;
    trust.check(address)?;
    let endpoint = trust.endpoint(Wait::Sleep)?;
    let client = wait_for.connect(async || Client::connect(&endpoint, address).await, transport).await?;
    let mut before = (client.stats().await?, Instant::now());
    let mut terminal = if *once { None } else { Terminal::open() };
    loop {
        let quit = async {
            match &mut terminal {
                Some(terminal) => terminal.quit().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(*interval) => {}
            () = quit => {
                endpoint.close().await;
                return Ok(());
            }
        }
        let now = (client.stats().await?, Instant::now());
        let document = Document::of(address, &before, &now);
        if *once {
            endpoint.close().await;
            let width = terminal::size().map_or(usize::MAX, |(columns, _)| columns);
            return output.give(&document, |out: &mut dyn Write| document.write(out, width));
        }
        match show(&document) {
            // The reader has closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            shown => {
                shown.map_err(|error| Failure::run(format!("the table on stdout: {}", reason(&error))))?
            }
        }
        before = now;
    }
}

/// Writes in place on a terminal, and below the last output elsewhere.
fn show(document: &Document) -> io::Result<()> {
    let mut text = Vec::new();
    let size = terminal::size();
    document.write(&mut text, size.map_or(usize::MAX, |(columns, _)| columns))?;
    let mut out = io::stdout().lock();
    match size {
        Some((columns, rows)) => {
            let text = table::fit(&String::from_utf8_lossy(&text), columns, rows);
            write!(out, "\x1b[H\x1b[J{text}")?;
        }
        None => {
            out.write_all(b"\n")?;
            out.write_all(&text)?;
        }
    }
    out.flush()
}

impl Document {
    fn of(address: &Address, (before, then): &(Stats, Instant), (stats, now): &(Stats, Instant)) -> Self {
        let interval_s = now.duration_since(*then).as_secs_f64();
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / interval_s;
        let runs: BTreeMap<_, _> = before.workers.iter().map(|it| (it.number, it.runs_done)).collect();
        let bytes: BTreeMap<_, _> = before.pairs.iter().map(|it| ((it.from, it.to), it.bytes)).collect();
        let worker = |stats: &WorkerStats| WorkerRow {
            tasks_per_s: rate(runs.get(&stats.number).copied().unwrap_or_default(), stats.runs_done),
            stats: stats.clone(),
        };
        let pair = |stats: &PairStats| Pair {
            bytes_per_s: rate(bytes.get(&(stats.from, stats.to)).copied().unwrap_or_default(), stats.bytes),
            stats: stats.clone(),
        };
        Self {
            schema: 1,
            complete: true,
            address: address.to_string(),
            interval_s,
            clients: stats.clients,
            workers_lost: stats.workers_lost,
            tasks: stats.tasks,
            runs_done: stats.runs_done,
            runs_failed: stats.runs_failed,
            tasks_per_s: rate(before.runs_done, stats.runs_done),
            moved_bytes: stats.moved_bytes,
            moved_bytes_per_s: rate(before.moved_bytes, stats.moved_bytes),
            workers: stats.workers.iter().map(worker).collect(),
            pairs: stats.pairs.iter().map(pair).collect(),
        }
    }
}
