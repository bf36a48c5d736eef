//! Signals end every command with 128 + the signal's number, also in a container and under `nohup`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::against::needs;
use crate::command::{Running, spawn, start};
use crate::interruptions::{TIMEOUT, children, signal};

/// Returns a mask of `/proc/PID/status`, which has a bit for each signal.
fn mask(id: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap())
}

fn has(mask: u64, signal: Signal) -> bool {
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// Returns the signals that end commands, with their exit codes. Without SIGHUP if this process was started
/// with SIGHUP ignored, as under `nohup`: its commands inherit that.
pub(crate) fn ending_signals() -> impl Iterator<Item = (Signal, i32)> {
    let ignored = mask(std::process::id(), "SigIgn");
    let signals = [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)];
    signals.into_iter().filter(move |(signal, _)| *signal != Signal::HUP || !has(ignored, *signal))
}

/// Waits until a process handles `signal`. A handler is installed a moment before it is connected, and loses what
/// arrives in between, so this also waits for the thread that is started after that.
#[track_caller]
fn handles(id: u32, by: Signal) {
    let watches = || {
        let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        threads.into_iter().any(|thread| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "signals")
        })
    };
    let begin = Instant::now();
    while !(has(mask(id, "SigCgt"), by) && watches()) {
        assert!(begin.elapsed() < TIMEOUT, "process {id} does not handle {by:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns commands that run until a signal, or for longer than this test.
fn long(scheduler: &str, silent: &str) -> [Vec<String>; 6] {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    [
        words("serve tcp://127.0.0.1:0"),
        words("scheduler tcp://127.0.0.1:0"),
        words(&format!("top {scheduler} --interval 100")),
        words(&format!("top {scheduler} --interval 100 --once")),
        words("bench --transport mem --pattern latency --duration 100"),
        words(&format!("explain {silent}")),
    ]
}

fn renews(line: &[String]) -> bool {
    ["serve", "scheduler"].contains(&&line[0][..])
}

/// Sends each signal that ends commands to each command that `start` starts.
fn each_ends_by(start: impl Fn(&[String]) -> Option<(Running, u32)>) {
    let mut scheduler = crate::command::start(&["scheduler", "tcp://127.0.0.1:0"]);
    let (address, _rest) = scheduler.first_line();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("tcp://{}", silent.local_addr().unwrap());
    for line in long(&address, &silent) {
        for (by, code) in ending_signals() {
            if by == Signal::HUP && renews(&line) {
                continue;
            }
            let Some((running, id)) = start(&line) else { return };
            handles(id, by);
            signal(id, by);
            let finished = running.finish();
            assert_eq!(finished.code, Some(code), "{line:?}, {by:?}: {}", finished.err);
        }
    }
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

#[test]
fn every_command_ends_by_a_signal_with_the_same_exit_code() {
    each_ends_by(|line| {
        let running = start(&words(line));
        let id = running.id();
        Some((running, id))
    });
}

/// As in a container: nothing ends the first process of a PID namespace by default.
#[test]
fn the_first_process_of_a_namespace_ends_by_a_signal_with_that_exit_code() {
    each_ends_by(|line| {
        let program = ["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_towline")];
        let mut command = Command::new("unshare");
        command.args(program).args(line).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut outer = match command.spawn() {
            Ok(child) => Running(child),
            Err(error) => {
                needs("netns", &format!("unshare: {error}"));
                return None;
            }
        };
        let begin = Instant::now();
        loop {
            if let [inner] = children(&outer)[..] {
                return Some((outer, inner));
            }
            if outer.0.try_wait().unwrap().is_some() {
                needs("netns", &format!("unshare --pid: {}", outer.finish().err));
                return None;
            }
            assert!(begin.elapsed() < TIMEOUT, "unshare has no child");
            thread::sleep(Duration::from_millis(2));
        }
    });
}

/// Under `nohup` SIGHUP is ignored at the start, and stays ignored.
#[test]
fn sighup_that_was_ignored_at_the_start_stays_ignored() {
    let mut scheduler = start(&["scheduler", "tcp://127.0.0.1:0"]);
    let (address, _rest) = scheduler.first_line();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_towline")]);
    let mut top = spawn(command.args(["top", &address, "--interval", "0.05"]));
    handles(top.id(), Signal::TERM);
    assert!(has(mask(top.id(), "SigIgn"), Signal::HUP));
    signal(top.id(), Signal::HUP);
    let (_, out) = top.first_line();
    let heads = out.lines().map_while(Result::ok).filter(|line| line.contains("0 workers with 0 slots"));
    assert_eq!(heads.take(3).count(), 3, "it goes on");
    signal(top.id(), Signal::TERM);
    top.finish().exits_with(143);
}

/// As in a container whose log shows it.
#[test]
fn sighup_reloads_credentials_of_listening_commands() {
    for name in ["serve", "scheduler"] {
        let mut running = start(&[name, "tcp://127.0.0.1:0"]);
        let (_, _rest) = running.first_line();
        handles(running.id(), Signal::HUP);
        signal(running.id(), Signal::HUP);
        let mut errors = BufReader::new(running.0.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("SIGHUP: ") && line.contains("read anew"), "{name}: {line}");
        signal(running.id(), Signal::TERM);
        running.finish().exits_with(143);
    }
}
