//! The options of `towline bench`.

use std::time::Duration;

use towline::Address;

use crate::against::RequestedTool;
use crate::case::{Pattern, Transport, Wait};
use crate::commands::wait_for::WaitFor;
use crate::data::place::{Place, Places};
use crate::data::units::{Sizes, parse_pause, parse_seconds};
use crate::report::assertion::Assertion;
use crate::report::history::History;
use crate::report::html::Html;
use crate::security::trust::Trust;
use crate::terminal::output::Output;
use crate::terminal::output_file::OutputFile;

const EXAMPLE: &str = "\
Examples:
  towline bench                                            # every ready transport, within a minute
  towline bench --transport tcp --pattern latency,bandwidth --size 8..64M --wait spin,adaptive
  towline bench --transport tcp --pattern bandwidth --size 1M --json-file run.json \\
      --assert 'tcp.bandwidth.1M.ceiling.socket.share>=0.9'
  towline bench --pattern bandwidth --size 8..64M --html run.html   # plots, beside the ceilings
  towline bench --transport tcp --pattern latency,bandwidth --against iperf3,ucx_perftest,fi_pingpong
  towline bench --save-histograms before.json; towline bench --compare before.json --threshold 5
  towline bench --transport tcp --pattern latency --rate 10000      # how late answers are under that load
  towline bench --transport shm --pattern latency --size 4K..1G --place arena --wait spin   # memory changes hands
  towline bench --transport tcp --pattern incast,alltoall --workers 8 --size 1M
  towline bench --transport mem --pattern tasks --wait spin,sleep   # what the task runtime adds to its wake-ups
  towline bench --transport tcp --pattern shuffle --size 2G --against dask
  towline bench --transport 'tcp,tcp?tls=on' --pattern bandwidth    # what TLS costs, beside a bare TLS socket
  towline bench --transport 'ucx?TLS=tcp&NET_DEVICES=lo' --against ucx_perftest   # UCX with settings
  towline bench --connect tcp://10.0.0.2:7000 --token-file secret   # `towline serve` runs there
  towline bench --connect tls://worker-1:7000 --ca ca.pem           # with --cert and --key where it asks for them";

