//! A run that is interrupted, or loses its peer, ends soon, reports it, and leaves no process.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::against::there;
use crate::command::{Running, start};

const LONG: [&str; 10] =
    ["bench", "--transport", "tcp", "--pattern", "bandwidth", "--size", "64K", "--duration", "60", "--json"];

/// The time limit for detecting the end of a process.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn signal(id: u32, signal: Signal) {
    kill_process(Pid::from_raw(id as i32).unwrap(), signal).unwrap();
}

/// Returns the parent of a process that is running and not a zombie.
fn parent(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in brackets may contain any character; the fields follow it.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    if state == "Z" { None } else { fields.next()?.parse().ok() }
}

/// Waits for the first process for which `is` returns true.
fn process(is: impl Fn(u32) -> bool) -> u32 {
    let begin = Instant::now();
    loop {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        if let Some(id) = ids.find(|id| is(*id)) {
            return id;
        }
        assert!(begin.elapsed() < TIMEOUT, "no such process was started");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns all running processes that `bench` started.
pub(crate) fn children(bench: &Running) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| parent(*id) == Some(bench.id())).collect()
}

/// Waits for the serving process of `bench`.
fn serving_process(bench: &Running) -> u32 {
    process(|id| parent(id) == Some(bench.id()))
}

/// Waits for a process of `program` in a keeper of `bench`.
fn kept_process(bench: &Running, program: &str) -> u32 {
    let runs =
        |id: u32| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == program);
    process(|id| runs(id) && parent(id).and_then(parent) == Some(bench.id()))
}

pub(crate) fn ends(id: u32) {
    let begin = Instant::now();
    while parent(id).is_some() {
        assert!(begin.elapsed() < TIMEOUT, "process {id} was left behind");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a run during its measurement.
fn busy() -> (Running, u32) {
    let bench = start(&LONG);
    let child = serving_process(&bench);
    thread::sleep(Duration::from_millis(700));
    (bench, child)
}

#[test]
fn death_of_the_serving_process_fails_the_run() {
    let (bench, child) = busy();
    signal(child, Signal::KILL);
    let begin = Instant::now();
    let finished = bench.finish();
    finished.exits_with(1);
    assert!(begin.elapsed() < TIMEOUT, "{:?}", begin.elapsed());
    assert!(
        finished.err.contains(&format!("the serving process {child} died (signal: 9")),
        "{}",
        finished.err
    );
}

#[test]
fn an_interruption_exits_with_130_and_ends_the_serving_process() {
    let (bench, child) = busy();
    signal(bench.id(), Signal::INT);
    let finished = bench.finish();
    finished.exits_with(130);
    assert_eq!(finished.document()["complete"], false);
    ends(child);
}

#[test]
fn a_killed_bench_leaves_no_serving_process() {
    let (bench, child) = busy();
    signal(bench.id(), Signal::KILL);
    drop(bench);
    ends(child);
}

#[test]
fn no_end_of_a_bench_leaves_a_peer_tool() {
    if !there("iperf3") {
        return;
    }
    let many = ["--duration", "0.02", "--repeat", "1000", "--against", "iperf3", "--json"];
    let line =
        [&["bench", "--transport", "tcp", "--pattern", "bandwidth", "--size", "64K"][..], &many].concat();
    for by in [Signal::INT, Signal::KILL] {
        let bench = start(&line);
        let tool = kept_process(&bench, "iperf3");
        signal(bench.id(), by);
        let finished = bench.finish();
        assert_eq!(finished.code, (by == Signal::INT).then_some(130), "{}", finished.err);
        ends(tool);
    }
}

#[test]
fn a_program_ends_with_the_input_of_its_keeper() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    command.args(["keep", "--", "sleep", "1000"]);
    let mut keeper = Running(command.stdin(Stdio::piped()).spawn().unwrap());
    let kept = process(|id| parent(id) == Some(keeper.id()));
    drop(keeper.0.stdin.take());
    keeper.finish().exits_with(128 + 9);
    ends(kept);
}

#[test]
fn an_interrupted_serve_exits_with_130() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let _rest = serve.first_line();
    signal(serve.id(), Signal::INT);
    serve.finish().exits_with(130);
}
