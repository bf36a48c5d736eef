//! Writes results to stdout and sentences to stderr, without a panic if a write fails.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use rustix::process::{Resource, getrlimit};

use crate::failure::Failure;

/// Writes a result to stdout. A reader that closes the pipe early is no failure.
pub(crate) fn print(text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match text(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|error| Failure::run(format!("the result on stdout: {}", reason(&error)))),
    }
}

/// Writes a sentence to stderr, and ignores failures: `eprintln!` would panic if stderr is a closed pipe or a
/// full disk.
pub(crate) fn say(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "towline: {sentence}");
}

/// Returns why a write failed, with the limit on file sizes if that is the reason.
pub(crate) fn reason(error: &io::Error) -> String {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if error.kind() == ErrorKind::FileTooLarge => {
            format!("{error}: the limit on the size of files is {limit} bytes (`ulimit -f`)")
        }
        _ => error.to_string(),
    }
}
