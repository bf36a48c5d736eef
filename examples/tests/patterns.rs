//! Runs `one_sided`, `request_response` and `back_pressure` as users do: within one process, and in two.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Time limit for each step of a test.
const LONG: Duration = Duration::from_secs(120);
const SCHEMES: [&str; 3] = ["towline", "shm", "tcp"];

/// A process of an example that cargo built along with this test. Killed when dropped.
struct Process {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Process {
    fn start(example: &str, arguments: &[&str]) -> Self {
        let test = std::env::current_exe().unwrap();
        let program = test.ancestors().nth(2).unwrap().join("examples").join(example);
        assert!(program.exists(), "build it first: cargo build -p towline-examples --examples");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout }
    }

    /// Starts a process that listens. Returns it and its address.
    fn listening(example: &str, role: &str, scheme: &str) -> (Self, String) {
        let mut process = Self::start(example, &[role, &format!("{scheme}://127.0.0.1:0")]);
        let mut line = String::new();
        process.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening at ").unwrap().to_owned();
        (process, address)
    }

    /// Returns the rest of its output, up to its end, which must be successful.
    fn end(mut self) -> String {
        let mut stdout = self.stdout.take().unwrap();
        let output = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < LONG, "it does not end");
            thread::sleep(Duration::from_millis(2));
        };
        let text = output.join().unwrap();
        assert!(status.success(), "{status}\n{text}");
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_reader_reads_rows_and_writes_a_result_by_itself() {
    let sum = 9 + 16 + 999 * 999;
    let (read, wrote) =
        (format!("read 3 rows of 64000 bytes, and wrote {sum}\n"), format!("the reader wrote {sum}\n"));
    let both = Process::start("one_sided", &[]).end();
    assert!(both.contains(&read) && both.contains(&wrote), "{both}");
    for scheme in SCHEMES {
        let (owner, address) = Process::listening("one_sided", "own", scheme);
        assert_eq!(Process::start("one_sided", &["read", &address]).end(), read);
        assert_eq!(owner.end(), wrote);
    }
}

#[test]
fn answers_overtake_a_slow_one() {
    let overtaking = |printed: &str| {
        let mut lines: Vec<_> = printed.lines().filter(|line| !line.starts_with("listening")).collect();
        assert_eq!(lines.pop(), Some("slow: done"), "{printed}");
        lines.sort_unstable();
        assert_eq!(lines, ["sum: 200000", "what: error: no such request"]);
    };
    overtaking(&Process::start("request_response", &[]).end());
    for scheme in SCHEMES {
        let (_server, address) = Process::listening("request_response", "serve", scheme);
        let clients = [(); 2].map(|()| Process::start("request_response", &["ask", &address]));
        for client in clients {
            overtaking(&client.end());
        }
    }
}

#[test]
fn a_fast_producer_takes_as_long_as_its_consumer() {
    let held_back = |printed: &str| {
        let (_, after) = printed.split_once("produced 64 blocks in ").unwrap();
        let total: u64 = after.split_once(" ms").unwrap().0.parse().unwrap();
        assert!(total >= 64 * 5, "the consumer sleeps as long: {printed}");
    };
    let both = Process::start("back_pressure", &[]).end();
    assert!(both.contains("consumed 64 blocks\n"), "{both}");
    held_back(&both);
    for scheme in SCHEMES {
        let (consumer, address) = Process::listening("back_pressure", "consume", scheme);
        held_back(&Process::start("back_pressure", &["produce", &address]).end());
        assert_eq!(consumer.end(), "consumed 64 blocks\n");
    }
}
