//! The command for checks, tests and continuous integration: `cargo xtask --help`.
//!
//! Every command that it starts has a time limit. At the limit, all descendants of the command are ended too.

mod asan;
mod bindings;
mod check;
mod ci;
mod dask;
mod fuzz;
mod install;
mod licences;
mod loom;
mod machine;
mod packages;
mod process;
mod promtool;
mod python;
mod stage;
mod stages;
mod test;
mod wheel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::stage::no_limit;

/// Towline's development tasks
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run before a commit: format, tidy, clippy, tests, docs, examples. Stops at the first failure; installs
    /// nothing
    Check,
    /// Install what the tests and `bench --against` need: packages, and the programs of bench/compare
    Install,
    /// Run all tests; with --install, install what they need first
    Test(test::Arguments),
    /// Run every stage of continuous integration, each with its time, even after a failure. Installs nothing
    Ci(ci::Arguments),
    /// Regenerate the committed bindings to C libraries from their headers (UCX: packages libucx-dev and
    /// libclang1-14)
    Bindings(bindings::Arguments),
    /// Run the unit tests of memory and the conformance cases of `mem` under AddressSanitizer
    Asan,
    /// Run the models of memory that processes share without a lock, under loom
    Loom,
    /// Build the Python package of ffi/python and run its tests, in the environment that `install` makes
    Python,
    /// Build the Python wheel that is published, for every Linux since glibc 2.17, and import it in an empty
    /// environment
    Wheel,
    /// Run the fuzz targets from their committed corpora
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Check => check::run(),
        Task::Install => install::install_all(),
        Task::Test(arguments) => test::run(&arguments),
        Task::Ci(arguments) => ci::run(&arguments),
        Task::Bindings(arguments) => bindings::run(&arguments),
        Task::Asan => asan::run(stages::ASAN.deadline()),
        Task::Loom => loom::run(stages::LOOM.deadline()),
        Task::Python => python::test(no_limit()),
        Task::Wheel => python::wheel(no_limit()),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
