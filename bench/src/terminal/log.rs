//! The log of the libraries (`tracing`) on stderr: by `-v`, by `RUST_LOG`, or by the command's default.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::Failure;

/// Peers that connect, leave, or are refused.
pub(crate) const WITH_PEERS: &str = "warn,towline::peer=info";
/// The default of other commands.
pub(crate) const WARNINGS: &str = "warn";

/// The environment variable that sets the log by target.
const VARIABLE: &str = "RUST_LOG";

/// The default limit of lines at once.
const LINES_MAX: f64 = 20.0;
/// The default limit of lines a second.
const LINES_PER_S: f64 = 10.0;

/// The directives of `-v`, for child processes.
static ASKED_FOR: OnceLock<&str> = OnceLock::new();

/// What to log on stderr.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Verbosity {
    /// Log to stderr: -v connections and peers, -vv why each path was chosen, -vvv everything. Without it RUST_LOG selects
    /// what to log, by target and level: RUST_LOG=towline=debug
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Logging")]
    verbose: u8,
}

impl Verbosity {
    /// Starts the log: by `-v`, else by `RUST_LOG`, else by `usual` with a short format and a limit.
    pub(crate) fn start(self, usual: &str) -> Result<(), Failure> {
        let asked_for = match self.verbose {
            0 => None,
            1 => Some("warn,towline=info"),
            2 => Some("warn,towline=debug"),
            _ => Some("warn,towline=trace"),
        };
        if let Some(directives) = asked_for {
            let _ = ASKED_FOR.set(directives);
            start(directives, true)
        } else {
            match std::env::var(VARIABLE) {
                Ok(directives) if !directives.is_empty() => start(&directives, true),
                _ => start(usual, false),
            }
        }
    }
}

/// Returns the environment variable for child processes, so that they log the same.
pub(crate) fn environment() -> Option<(&'static str, &'static str)> {
    ASKED_FOR.get().map(|directives| (VARIABLE, *directives))
}

fn start(directives: &str, in_full: bool) -> Result<(), Failure> {
    let targets: Targets = directives.parse().map_err(|error| {
        let forms = "write a level (error, warn, info, debug, trace) or TARGET=LEVEL, separated by commas";
        Failure::usage(format!("{VARIABLE}={directives}: {error}: {forms}"))
    })?;
    let registry = tracing_subscriber::registry().with(targets);
    // A failed write to stderr is ignored: the layer would panic otherwise.
    let layer = layer().with_ansi(false).log_internal_errors(false);
    let started = if in_full {
        registry.with(layer.with_writer(io::stderr)).try_init()
    } else {
        registry.with(layer.event_format(Brief).with_writer(Bounded::default())).try_init()
    };
    started.map_err(|error| Failure::run(format!("the log: {error}")))
}

/// Formats an event as a sentence, without time, level and spans.
struct Brief;

impl<S, N> FormatEvent<S, N> for Brief
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str("towline: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Stderr with a limit of lines a second: unauthenticated peers must not fill a disk. Omitted lines are
/// counted, and the next line gives their number.
#[derive(Debug, Default)]
struct Bounded(Mutex<LineLimit>);

#[derive(Debug)]
struct LineLimit {
    lines: f64,
    since: Instant,
    left_out: u64,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self { lines: LINES_MAX, since: Instant::now(), left_out: 0 }
    }
}

impl LineLimit {
    /// Takes a line at `now`. Returns `None` if it is to be omitted, else the number of lines omitted before.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.lines = (self.lines + passed * LINES_PER_S).min(LINES_MAX);
        self.since = now;
        if self.lines < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl<'a> MakeWriter<'a> for Bounded {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine(self)
    }
}

/// One line, which is written at once.
struct LogLine<'a>(&'a Bounded);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let mut stderr = io::stderr().lock();
        match taken {
            None => return Ok(line.len()),
            Some(0) => {}
            Some(left_out) => writeln!(stderr, "towline: {left_out} more lines were left out")?,
        }
        stderr.write_all(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_beyond_the_budget_are_counted_and_told_later() {
        let begin = Instant::now();
        let mut budget = LineLimit { since: begin, ..LineLimit::default() };
        let taken = (0..100).filter_map(|_| budget.take(begin)).count();
        assert_eq!(taken, LINES_MAX as usize);
        assert_eq!(budget.take(begin + Duration::from_millis(150)), Some(80));
        assert_eq!(budget.take(begin + Duration::from_millis(150)), None);
        assert_eq!(budget.take(begin + Duration::from_secs(3600)), Some(1));
    }

    #[test]
    fn every_default_is_made_of_directives() {
        for directives in [WITH_PEERS, WARNINGS] {
            directives.parse::<Targets>().unwrap();
        }
    }
}
