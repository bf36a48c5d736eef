//! This program: how to start it again, and what it was started with.

use std::ffi::OsString;
use std::sync::OnceLock;

/// The words of the command line, where another program runs the command.
#[derive(Debug)]
struct ProgramWords {
    program: Vec<OsString>,
    arguments: Vec<OsString>,
}

static COMMAND_LINE: OnceLock<ProgramWords> = OnceLock::new();

/// Sets the words that start this program again, and the command's arguments. By default they are this
/// process's own. Only the first call has an effect.
pub(crate) fn set(program: Vec<OsString>, arguments: Vec<OsString>) {
    let _ = COMMAND_LINE.set(ProgramWords { program, arguments });
}

/// Returns the words that start this program again, before its arguments.
pub(crate) fn words() -> std::io::Result<Vec<OsString>> {
    match COMMAND_LINE.get() {
        Some(line) => Ok(line.program.clone()),
        None => Ok(vec![std::env::current_exe()?.into()]),
    }
}

/// Returns the command's arguments.
pub(crate) fn arguments() -> Vec<OsString> {
    COMMAND_LINE.get().map_or_else(|| std::env::args_os().skip(1).collect(), |line| line.arguments.clone())
}
