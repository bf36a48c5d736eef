//! `cargo xtask asan`: the code that owns memory, under AddressSanitizer: its unit tests, and the conformance suite over `mem`.
//!
//! The sanitizer is an unstable flag of the compiler that works on the stable one with `RUSTC_BOOTSTRAP=1`. Only what runs on
//! the target is instrumented (hence `--target`: build scripts and macros are not).

use std::time::Instant;

use crate::process::{self, Outcome, cargo, host_triple, target_directory};

/// What runs: the library's tests of memory, of the ring that processes share and of the protocol, and the cases of the in-process backend, but for those
/// that bound the process's memory, since the sanitizer keeps what is freed.
const RUNS: [&[&str]; 2] = [
    &["--package", "towline", "--lib", "--", "memory", "wire::tests", "shm::ring"],
    &[
        "--package",
        "towline-tests",
        "--test",
        "conformance",
        "--",
        "mem::",
        "--skip",
        "leaks::",
        "--skip",
        "flow::a_receiver_that_takes_nothing",
        "--skip",
        "receipts::an_undecided_incoming_costs_no_more",
        "--skip",
        "callers::an_endpoint_that_gets_no_thread",
    ],
];

pub(crate) fn run(deadline: Instant) -> Outcome {
    let flags = format!("{} -Zsanitizer=address", std::env::var("RUSTFLAGS").unwrap_or_default());
    for arguments in RUNS {
        let mut command = cargo(&["test", "--target", &host_triple(), "--target-dir"]);
        command.arg(target_directory().join("asan")).args(arguments);
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags.trim());
        process::run(&mut command, deadline)?;
    }
    Ok(())
}
