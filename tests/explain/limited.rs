//! A process that may open few files: each test is run by a process of its own, which sets its limit.

use std::fs::File;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towline::CandidateState;
use towline_tests::polls::eventually;
use towline_tests::usage;

use super::{endpoint, measure, meet, of, states, ways};

const LIMITED: &str = "TOWLINE_LIMITED";
/// Descriptors that are left: a connection over sockets takes three of them, its listener included, and shared memory five more at
/// either end.
const LEFT: usize = 4;

/// Takes all descriptors but so many.
fn all_but(left: usize) -> Vec<File> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some((usage::descriptors() + 200) as u64);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - left);
    taken
}

/// Whether this is the process that sets the limit; otherwise that has done so, and went well.
fn is_limited(test: &str) -> bool {
    if std::env::var_os(LIMITED).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.env(LIMITED, "1").args(["--exact", test, "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_for_which_too_few_files_may_be_open_is_not_taken_and_the_figures_are_those_of_the_next() {
    let name = "limited::a_path_for_which_too_few_files_may_be_open_is_not_taken_and_the_figures_are_those_of_the_next";
    if !is_limited(name) {
        return;
    }
    let way = ways().into_iter().find(|way| way[0].name() == "shm").unwrap();
    let (near, far) = (endpoint(way.clone()), endpoint(way));
    let mut chosen = Vec::new();
    for expected in ["shm", "tcp", "shm"] {
        let taken = if expected == "tcp" { all_but(LEFT) } else { Vec::new() };
        let (a, b) = meet(&near, &far, "towline://127.0.0.1:0").await;
        for end in [&a, &b] {
            assert_eq!(end.path().chosen(), expected, "{:?}", end.path());
        }
        assert_eq!(states(a.path()), states(b.path()));
        let shm = of(a.path(), "shm");
        if expected == "tcp" {
            assert_eq!(shm.state, CandidateState::Refused);
            assert!(shm.reason.contains("open files"), "{}", shm.reason);
        }
        let (explanation, measured) = measure(&a, &b).await;
        let of_chosen = explanation.chosen().unwrap();
        assert_eq!((of_chosen.candidate.name, measured.peer.chosen()), (expected, Some(expected)));
        let predicted = of_chosen.predicted.unwrap();
        assert_eq!(measured.share, Some(measured.speed.gb_per_s / predicted.speed.gb_per_s));
        chosen.push((predicted.basis, predicted.speed.p50_us));
        drop(taken);
        let before = usage::descriptors();
        drop((a, b));
        eventually("its descriptors are closed", || usage::descriptors() < before).await;
    }
    assert_eq!(chosen[0], chosen[2]);
    assert_ne!(chosen[0], chosen[1], "what is predicted is of another path");
}