/// Move data between two workers, and report the cost beside the ceilings of this machine
///
/// Without options: every ready transport, and auto if there are several between processes; latency at 8 B
/// and bandwidth at 64 KiB, 1 MiB and 64 MiB; within a minute.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// The transports: auto, with which both ends choose, or those that `towline info` lists, such as tcp;
    /// options as a query, such as tcp?tls=on, where %2C is a comma
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "What to measure")]
    pub(crate) transport: Vec<Transport>,
    /// The patterns: latency, bandwidth, bidirectional, rate, get, put, connect, incast, alltoall, and of the
    /// task runtime tasks, shuffle
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "What to measure")]
    pub(crate) pattern: Vec<Pattern>,
    /// Payload bytes of a message, such as 8,64K,1M, or 8..64M for the powers of two between
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "What to measure")]
    pub(crate) size: Vec<Sizes>,
    /// Place of the sender's bytes: host, or arena, whose memory shm and mem hand over
    #[arg(long, value_name = "PLACE", help_heading = "What to measure")]
    pub(crate) from: Option<Place>,
    /// Place of the receiver's bytes: host or arena; bytes that arrive elsewhere are copied there
    #[arg(long, value_name = "PLACE", help_heading = "What to measure")]
    pub(crate) to: Option<Place>,
    /// Place of both ends' bytes: host or arena
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["from", "to"], help_heading = "What to measure")]
    pub(crate) place: Option<Place>,
    /// How both ends wait
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "adaptive",
        help_heading = "What to measure"
    )]
    pub(crate) wait: Vec<Wait>,
    /// Frames of a message
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Load")]
    pub(crate) frames: Option<u32>,
    /// TCP streams of a connection: sets the option streams=N of the transports tcp and auto
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Load")]
    pub(crate) streams: Option<u32>,
    /// Messages in flight; by default 16 (pattern rate and with --rate: 256), or fewer to fit in 256 MiB or
    /// an eighth of the available memory. For the pattern tasks: tasks submitted at once; for shuffle:
    /// blocks, and parts of each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_194_304), help_heading = "Load")]
    pub(crate) window: Option<u32>,
    /// Buffers that the messages are sent from in turn; by default one for each message in flight. 1 is what
    /// ucx_perftest and fi_pingpong do: short messages then stay in the sender's cache
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_194_304), help_heading = "Load")]
    pub(crate) buffers: Option<u32>,
    /// Workers that send at once: to one receiver in incast, to each other in alltoall (with --connect, also
    /// to and from the peer there); by default 4. For the pattern tasks: its workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Load")]
    pub(crate) workers: Option<u32>,
    /// Messages a second that latency, bandwidth or rate sends by a schedule; times count from when a message
    /// was due
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Load")]
    pub(crate) rate: Option<u32>,
    /// Seconds that each repeat measures; by default 0.5, or less so that a run without options takes less
    /// than a minute
    #[arg(long, value_name = "S", value_parser = parse_seconds, help_heading = "Duration")]
    pub(crate) duration: Option<Duration>,
    /// Seconds that each repeat warms up before it measures; by default a fifth of the duration, 0 for not at
    /// all
    #[arg(long, value_name = "S", value_parser = parse_pause, help_heading = "Duration")]
    pub(crate) warmup: Option<Duration>,
    /// How often each case is measured, in turn with its ceilings; medians and ranges are reported. By
    /// default 3, or fewer if the run takes much longer than announced
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Duration")]
    pub(crate) repeat: Option<u32>,
    /// Use the `towline serve` at this address as the other end
    #[arg(long, value_name = "ADDR", help_heading = "The other end")]
    pub(crate) connect: Option<Address>,
    #[command(flatten)]
    pub(crate) wait_for: WaitFor,
    /// Peer tools to run in turn with ours: iperf3, ucx_perftest, fi_pingpong, iceoryx2, dask
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with = "connect",
        help_heading = "Comparison"
    )]
    pub(crate) against: Vec<RequestedTool>,
    /// Check every byte at the receiver (length and edges are always checked)
    #[arg(long, help_heading = "Checks")]
    pub(crate) verify: bool,
    /// Have the receiver read every byte of a message before it takes the next one: shows a hand-over with
    /// the use of its bytes
    #[arg(long, conflicts_with = "verify", help_heading = "Checks")]
    pub(crate) read: bool,
    /// Fail unless transport.pattern.size[key=value,…].field OP number holds, for exactly one row; may be repeated
    #[arg(long = "assert", value_name = "EXPR", help_heading = "Comparison")]
    pub(crate) assertions: Vec<Assertion>,
    #[command(flatten)]
    pub(crate) history: History,
    #[command(flatten)]
    pub(crate) html: Html,
    #[command(flatten)]
    pub(crate) trust: Trust,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl Options {
    /// Returns the files that a run without any result replaces: all but the file of `--compare`.
    pub(crate) fn files(&self) -> Vec<&OutputFile> {
        let files = [self.output.file(), self.html.file(), self.history.file()];
        let compared = |file: &OutputFile| self.history.compared().is_some_and(|path| file.is(path));
        files.into_iter().flatten().filter(|file| !compared(file)).collect()
    }

    /// Returns the places of the bytes, for patterns that have places.
    pub(super) fn places(&self) -> Places {
        let at = |end: Option<Place>| end.or(self.place).unwrap_or_default();
        Places { from: at(self.from), to: at(self.to) }
    }
}

/// Returns the values of a list option, each once.
pub(super) fn unique<T: Copy + PartialEq>(items: &[T]) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for item in items {
        if !kept.contains(item) {
            kept.push(*item);
        }
    }
    kept
}
