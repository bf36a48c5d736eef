//! Degraded paths: each is refused or reported as slow. Choice, reasons and measurements follow, and both ends
//! agree.
//!
//! Each test runs on every backend of this build that reaches its own process, new ones included.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod degraded;
mod limited;
mod with_endpoint_info;

use std::sync::Arc;

use towline::backend::{self, Backend, Preference};
use towline::{
    Candidate, CandidateState, Connection, Endpoint, ErrorKind, Explanation, Measured, Message, Path,
};
use towline_tests::polls::in_time;

use degraded::{DELAY, Degraded, Fault, REASON, REMEDY};
use with_endpoint_info::{EXTRA_LEN, NO_INFO, WithEndpointInfo};

const REFUSALS: [Fault; 5] =
    [Fault::Missing, Fault::NoOffer, Fault::Unreachable, Fault::NotPrepared, Fault::NotOpened];

type Backends = Vec<Arc<dyn Backend>>;

/// For each preferred backend, returns it and those after it in the order of preference.
fn backend_lists() -> Vec<Backends> {
    let all: Backends =
        backend::all().into_iter().filter(|it| it.preference() == Preference::Preferred).collect();
    (0..all.len()).map(|first| all[first..].to_vec()).collect()
}

/// Returns the same list with a fault in the first backend.
fn degraded(backends: &Backends, fault: Fault) -> Backends {
    let mut backends = backends.clone();
    backends[0] = Degraded::over(backends[0].clone(), fault);
    backends
}

fn endpoint(backends: Backends) -> Endpoint {
    Endpoint::builder().backends(backends).build().unwrap()
}

/// Connects `near` to `far`. Returns the connecting and the accepting end.
async fn meet(near: &Endpoint, far: &Endpoint, address: &str) -> (Connection, Connection) {
    let listener = far.listen(&address.parse().unwrap()).await.unwrap();
    let (a, b) =
        in_time("a connection", async { tokio::join!(near.connect(listener.address()), listener.accept()) })
            .await;
    (a.unwrap(), b.unwrap())
}

async fn measure(a: &Connection, b: &Connection) -> (Explanation, Measured) {
    let (explained, taken) =
        in_time("a measurement", async { tokio::join!(a.measure(), b.be_measured()) }).await;
    taken.unwrap();
    let explanation = explained.unwrap();
    let measured = explanation.measured.clone().unwrap();
    (explanation, measured)
}

fn states(path: &Path) -> Vec<(&'static str, CandidateState)> {
    path.candidates().iter().map(|candidate| (candidate.name, candidate.state)).collect()
}

fn of<'a>(path: &'a Path, name: &str) -> &'a Candidate {
    path.candidates().iter().find(|candidate| candidate.name == name).unwrap()
}

#[tokio::test]
async fn a_refused_path_yields_to_the_next_and_keeps_its_reason() {
    for backends in backend_lists() {
        let [first, next, ..] = &backends[..] else { continue };
        let name = first.name();
        for fault in REFUSALS {
            let ends = [endpoint(degraded(&backends, fault)), endpoint(backends.clone())];
            for (near, far, end) in [(&ends[0], &ends[1], 0), (&ends[1], &ends[0], 1)] {
                let what = format!("{name} {fault:?} at end {end}");
                let (a, b) = meet(near, far, "towline://127.0.0.1:0").await;
                for side in [&a, &b] {
                    assert_eq!(side.path().chosen(), next.name(), "{what}");
                    assert_eq!(of(side.path(), name).state, CandidateState::Refused, "{what}");
                }
                assert_eq!(states(a.path()), states(b.path()), "{what}");
                let (faulty, other) = if end == 0 { (&a, &b) } else { (&b, &a) };
                assert!(of(faulty.path(), name).reason.contains(REASON), "{what}");
                let remedy = (fault == Fault::Missing).then_some(REMEDY);
                assert_eq!(of(faulty.path(), name).remedy.as_deref(), remedy, "{what}");
                // The other end reports the reason that it received, or that it received none.
                let reported = &of(other.path(), name).reason;
                let is_expected = match fault {
                    Fault::Missing | Fault::NoOffer => reported.contains("does not offer it"),
                    Fault::Unreachable | Fault::NotPrepared if end == 0 => {
                        reported.contains("did not propose it")
                    }
                    _ => reported.contains(REASON),
                };
                assert!(is_expected, "{what}: {reported}");
            }
        }
    }
}

#[tokio::test]
async fn a_refused_forced_path_is_an_error_with_the_reason() {
    // A mem:// name is local to the process, and needs no port.
    for backends in backend_lists().into_iter().filter(|backends| backends[0].name() != "mem") {
        let name = backends[0].name();
        let address = format!("{name}://127.0.0.1:0");
        for fault in [Fault::Missing, Fault::NoOffer, Fault::Unreachable, Fault::NotPrepared] {
            let (near, far) = (endpoint(degraded(&backends, fault)), endpoint(backends.clone()));
            let listener = far.listen(&address.parse().unwrap()).await.unwrap();
            let error = in_time("connect", near.connect(listener.address())).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{name} {fault:?}: {error}");
            assert!(error.to_string().contains(REASON), "{name} {fault:?}: {error}");
        }
    }
}

/// All backends; the in-process one attaches by endpoint info, with `extra` bytes appended.
fn with_endpoint_info(extra: usize) -> Backends {
    let mut all = backend::all();
    assert_eq!(all[0].name(), "mem");
    all[0] = Arc::new(WithEndpointInfo { backend: all[0].clone(), extra });
    all
}

