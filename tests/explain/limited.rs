//! Limits on open files, file size and address space. Each test runs in a process of its own, which sets the
//! limit.

use std::fs::{self, File};
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towline::{Arena, AvailableMemory, CandidateState, Endpoint, ErrorKind, MemoryBound, Message, Pool};
use towline_tests::polls::{eventually, in_time};
use towline_tests::usage;

use super::{backend_lists, endpoint, measure, meet, of, states};

const LIMITED: &str = "TOWLINE_LIMITED";
/// Descriptors that are left. A connection over sockets takes three of them, its listener included. Shared
/// memory takes five more at either end.
const LEFT: usize = 4;

/// Opens files until only `left` descriptors are free.
fn all_but(left: usize) -> Vec<File> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some((usage::descriptors() + 200) as u64);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - left);
    taken
}

/// Returns true in the process that sets the limit. Otherwise runs the test in such a process, and checks that
/// it passed.
fn is_limited(test: &str) -> bool {
    if std::env::var_os(LIMITED).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.env(LIMITED, "1").args(["--exact", test, "--nocapture"]).output().unwrap();
    let reported = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && reported.contains("1 passed"),
        "{reported}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_without_enough_descriptors_is_refused_and_the_next_is_reported() {
    let name = "limited::a_path_without_enough_descriptors_is_refused_and_the_next_is_reported";
    if !is_limited(name) {
        return;
    }
    let backends = backend_lists().into_iter().find(|backends| backends[0].name() == "shm").unwrap();
    let (near, far) = (endpoint(backends.clone()), endpoint(backends));
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
    assert_ne!(chosen[0], chosen[1], "each prediction is for its own path");
}

/// Sets the limit on the size of files, in bytes; `None` lifts it.
fn limit_files_to(current: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
}

/// Returns the signals that this process ignores, and those that it handles.
fn signals() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .filter(|line| line.starts_with("SigIgn") || line.starts_with("SigCgt"))
        .map(str::to_owned)
        .collect()
}

/// Delivers `message` from `a` to `b`.
async fn passes(a: &towline::Connection, b: &towline::Connection, message: Message) {
    let len = message.payload_len();
    let (delivered, taken) = in_time("a message", async { tokio::join!(a.deliver(message), b.recv()) }).await;
    delivered.unwrap();
    assert_eq!(taken.unwrap().payload_len(), len);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_file_size_is_read_whenever_a_segment_is_made() {
    if !is_limited("limited::a_limit_on_file_size_is_read_whenever_a_segment_is_made") {
        return;
    }
    let before = signals();
    let backends = backend_lists().into_iter().find(|backends| backends[0].name() == "shm").unwrap();
    let end = || Endpoint::builder().trust_user(true).backends(backends.clone()).build().unwrap();
    let ends = [end(), end()];
    let [near, far] = &ends;
    // The limit holds at the start and later. The library must not remember it.
    for (limit, expected) in [(Some(0), "tcp"), (None, "shm"), (Some(100 << 10), "tcp"), (None, "shm")] {
        limit_files_to(limit);
        let (a, b) = meet(near, far, "towline://127.0.0.1:0").await;
        for end in [&a, &b] {
            assert_eq!(end.path().chosen(), expected, "{:?}", end.path());
        }
        if limit.is_some() {
            let shm = of(a.path(), "shm");
            assert_eq!(shm.state, CandidateState::Refused);
            assert!(shm.reason.contains("RLIMIT_FSIZE"), "{}", shm.reason);
        }
        // A connection opened before the limit works on, and makes no segment. A bounce arena would need one.
        limit_files_to(Some(0));
        for len in [1, 1 << 20, 4 << 20] {
            passes(&a, &b, Message::new("m").with_frame(vec![1; len])).await;
        }
    }
    assert_eq!(signals(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_arena_stays_within_the_limit_on_file_size() {
    const LIMIT: usize = (3 << 20) + 5000;
    if !is_limited("limited::an_arena_stays_within_the_limit_on_file_size") {
        return;
    }
    limit_files_to(Some(LIMIT as u64));
    let arena = Arena::new(256 << 20).unwrap();
    let small = arena.take(1 << 20).unwrap();
    assert!(arena.stats().bytes <= LIMIT, "{:?}", arena.stats());
    let error = arena.take(4 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
    // Many small segments are permitted where a large one is not.
    let held: Vec<_> = (0..8).map(|_| arena.take(2 << 20).unwrap()).collect();
    assert!(arena.stats().segments >= 8, "{:?}", arena.stats());
    drop((small, held));
    limit_files_to(Some(0));
    assert_eq!(arena.take(2 << 20).unwrap().capacity(), 2 << 20, "existing segments are used again");
    assert_eq!(Arena::new(1 << 20).unwrap().take(1).unwrap_err().kind(), ErrorKind::TooLarge);
    limit_files_to(None);
    arena.take(4 << 20).unwrap();
}

#[test]
fn memory_beyond_the_limit_on_address_space_is_refused_with_its_name() {
    if !is_limited("limited::memory_beyond_the_limit_on_address_space_is_refused_with_its_name") {
        return;
    }
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let used = pages.split(' ').next().unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(used + (96 << 20)), maximum }).unwrap();
    let memory = AvailableMemory::now().unwrap();
    assert_eq!(memory.bound, MemoryBound::AddressSpace, "{memory}");
    assert!(memory.bytes <= 96 << 20 && memory.limit_bytes <= used + (96 << 20), "{memory}");
    let arena = Arena::new(1 << 30).unwrap();
    let errors = [Pool::new(0).take(256 << 20).unwrap_err(), arena.take(256 << 20).unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains("RLIMIT_AS"), "{error}");
    }
    // A first segment leaves half of the available memory, though the arena's limit is higher.
    arena.take(1 << 20).unwrap();
    assert!(arena.stats().bytes <= 48 << 20, "{:?}", arena.stats());
}
