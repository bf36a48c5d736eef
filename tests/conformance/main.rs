//! What every backend promises, as cases: backends × cases, selected by capability.
//!
//! A row of the table in `backends.rs` adds a backend. Each case runs in a process of its own, with a runtime
//! of its own and a time limit, so that a case that hangs, leaks or dies is one failure. Several cases run on
//! each core, see [`suite::Load`]; `--test-threads` sets another number.
//!
//! `TOWLINE_CASE=mem::flow::…` runs one case in this process, for a debugger. `TOWLINE_SEED=7` sets the seed
//! of mixed traffic. `TOWLINE_REQUIRE=netns,ipv6` turns skips into failures.
#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod addresses;
mod arena;
mod attach;
mod backends;
mod bounce_copies;
mod callers;
mod cancel;
mod closed;
mod completions;
mod connect;
mod content;
mod copies;
mod deaths;
mod destinations;
mod encrypted;
mod ending;
mod establishing;
mod event_loop;
mod faults;
mod fetching;
mod floods;
mod flow;
mod foreign;
mod fork;
mod forward;
mod handshake;
mod holders;
mod hostile;
mod integrity;
mod isolation;
mod leaks;
mod lent_frames;
mod messages;
mod mixed;
mod namespaces;
mod network;
mod one_sided;
mod peer;
mod places;
mod prefetch;
mod processes;
mod raw_peer;
mod receipts;
mod ring_faults;
mod segments;
mod sharing;
mod socket_addresses;
mod streams;
mod stuck;
mod suite;
mod threaded;
mod unpolled;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use towline_tests::{forked, need, polls, usage};

use backends::{ROWS, Row};
use suite::{Case, Claims, Need, Slots};

const GROUPS: &[&[Claims]] = &[
    messages::CASES,
    destinations::CASES,
    prefetch::CASES,
    receipts::CASES,
    flow::CASES,
    cancel::CASES,
    ending::CASES,
    closed::CASES,
    completions::CASES,
    one_sided::CASES,
    places::CASES,
    copies::CASES,
    foreign::CASES,
    arena::CASES,
    forward::CASES,
    bounce_copies::CASES,
    callers::CASES,
    unpolled::CASES,
    event_loop::CASES,
    mixed::CASES,
    faults::CASES,
    fetching::CASES,
    leaks::CASES,
    handshake::CASES,
    floods::CASES,
    raw_peer::CASES,
    hostile::CASES,
    integrity::CASES,
    streams::CASES,
    connect::CASES,
    establishing::CASES,
    attach::CASES,
    segments::CASES,
    ring_faults::CASES,
    lent_frames::CASES,
    processes::CASES,
    fork::CASES,
    network::CASES,
    addresses::CASES,
    socket_addresses::CASES,
    deaths::CASES,
    holders::CASES,
    isolation::CASES,
];

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(peer::ROLE) {
        return peer::run(&role);
    }
    let cases: Vec<(&Row, Case)> =
        ROWS.iter().flat_map(|row| Case::all(row, GROUPS).into_iter().map(move |case| (row, case))).collect();
    if let Ok(name) = std::env::var(suite::CASE) {
        let found = cases.into_iter().find(|(row, case)| case.full_name(row) == name);
        let (row, case) = found.unwrap_or_else(|| panic!("no case is named {name}"));
        suite::run_here(row, case);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    let slots = Arc::new(Slots::new(arguments.test_threads));
    arguments.test_threads = Some(slots.count());
    let trial = |(row, case): (&'static Row, Case)| match Need::unmet(row, case) {
        None => {
            let slots = slots.clone();
            Trial::test(case.full_name(row), move || slots.with(case.load, || suite::run_in_child(row, case)))
        }
        Some((need, reason)) => {
            Trial::ignorable_test(case.full_name(row), move || need::skip(need.name(), &reason))
        }
    };
    libtest_mimic::run(&arguments, cases.into_iter().map(trial).collect()).exit_code()
}
