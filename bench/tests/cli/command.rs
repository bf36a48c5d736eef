//! Runs the command with a time limit.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time limit of each test, also on a slow machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The output and exit status of a finished command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn exits_with(&self, code: i32) {
        assert_eq!(self.code, Some(code), "out: {}\nerr: {}", self.out, self.err);
    }

    /// Checks that the exit code is 2 and that the error contains `what`.
    #[track_caller]
    pub(crate) fn is_wrong_usage(&self, what: &str) {
        self.exits_with(2);
        assert!(self.err.contains(what), "wanted: {what}\nerr: {}", self.err);
        assert!(self.out.is_empty(), "{}", self.out);
    }

    #[track_caller]
    pub(crate) fn document(&self) -> serde_json::Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}\nerr: {}", self.out, self.err))
    }
}

/// Runs `towline` with `arguments` to its end.
#[track_caller]
pub(crate) fn towline(arguments: &[&str]) -> Finished {
    start(arguments).finish()
}

/// Starts `towline` with `arguments`.
pub(crate) fn start(arguments: &[&str]) -> Running {
    spawn(Command::new(env!("CARGO_BIN_EXE_towline")).args(arguments))
}

/// Starts `command` with its output captured.
pub(crate) fn spawn(command: &mut Command) -> Running {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

/// A running command, which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns the first line that it prints, and the rest of its output.
    pub(crate) fn first_line(&mut self) -> (String, BufReader<ChildStdout>) {
        let mut out = BufReader::new(self.0.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        (line.trim().to_owned(), out)
    }

    /// Waits until it ends.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let out = self.0.stdout.take().map(|mut out| thread::spawn(move || read(&mut out)));
        let err = self.0.stderr.take().map(|mut err| thread::spawn(move || read(&mut err)));
        let begin = Instant::now();
        let status = loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(begin.elapsed() < LIMIT, "still running after {LIMIT:?}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        let text = |reader: Option<thread::JoinHandle<String>>| {
            reader.map_or_else(String::new, |it| it.join().unwrap())
        };
        Finished { code: status.code(), out: text(out), err: text(err) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(from: &mut impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}
