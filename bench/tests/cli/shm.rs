//! Transports between the processes of one host in `towline bench`.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::Signal;

use crate::bench::{bench, ceilings, measures_every_pattern, rows};
use crate::command::{Running, towline};
use crate::interruptions::{ends, signal};

/// Returns the names of the ready backends with `cap`, the best one first.
pub(crate) fn ready(cap: &str) -> Vec<String> {
    let listed = towline(&["info", "--json"]).document();
    let backends = listed["backends"].as_array().unwrap().iter();
    let has = |caps: &serde_json::Value| caps.as_array().unwrap().iter().any(|has| has == cap);
    let ready = backends.filter(|backend| backend["state"] == "ready" && has(&backend["caps"]));
    ready.map(|backend| backend["name"].as_str().unwrap().to_owned()).collect()
}

/// Returns what `auto` chooses between two processes of this host.
pub(crate) fn best() -> String {
    ready("cross_process").remove(0)
}

#[test]
fn shm_is_measured_between_two_processes() {
    measures_every_pattern("shm");
}

#[test]
fn a_sleeping_shm_latency_is_compared_with_an_eventfd() {
    let line = "--transport shm,auto --pattern latency --wait sleep,adaptive,spin --json";
    for row in rows(&bench(line)) {
        assert_eq!(row["path"], "shm", "{row}");
        let kinds = ceilings(&row);
        assert_eq!(kinds, if row["wait"] == "spin" { &[][..] } else { &["eventfd"] }, "{row}");
    }
}

/// Returns two eventfds and the far end of a ceiling between them: `program` with `arguments`.
fn beat(program: &str, arguments: &[&str]) -> (Running, [OwnedFd; 2]) {
    let there = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let back = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stderr(Stdio::piped());
    command.stdin(there.try_clone().unwrap()).stdout(back.try_clone().unwrap());
    (Running(command.spawn().unwrap()), [there, back])
}

/// Makes one round trip.
fn passes([there, back]: &[OwnedFd; 2]) {
    rustix::io::write(there, &1u64.to_ne_bytes()).unwrap();
    let soon = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(back, PollFlags::IN)], Some(&soon)).unwrap(), 1, "nothing comes back");
    rustix::io::read(back, &mut [0; 8]).unwrap();
}

#[test]
fn an_eventfd_process_ends_with_its_parent() {
    let program = env!("CARGO_BIN_EXE_towline");
    let script = format!("'{program}' beat $$ <&0 & echo $! >&2; wait");
    let (mut measures, ends_of) = beat("sh", &["-c", &script]);
    let mut line = String::new();
    BufReader::new(measures.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    (0..100).for_each(|_| passes(&ends_of));
    signal(measures.id(), Signal::KILL);
    ends(line.trim().parse().unwrap());
}

#[test]
fn an_eventfd_process_ends_if_its_parent_is_already_dead() {
    let begin = Instant::now();
    let (orphan, _ends) = beat(env!("CARGO_BIN_EXE_towline"), &["beat", "1"]);
    orphan.finish().exits_with(0);
    assert!(begin.elapsed() < Duration::from_secs(20));
}
