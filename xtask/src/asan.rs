//! `cargo xtask asan`: the unit tests of the code that owns memory, under AddressSanitizer.
//!
//! The sanitizer is an unstable flag of the compiler that works on the stable one with `RUSTC_BOOTSTRAP=1`. Only what runs on
//! the target is instrumented (hence `--target`: build scripts and macros are not).

use std::time::Instant;

use crate::process::{self, Outcome, cargo, host_triple, target_directory};

/// The tests that run: every unit test whose path holds one of these.
const FILTERS: [&str; 2] = ["memory", "backend::mem"];

pub(crate) fn run(deadline: Instant) -> Outcome {
    let target = host_triple();
    let mut command = cargo(&["test", "--package", "towline", "--lib", "--target", &target, "--target-dir"]);
    command.arg(target_directory().join("asan")).arg("--").args(FILTERS);
    let flags = format!("{} -Zsanitizer=address", std::env::var("RUSTFLAGS").unwrap_or_default());
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags.trim());
    process::run(&mut command, deadline)
}
