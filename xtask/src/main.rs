//! The one command behind check, test and ci: `cargo xtask --help`.
//!
//! Every command it starts has a time limit, and what that command started ends with it.

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
mod stage;
mod stages;
mod test;
mod wheel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Towline's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Before a commit: format, tidy, clippy, tests, docs, examples. Stops at the first failure, installs nothing.
    Check,
    /// What tests and `bench --against` need and this machine lacks: packages, and the programs of bench/compare.
    Install,
    /// All tests; with --install, after installing what they need and this machine lacks.
    Test(test::Arguments),
    /// Every stage that continuous integration runs, each with its time. Runs all of them and fails if one did; installs nothing.
    Ci(ci::Arguments),
    /// Makes the committed bindings to C libraries anew, from their headers (UCX: packages libucx-dev and libclang1-14).
    Bindings(bindings::Arguments),
    /// The unit tests of memory and of the reference backend under AddressSanitizer.
    Asan,
    /// What processes share without a lock, under loom.
    Loom,
    /// The fuzz targets, from their committed corpora.
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