#[tokio::test]
async fn ends_can_attach_by_endpoint_info() {
    let (near, far) = (endpoint(with_endpoint_info(0)), endpoint(with_endpoint_info(0)));
    for _ in 0..3 {
        let (a, b) = meet(&near, &far, "towline://127.0.0.1:0").await;
        assert_eq!([a.path().chosen(), b.path().chosen()], ["mem"; 2]);
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (sent, came) =
                in_time("a message", async { tokio::join!(from.send(Message::new("hi")), to.recv()) }).await;
            sent.unwrap();
            assert_eq!(came.unwrap().header()[..], *b"hi");
        }
    }
}

#[tokio::test]
async fn missing_or_too_long_endpoint_info_refuses_only_its_path() {
    let (plain, right, long) =
        (endpoint(backend::all()), endpoint(with_endpoint_info(0)), endpoint(with_endpoint_info(EXTRA_LEN)));
    for (near, far, [of_near, of_far]) in [
        (&plain, &right, [NO_INFO, NO_INFO]),
        (&long, &right, ["passes the limit", "did not propose it"]),
        (&right, &long, ["passes the limit", "passes the limit"]),
    ] {
        let (a, b) = meet(near, far, "towline://127.0.0.1:0").await;
        for (side, reason) in [(&a, of_near), (&b, of_far)] {
            assert_eq!(side.path().chosen(), "shm");
            let candidate = of(side.path(), "mem");
            assert_eq!(candidate.state, CandidateState::Refused);
            assert!(candidate.reason.contains(reason), "{}", candidate.reason);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_path_is_measured_as_slow() {
    for backends in backend_lists() {
        let name = backends[0].name();
        let (healthy, degraded) = (endpoint(backends.clone()), endpoint(degraded(&backends, Fault::Slow)));
        let mut found = Vec::new();
        for end in [&healthy, &degraded] {
            let (a, b) = meet(end, end, "towline://127.0.0.1:0").await;
            let (explanation, measured) = measure(&a, &b).await;
            let chosen = explanation.chosen().unwrap();
            assert_eq!(chosen.candidate.name, name);
            let predicted = chosen.predicted.unwrap();
            assert!(predicted.speed.gb_per_s > 0.0 && predicted.speed.p50_us > 0.0, "{predicted:?}");
            let share = measured.speed.gb_per_s / predicted.speed.gb_per_s;
            assert_eq!(measured.share, Some(share), "{name}");
            assert!((0.0..=4.0).contains(&measured.copies), "{name}: {measured:?}");
            // The peer's view is the peer's own path.
            assert_eq!(measured.peer.chosen(), Some(name));
            let view: Vec<_> = measured.peer.candidates.iter().map(|it| (&it.name[..], it.state)).collect();
            assert_eq!(view, states(b.path()));
            assert_eq!(view, states(a.path()));
            found.push(measured.speed);
        }
        let [_, degraded] = found[..] else { unreachable!() };
        let delay_us = DELAY.as_secs_f64() * 1e6;
        assert!(degraded.p50_us >= delay_us, "{name}: {degraded:?}");
        // A message of 1 MiB leaves every 2 ms at best.
        let ceiling = f64::from(1 << 20) / 1e3 / delay_us;
        assert!(degraded.gb_per_s <= 1.01 * ceiling, "{name}: {degraded:?}");
    }
}

#[tokio::test]
async fn the_connectors_preference_wins_and_both_ends_report_the_same() {
    let order = |names: [&str; 2]| -> Backends {
        let named = |name| backend::all().into_iter().find(|backend| backend.name() == name);
        names.into_iter().filter_map(named).collect()
    };
    let orders = [["shm", "tcp"], ["tcp", "shm"]];
    for (connectors, acceptors) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
        let what = format!("{:?} connects to {:?}", orders[connectors], orders[acceptors]);
        let (near, far) = (endpoint(order(orders[connectors])), endpoint(order(orders[acceptors])));
        let (a, b) = meet(&near, &far, "towline://127.0.0.1:0").await;
        let reported = [&a, &b].map(|end| {
            let mut states = states(end.path());
            states.sort_by_key(|(name, _)| *name);
            (end.path().chosen(), states)
        });
        assert_eq!(reported[0], reported[1], "{what}");
        assert_eq!(reported[0].0, orders[connectors][0], "{what}");
        assert_eq!(of(a.path(), orders[connectors][1]).state, CandidateState::Available, "{what}");
        let explanations = [a.explain().await, b.explain().await];
        let chosen = explanations.map(|explanation| explanation.chosen().unwrap().candidate.name);
        assert_eq!(chosen, [reported[0].0; 2], "{what}");
        let (_, measured) = measure(&a, &b).await;
        assert_eq!(measured.peer.chosen(), Some(reported[0].0), "{what}");
    }
}

#[tokio::test]
async fn only_paths_that_reach_the_peer_have_a_prediction() {
    let all = Endpoint::new().unwrap();
    let (a, b) = meet(&all, &all, "tcp://127.0.0.1:0").await;
    assert_eq!(states(a.path()), states(b.path()));
    for end in [&a, &b] {
        let explanation = end.explain().await;
        assert!(explanation.measured.is_none());
        for explained in &explanation.candidates {
            let asked_for = explained.candidate.name == "tcp";
            assert_eq!(explained.predicted.is_some(), asked_for, "{explained:?}");
        }
    }
}

#[tokio::test]
async fn a_message_in_place_of_a_pong_fails_the_measurement() {
    let all = Endpoint::new().unwrap();
    let (a, b) = meet(&all, &all, "mem://").await;
    b.send(Message::new("hello")).await.unwrap();
    let error = in_time("a measurement", a.measure()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // The other end received a ping of the end that is dropped now.
    drop(a);
    let error = in_time("the peer's part", b.be_measured()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
}
