//! Patterns of several workers: their rows, and that every worker ends with its run.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bench::{bench, rows};
use crate::command::{Running, spawn, start};
use crate::interruptions::{TIMEOUT, children, ends, signal};
use crate::metrics::{page, serve, value};
use crate::readers::Format;

#[test]
fn all_senders_and_the_receiver_are_counted() {
    for (transport, processes) in [("mem", 1), ("tcp", 4), ("shm", 4)] {
        let line = format!(
            "--transport {transport} --pattern incast --workers 3 --size 64K --frames 2 --window 4 --json \
             --assert {transport}.incast.64K[workers=4].fairness<=1"
        );
        let rows = rows(&bench(&line));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((&row["workers"], &row["processes"]), (&4.into(), &processes.into()));
        assert_eq!((&row["frames"], &row["window"]), (&2.into(), &4.into()));
        assert!(row["fairness"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["gb_per_s"].as_f64().unwrap() > 0.0 && row["path"] == transport, "{row}");
        for end in ["send", "recv"] {
            assert!(row["cpu_s_per_gb"][end].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}

#[test]
fn sixty_four_senders_share_the_window_bound() {
    let line = "--transport tcp --pattern incast --workers 64 --size 1M --json";
    let begin = Instant::now();
    let rows = rows(&bench(line));
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    // 64 senders, 4 messages each, 1 MiB a message: 256 MiB.
    assert_eq!((&rows[0]["workers"], &rows[0]["window"]), (&65.into(), &4.into()));
    assert!(rows[0]["fairness"].as_f64().unwrap() > 0.0, "{}", rows[0]);
}

#[test]
fn alltoall_has_every_pair() {
    for (transport, processes) in [("mem", 1), ("tcp", 3), ("shm", 3)] {
        let line = format!(
            "--transport {transport} --pattern alltoall --workers 3 --size 64K --frames 2 --verify --json \
             --assert {transport}.alltoall.64K[workers=3].fairness<=1"
        );
        let rows = rows(&bench(&line));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((&row["workers"], &row["processes"]), (&3.into(), &processes.into()));
        assert!(row["fairness"].as_f64().unwrap() > 0.0 && row["gb_per_s"].as_f64().unwrap() > 0.0, "{row}");
        // Six flows share 256 MiB, which is more than 16 messages each.
        assert_eq!(row["window"], 16);
        assert!(row["cpu_s_per_gb"].is_null(), "a worker's time is for both: {row}");
    }
}

/// Each connection has several descriptors at either end, and the usual limit does not apply to a run.
#[test]
fn many_workers_have_the_descriptors_that_they_need() {
    let line = "bench --transport shm --pattern alltoall --workers 12 --size 8 --window 1 --duration 0.05 --repeat 1 --json";
    let script = format!("ulimit -Sn 64; exec '{}' {line}", env!("CARGO_BIN_EXE_towline"));
    let rows = rows(&spawn(Command::new("sh").args(["-c", &script])).finish());
    assert_eq!((&rows[0]["workers"], &rows[0]["path"]), (&12.into(), &"shm".into()));
}

#[test]
fn a_running_serving_side_joins_alltoall() {
    let (_serving, address, at) = serve();
    for (workers, all) in [(1, 2), (3, 4)] {
        let moved = || {
            let page = page(&at, Format::Plain);
            ["towline_received_bytes_sum", "towline_sent_bytes_sum"].map(|name| value(&page, name))
        };
        let before = moved();
        let line = format!(
            "--connect {address} --pattern alltoall --workers {workers} --size 64K --frames 2 --verify --json"
        );
        let rows = rows(&bench(&line));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((&row["workers"], &row["processes"]), (&all.into(), &all.into()));
        assert_eq!((&row["path"], &row["verified"]), (&"tcp".into(), &true.into()));
        assert!(row["fairness"].as_f64().unwrap() > 0.0 && row["gb_per_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["samples"].as_u64().unwrap() >= workers, "{row}");
        // At least one message to and from each worker here; the counting starts after it.
        for (before, after) in before.into_iter().zip(moved()) {
            assert!(after - before >= 2.0 * 65_536.0 * workers as f64, "{before} {after}");
        }
    }
}

#[test]
fn a_lost_serving_side_fails_the_run_and_outlives_a_lost_run() {
    let (serving, address, at) = serve();
    let line = format!("bench --connect {address} --pattern alltoall --workers 2 --size 64K --duration 60");
    let busy = || {
        let sent = value(&page(&at, Format::Plain), "towline_sent_bytes_count");
        let bench = start(&line.split(' ').collect::<Vec<_>>());
        let begin = Instant::now();
        while value(&page(&at, Format::Plain), "towline_sent_bytes_count") < sent + 100.0 {
            assert!(begin.elapsed() < TIMEOUT, "it does not send");
            thread::sleep(Duration::from_millis(2));
        }
        bench
    };
    signal(busy().id(), Signal::KILL);
    let bench = busy();
    signal(serving.id(), Signal::KILL);
    let begin = Instant::now();
    let finished = bench.finish();
    finished.exits_with(1);
    assert!(begin.elapsed() < TIMEOUT && finished.err.contains("worker "), "{}", finished.err);
}

/// Returns a run during its measurement, with its processes.
fn busy(pattern: &str) -> (Running, Vec<u32>) {
    let line =
        format!("bench --transport tcp --pattern {pattern} --workers 3 --size 64K --duration 60 --json");
    let bench = start(&line.split(' ').collect::<Vec<_>>());
    let begin = Instant::now();
    let all = if pattern == "incast" { 4 } else { 3 };
    while children(&bench).len() < all {
        assert!(begin.elapsed() < TIMEOUT, "not all were started");
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(700));
    let children = children(&bench);
    (bench, children)
}

/// Returns those of `processes` that run `towline SUBCOMMAND`.
fn running(processes: &[u32], subcommand: &str) -> Vec<u32> {
    let is = |id: &u32| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(subcommand.as_bytes())
    };
    processes.iter().copied().filter(is).collect()
}

#[test]
fn death_of_a_worker_or_receiver_fails_the_run_and_ends_all() {
    for (pattern, subcommand, says) in [
        ("incast", "work", ", process {}, died (signal: 9"),
        ("incast", "serve", "the serving process {} died (signal: 9"),
        ("alltoall", "work", ", process {}, died (signal: 9"),
    ] {
        let (bench, all) = busy(pattern);
        let victim = *running(&all, subcommand).last().unwrap();
        signal(victim, Signal::KILL);
        let begin = Instant::now();
        let finished = bench.finish();
        finished.exits_with(1);
        assert!(begin.elapsed() < TIMEOUT, "{:?}", begin.elapsed());
        assert!(finished.err.contains(&says.replace("{}", &victim.to_string())), "{}", finished.err);
        all.into_iter().for_each(ends);
    }
}

#[test]
fn an_interrupted_or_killed_run_leaves_no_worker() {
    for (pattern, by) in [("incast", Signal::INT), ("incast", Signal::KILL), ("alltoall", Signal::KILL)] {
        let (bench, all) = busy(pattern);
        assert_eq!(running(&all, "work").len(), 3);
        signal(bench.id(), by);
        let finished = bench.finish();
        assert_eq!(finished.code, (by == Signal::INT).then_some(130), "{}", finished.err);
        all.into_iter().for_each(ends);
    }
}
