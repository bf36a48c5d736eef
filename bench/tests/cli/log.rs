//! The log of the command on stderr: `-v`, `RUST_LOG`, and the lines of `serve` and `scheduler` about peers.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::command::{Finished, Running, spawn, start, towline};
use crate::interruptions::{TIMEOUT, signal};

const QUICK: &str = "bench --transport tcp --pattern connect --duration 0.02 --repeat 1 --warmup 0";

fn logged(line: &str, rust_log: Option<&str>) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    command.args(line.split_whitespace()).env_remove("RUST_LOG");
    if let Some(directives) = rust_log {
        command.env("RUST_LOG", directives);
    }
    spawn(&mut command).finish()
}

/// The lines of a command's stderr.
struct Lines(Receiver<String>);

impl Lines {
    fn of(running: &mut Running) -> Self {
        let err = BufReader::new(running.0.stderr.take().unwrap());
        let (give, lines) = mpsc::channel();
        std::thread::spawn(move || err.lines().map_while(Result::ok).try_for_each(|line| give.send(line)));
        Self(lines)
    }

    /// Returns the next line that contains all of `words`.
    #[track_caller]
    fn until(&self, words: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            let line = self.0.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("wanted {words:?}: {seen:#?}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            seen.push(line);
        }
    }
}

fn started(line: &[&str]) -> (Running, String, Lines) {
    let mut running = start(line);
    let (address, _out) = running.first_line();
    let lines = Lines::of(&mut running);
    (running, address, lines)
}

#[test]
fn serve_and_scheduler_log_peers_and_refusals() {
    let folder = TempDir::new().unwrap();
    let [ours, others] = ["ours", "others"].map(|name| {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("a secret of {name}, long enough")).unwrap();
        file.to_str().unwrap().to_owned()
    });
    for command in ["serve", "scheduler"] {
        let (running, address, lines) = started(&[command, "tcp://127.0.0.1:0", "--token-file", &ours]);
        let look = |token: &str| match command {
            "serve" => towline(&["explain", &address, "--token-file", token]),
            _ => towline(&["top", &address, "--once", "--interval", "0.05", "--token-file", token]),
        };
        look(&ours).exits_with(0);
        let line = lines.until(&["towline: peer connected", "address=tcp://127.0.0.1:", "path=tcp"]);
        assert!(!line.contains('\u{1b}'), "{line}");
        lines.until(&["towline: peer left", "connection="]);
        look(&others).exits_with(1);
        lines.until(&["towline: peer refused", "from=tcp://127.0.0.1:", "unauthenticated"]);
        // A killed peer is lost.
        let mut lost = match command {
            "serve" => start(&["bench", "--connect", &address, "--token-file", &ours, "--duration", "60"]),
            _ => start(&["top", &address, "--token-file", &ours]),
        };
        lines.until(&["peer connected"]);
        lost.0.kill().unwrap();
        lines.until(&["towline: peer lost", "error="]);
        signal(running.id(), Signal::TERM);
        running.finish().exits_with(143);
    }
}

#[test]
fn many_refused_peers_are_few_lines() {
    let (running, address, lines) = started(&["serve", "tcp://127.0.0.1:0"]);
    let at = address.strip_prefix("tcp://").unwrap();
    for _ in 0..400 {
        // The connection may be refused at once.
        let _ = std::net::TcpStream::connect(at).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n");
    }
    towline(&["explain", &address]).exits_with(0);
    std::thread::sleep(std::time::Duration::from_millis(300));
    towline(&["explain", &address]).exits_with(0);
    signal(running.id(), Signal::TERM);
    running.finish().exits_with(143);
    let text: Vec<String> = lines.0.iter().collect();
    let refused = text.iter().filter(|line| line.contains("peer refused")).count();
    assert!((1..300).contains(&refused), "{text:#?}");
    assert!(text.iter().any(|line| line.contains("more lines were left out")), "{text:#?}");
}

#[test]
fn verbose_and_rust_log_work_for_every_command_and_for_processes_that_it_starts() {
    for (line, rust_log) in [(format!("{QUICK} -v"), None), (QUICK.to_owned(), Some("towline=info"))] {
        let bench = logged(&line, rust_log);
        bench.exits_with(0);
        // From the serving process and from this one.
        for says in ["INFO", "listening", "peer connected"] {
            assert!(bench.err.contains(says), "{line}: {}", bench.err);
        }
        assert!(!bench.err.contains("candidate") && !bench.out.contains("INFO"), "{}", bench.err);
    }
    let quiet = logged(QUICK, None);
    assert!(!quiet.err.contains("peer connected"), "{}", quiet.err);
    let more = logged(&format!("-vv {QUICK}"), Some("off"));
    assert!(more.err.contains("candidate") && more.err.contains("reason="), "{}", more.err);
    let missing = logged("-v top tcp://127.0.0.1:1 --once", None);
    missing.exits_with(1);
}

#[test]
fn invalid_directives_are_wrong_usage() {
    for directives in ["towline=loud", "[connection]=debug=x"] {
        logged("info", Some(directives)).is_wrong_usage("RUST_LOG=");
    }
    logged("info", Some("")).exits_with(0);
}
