//! The `towline` command. It is a library so that its parsers can be fuzzed.
//!
//! The modules, from the lowest to the highest: `failure`; `data` (sizes, places, payloads); `case`
//! (what is measured); `terminal` (what is written); `process` (children, threads, signals); `machine`
//! (the fingerprint); `security` (tokens and certificates); `results` (samples and rows); `ceiling`;
//! `peer` (the serving side and its client); `patterns` (what runs); `against` (peer tools); `report`
//! (what is printed and compared); `commands` (the command line).

// These macros panic if the write fails; `terminal::print` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod against;
mod case;
mod ceiling;
mod commands;
mod data;
#[doc(hidden)]
pub mod expressions;
mod failure;
mod machine;
mod patterns;
mod peer;
mod process;
mod report;
mod results;
mod security;
mod terminal;

use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::commands::{bench, explain, info, scheduler, serve, shell, token, top};
use crate::failure::Failure;
use crate::machine::version;
use crate::patterns::{tasks, workers};
use crate::process::program;
use crate::process::shutdown::{self, Shutdown};
use crate::terminal::log::{self, Verbosity};
use crate::terminal::output_file::OutputFile;
use crate::terminal::print::say;

const EXAMPLE: &str = "\
Examples:
  towline info                          # what this machine offers
  towline bench                         # how fast it is, within a minute
  towline serve tcp://127.0.0.1:7000    # the other end of:
  towline explain tcp://127.0.0.1:7000  # which path, and why
  towline scheduler tcp://127.0.0.1:7100    # of a task runtime's workers and clients; how it is:
  towline top tcp://127.0.0.1:7100

Exit codes: 0 success, 1 a failed run or assertion, 2 wrong usage, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM),
129 hung up (SIGHUP, at which `serve` and `scheduler` go on).
After a run, the FILE of --json-file holds that run's document, or is not there. A run that fails before it has one leaves
a document with `complete` false and the `error`.";

/// Moves host and device buffers between processes with as few copies as the hardware allows.
#[derive(Debug, Parser)]
#[command(name = "towline", version, after_help = EXAMPLE, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: Verbosity,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::Options),
    Serve(serve::Options),
    Bench(Box<bench::Options>),
    Explain(explain::Options),
    Scheduler(scheduler::Options),
    Top(top::Options),
    Token(token::Options),
    Completions(shell::Completions),
    Man(shell::Man),
    #[command(hide = true)]
    Beat(ceiling::eventfd::Options),
    #[command(hide = true)]
    Keep(against::keep::Options),
    #[command(hide = true)]
    Work(workers::Options),
    #[command(hide = true)]
    TaskWork(tasks::Options),
}

impl Command {
    /// Returns true if the command may have many connections.
    fn has_connections(&self) -> bool {
        matches!(
            self,
            Self::Serve(_) | Self::Bench(_) | Self::Scheduler(_) | Self::Work(_) | Self::TaskWork(_)
        )
    }

    /// Returns true if SIGHUP reloads credentials. It ends all other commands.
    fn renews_at_hangups(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Scheduler(_))
    }

    /// Returns the files that will hold the result.
    fn files(&self) -> Vec<OutputFile> {
        let output = match self {
            Self::Bench(options) => return options.files().into_iter().cloned().collect(),
            Self::Info(options) => &options.output,
            Self::Serve(options) => &options.listening.output,
            Self::Explain(options) => &options.output,
            Self::Scheduler(options) => &options.listening.output,
            Self::Top(options) => &options.output,
            Self::Token(options) => &options.output,
            Self::Completions(_)
            | Self::Man(_)
            | Self::Beat(_)
            | Self::Keep(_)
            | Self::Work(_)
            | Self::TaskWork(_) => return Vec::new(),
        };
        output.file().into_iter().cloned().collect()
    }

    /// Returns the default log filter.
    fn usual_log(&self) -> &'static str {
        match self {
            Self::Serve(options) if options.is_for_people() => log::WITH_PEERS,
            Self::Scheduler(_) => log::WITH_PEERS,
            _ => log::WARNINGS,
        }
    }

    /// Runs the command until it is done or a signal ends it.
    async fn run(&self, shutdown: &Shutdown) -> Result<(), Failure> {
        if matches!(self, Self::Scheduler(_) | Self::Bench(_)) {
            // The scheduler first closes its connections; bench reports what it has measured.
            return self.work(shutdown).await;
        }
        tokio::select! {
            biased;
            outcome = self.work(shutdown) => outcome,
            interruption = shutdown.requested() => Err(interruption),
        }
    }

    async fn work(&self, shutdown: &Shutdown) -> Result<(), Failure> {
        match self {
            Self::Info(options) => info::run(options),
            Self::Serve(options) => serve::run(options).await,
            Self::Bench(options) => bench::run(options, shutdown).await,
            Self::Explain(options) => explain::run(options).await,
            Self::Scheduler(options) => scheduler::run(options, shutdown).await,
            Self::Top(options) => top::run(options).await,
            Self::Token(options) => token::run(options),
            Self::Completions(options) => shell::completions(options, &Arguments::command()),
            Self::Man(options) => shell::man(options, &Arguments::command()),
            Self::Beat(options) => ceiling::eventfd::run(options),
            Self::Keep(options) => against::keep::run(options),
            Self::Work(options) => workers::run(options).await,
            Self::TaskWork(options) => tasks::run(options).await,
        }
    }
}

/// Parses and runs this process's command line.
pub fn run() -> ExitCode {
    run_arguments(program::arguments()).into()
}

/// Parses and runs `arguments` in a program of another language, which has a process for the command alone:
/// signals end the process. `program` has the words that start the command again, before its arguments.
/// Returns the exit code.
pub fn run_with(program: Vec<OsString>, arguments: Vec<OsString>) -> u8 {
    program::set(program, arguments.clone());
    run_arguments(arguments)
}

fn run_arguments(arguments: Vec<OsString>) -> u8 {
    let wants_libraries = arguments.iter().any(|argument| argument == "--version");
    let line = iter::once(OsString::from("towline")).chain(arguments);
    let outcome = match Arguments::try_parse_from(line) {
        Ok(Arguments { command, verbosity }) => shutdown::keep_from_file_size_signal()
            .and_then(|()| verbosity.start(command.usual_log()))
            .and_then(|()| start(&command)),
        // `-V` prints the version alone; `--version` also looks for libraries.
        Err(error) if error.kind() == ErrorKind::DisplayVersion && wants_libraries => version::run(),
        Err(error) => error.exit(),
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            say(&failure);
            failure.exit_code()
        }
    }
}

/// Runs `command` on this thread, so that a wake-up needs no switch of threads.
fn start(command: &Command) -> Result<(), Failure> {
    let wrong = |error| Failure::run(format!("the runtime: {error}"));
    if command.has_connections() {
        raise_open_files();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(wrong)?;
    let files = command.files();
    let fail = move |failure: &Failure| files.iter().for_each(|file| file.fail(failure));
    let shutdown = Shutdown::watch(!command.renews_at_hangups(), fail.clone())?;
    let outcome = runtime.block_on(command.run(&shutdown)).inspect_err(fail);
    // Threads that still measure a ceiling end with the process.
    runtime.shutdown_background();
    outcome
}

/// Raises the limit of open files for this process and its children: each of 64 workers that all send to each
/// other needs ten descriptors and more for each connection, and the usual limit is 1,024.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The hard limit is always permitted. Too low a limit is an error of the call that opens a file.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
