//! `towline keep PROGRAM …`: runs a program until standard input ends. A peer tool's server waits for its
//! client without a limit; this way it ends with the process at the other end of the pipe, even if that is
//! killed.

use std::io::stdin;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::process::program;

/// How often the program's status is polled.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Run a program until it ends, or until standard input ends
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Returns the words that run a command in a keeper, if put before it.
pub(super) fn keeper() -> Result<Vec<String>, Failure> {
    let words = program::words()
        .map_err(|error| Failure::run(format!("find this program, to keep another one: {error}")))?;
    let words = words.into_iter().map(|word| word.to_string_lossy().into_owned());
    Ok(words.chain(["keep".to_owned(), "--".to_owned()]).collect())
}

/// Runs the program, and ends this process with its exit code.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let (program, arguments) = options.words.split_first().ok_or_else(|| Failure::usage("no program"))?;
    let failed = |error: std::io::Error| Failure::run(format!("{program}: {error}"));
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::null()).spawn().map_err(failed)?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if input_ended() {
            // It fails only if the child has ended.
            let _ = child.kill();
            break child.wait().map_err(failed)?;
        }
    };
    std::process::exit(code(status))
}

/// Waits a moment for the end of standard input, which carries no data.
fn input_ended() -> bool {
    let input = stdin();
    let mut waited = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut waited, Some(&LOOK_EVERY)) {
        Ok(count) => count > 0,
        Err(error) => error != Errno::INTR,
    }
}

/// Returns the exit code as a shell reports it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
