//! A child process of this program. It ends when its handle is dropped, and when this process ends in any
//! way.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::program;
use crate::terminal::log;

/// A child process. Dropping this kills it by its id. Its standard input, if it reads that, ends with this
/// process.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    /// Open until this is dropped.
    input: Option<ChildStdin>,
}

impl Child {
    /// Starts this program with `arguments`, and returns its output.
    pub(crate) fn start<I>(arguments: I) -> std::io::Result<(Self, Option<ChildStdout>)>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let mut child = Self::start_with(arguments, [Stdio::piped(), Stdio::piped()])?;
        let output = child.process.stdout.take();
        Ok((child, output))
    }

    /// Starts this program with these as its standard input and output.
    pub(crate) fn start_with<I>(arguments: I, [input, output]: [Stdio; 2]) -> std::io::Result<Self>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let words = program::words()?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // Ctrl-C goes to this process alone, which ends its children.
        command.envs(log::environment());
        command.args(arguments).process_group(0).stdin(input).stdout(output);
        let mut process = command.spawn()?;
        let input = process.stdin.take();
        Ok(Self { process, input })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Writes a line to its standard input; fails if it has ended.
    pub(crate) fn write_line(&mut self, line: &str) -> std::io::Result<()> {
        match &mut self.input {
            Some(input) => input.write_all(format!("{line}\n").as_bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Returns its exit status, if it has ended.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Returns its exit status, if it has ended or does so within 50 ms.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..50 {
            if let Some(status) = self.status() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if the child has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
