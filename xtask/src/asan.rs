//! `cargo xtask asan`: runs the unit tests of the code that owns memory, and the conformance suite over
//! `mem`, under AddressSanitizer.
//!
//! The sanitizer is an unstable compiler flag, which the stable compiler accepts with `RUSTC_BOOTSTRAP=1`.
//! `--target` restricts the instrumentation to code that runs on the target, without build scripts and
//! macros.

use std::time::Instant;

use crate::process::{self, Outcome, cargo, host_triple, target_directory};

/// The runs: the library's tests of memory, of the shared ring and of the protocol, and the cases of the
/// in-process backend. Cases that bound the process's memory are skipped, since the sanitizer keeps freed
/// memory.
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
        "callers::building_an_endpoint_without_a_thread_fails_with_io",
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
