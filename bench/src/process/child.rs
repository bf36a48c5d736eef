//! A process of this program that works for this one: it ends with the value that stands for it, and by itself when this
//! process ends, however that happens.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::terminal::log;

/// A child process; it is killed by its own id when this is dropped. Where it reads its standard input, that ends when this
/// process does.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    /// Open for as long as it shall live.
    input: Option<ChildStdin>,
}

impl Child {
    /// Starts this program with `arguments`, and gives what it prints.
    pub(crate) fn start<I>(arguments: I) -> std::io::Result<(Self, Option<ChildStdout>)>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let mut child = Self::start_with(arguments, [Stdio::piped(), Stdio::piped()])?;
        let output = child.process.stdout.take();
        Ok((child, output))
    }

    /// The same, with these as its standard input and output.
    pub(crate) fn start_with<I>(arguments: I, [input, output]: [Stdio; 2]) -> std::io::Result<Self>
    where
        I: IntoIterator<Item: AsRef<std::ffi::OsStr>>,
    {
        let mut command = Command::new(std::env::current_exe()?);
        // Ctrl-C is for this process, which ends its children and says so once.
        command.envs(log::environment());
        command.args(arguments).process_group(0).stdin(input).stdout(output);
        let mut process = command.spawn()?;
        let input = process.stdin.take();
        Ok(Self { process, input })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Gives it a line to read; an error means that it has ended.
    pub(crate) fn tell(&mut self, line: &str) -> std::io::Result<()> {
        match &mut self.input {
            Some(input) => input.write_all(format!("{line}\n").as_bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Its exit status, if it has ended.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Its exit status, if it has ended or does so within a moment.
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
        // Both fail only for a child that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
