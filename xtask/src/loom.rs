//! `cargo xtask loom`: runs the code that processes share without a lock under loom, which tries every order
//! of steps and every value that memory may return. The product's source is compiled with loom's atomics. The
//! cfg has its own name, because tokio uses loom's.

use std::time::Instant;

use crate::process::{self, Outcome, cargo, target_directory};

pub(crate) fn run(deadline: Instant) -> Outcome {
    let flags = format!("{} --cfg towline_loom", std::env::var("RUSTFLAGS").unwrap_or_default());
    let mut command = cargo(&["test", "--package", "towline", "--lib", "--target-dir"]);
    command.arg(target_directory().join("loom")).args(["--", "models"]);
    process::run(command.env("RUSTFLAGS", flags.trim()), deadline)
}
