//! The stages of `check` and `ci`. A new stage is a constant here and an entry in their lists.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::process::{Outcome, cargo, find_program, run, target_directory};
use crate::stage::{NO_LIMIT, Stage};
use crate::{asan, bindings, fuzz, licences, loom, test};

pub(crate) const FORMAT: Stage = Stage { name: "format", limit: minutes(1), run: format };
pub(crate) const TIDY: Stage = Stage { name: "tidy", limit: minutes(10), run: tidy };
pub(crate) const CLIPPY: Stage = Stage { name: "clippy", limit: minutes(10), run: clippy };
pub(crate) const BUILD: Stage = Stage { name: "build", limit: minutes(10), run: build_with_cargo_alone };
pub(crate) const TEST: Stage = Stage { name: "test", limit: minutes(45), run: test::test_as_is };
/// For a run by a person: no time limit.
pub(crate) const UNLIMITED_TEST: Stage = Stage { name: "test", limit: NO_LIMIT, run: test::test_as_is };
pub(crate) const SIMULATION: Stage = Stage { name: "simulation", limit: minutes(10), run: simulation };
pub(crate) const DOC: Stage = Stage { name: "doc", limit: minutes(10), run: doc };
pub(crate) const EXAMPLES: Stage = Stage { name: "examples", limit: minutes(10), run: examples };
pub(crate) const BINDINGS: Stage = Stage { name: "bindings", limit: minutes(5), run: bindings::stage };
pub(crate) const LICENCES: Stage = Stage { name: "licences", limit: minutes(2), run: licences::run };
pub(crate) const ASAN: Stage = Stage { name: "asan", limit: minutes(15), run: asan::run };
pub(crate) const LOOM: Stage = Stage { name: "loom", limit: minutes(8), run: loom::run };
pub(crate) const FUZZ: Stage = Stage { name: "fuzz", limit: minutes(12), run: fuzz::stage };
pub(crate) const BENCH: Stage = Stage { name: "bench", limit: minutes(15), run: bench };

/// The Python package is a workspace of its own.
pub(crate) const PYTHON_MANIFEST: &str = "ffi/python/Cargo.toml";

/// The programs that a build may use: Rust, its linker, and the tools that come with it, which build the
/// cryptography of TLS. No pkg-config, cmake, make, clang, protoc, Perl or Python.
const BUILD_PROGRAMS: [&str; 6] = ["cargo", "rustc", "cc", "ld", "as", "ar"];

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn format(deadline: Instant) -> Outcome {
    run(&mut cargo(&["fmt", "--all", "--check"]), deadline)?;
    ["bench/compare/Cargo.toml", PYTHON_MANIFEST]
        .iter()
        .try_for_each(|manifest| run(&mut cargo(&["fmt", "--check", "--manifest-path", manifest]), deadline))
}

fn tidy(deadline: Instant) -> Outcome {
    run(&mut cargo(&["test", "--package", "towline-tests", "--test", "tidy"]), deadline)
}

fn clippy(deadline: Instant) -> Outcome {
    // All features, so that code for the fuzz targets is checked too.
    let arguments =
        ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"];
    run(&mut cargo(&arguments), deadline)?;
    // And without any feature. The tests of the runtime and of the command bring the library's features back.
    let without = ["clippy", "--no-default-features", "--locked"];
    let packages = ["--package", "towline", "--package", "towline-runtime", "--package", "towline-bench"];
    run(cargo(&without).args(packages).args(["--", "-D", "warnings"]), deadline)?;
    let tests = ["--package", "towline", "--all-targets"];
    run(cargo(&without).args(tests).args(["--", "-D", "warnings"]), deadline)?;
    let python = ["clippy", "--locked", "--manifest-path", PYTHON_MANIFEST, "--target-dir"];
    run(cargo(&python).arg(target_directory()).args(["--", "-D", "warnings"]), deadline)
}

fn doc(deadline: Instant) -> Outcome {
    let arguments = ["doc", "--no-deps", "--workspace"];
    run(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"), deadline)
}

fn examples(deadline: Instant) -> Outcome {
    run(&mut cargo(&["build", "--package", "towline-examples", "--all-targets"]), deadline)
}

/// Builds with cargo and a C compiler alone, as on a fresh laptop. The build folder is its own, because a
/// dependency that is built already would not use its tools again.
fn build_with_cargo_alone(deadline: Instant) -> Outcome {
    let target = target_directory().join("bare");
    let programs = target.join("programs");
    let setup = || {
        if programs.exists() {
            fs::remove_dir_all(&programs)?;
        }
        fs::create_dir_all(&programs)?;
        for name in BUILD_PROGRAMS {
            if let Some(program) = find_program(name) {
                symlink(program, programs.join(name))?;
            }
        }
        Ok(())
    };
    setup().map_err(|error: std::io::Error| format!("{}: {error}", programs.display()))?;
    let mut command = cargo(&["build", "--workspace", "--locked", "--target-dir"]);
    run(command.arg(&target).env("PATH", &programs), deadline)?;
    // What needs a feature fails without it, and names it.
    for package in ["towline", "towline-bench"] {
        let arguments = ["test", "--lib", "--no-default-features", "--locked", "--package", package];
        run(cargo(&arguments).arg("--target-dir").arg(&target), deadline)?;
    }
    Ok(())
}

/// Runs as many seeds of each simulation as fit in two minutes on two busy cores. The test suite runs fewer.
fn simulation(deadline: Instant) -> Outcome {
    let arguments = ["test", "--package", "towline-tests", "--test", "simulation"];
    run(cargo(&arguments).env("TOWLINE_SEEDS", "10000"), deadline)?;
    let arguments = ["test", "--package", "towline", "--lib", "--", "simulated"];
    run(cargo(&arguments).env("TOWLINE_SEEDS", "10000"), deadline)?;
    let arguments = ["test", "--package", "towline-runtime", "--lib", "--", "simulated"];
    run(cargo(&arguments).env("TOWLINE_SEEDS", "10000"), deadline)
}

fn bench(deadline: Instant) -> Outcome {
    // Checks that bench runs and verifies every byte; its figures mean nothing on a busy machine.
    let main_job = ["run", "--release", "--package", "towline-bench", "--", "bench"];
    let short = ["--duration", "0.2", "--warmup", "0.1", "--repeat", "1", "--verify"];
    let patterns =
        ["--pattern", "latency,bandwidth,bidirectional,rate,put,get,connect", "--size", "8,100000"];
    run(cargo(&main_job).args(short).args(patterns), deadline)
}
