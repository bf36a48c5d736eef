//! Clusters of processes, which the tests kill and stop: guarantees of one process hold for many.
//!
//! The processes run this program in another role: see `peer.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod cluster;
mod deaths;
mod functions;
mod hostile;
mod hosts;
mod leaving;
mod paths;
mod peer;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(peer::ROLE) {
        return peer::run(&role);
    }
    let trials = [paths::CASES, deaths::CASES, leaving::CASES, hostile::CASES].concat().into_iter().map(
        |(name, case)| {
            Trial::test(name, move || {
                case();
                Ok(())
            })
        },
    );
    libtest_mimic::run(&Arguments::from_args(), trials.chain(hosts::trials()).collect()).exit_code()
}
