//! `cargo xtask test`: installs what the tests need and this machine lacks, then runs all of them.

use std::time::{Duration, Instant};

use crate::install;
use crate::process::{self, Outcome, cargo};
use crate::stages::TEST;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Install nothing: tests that need what is missing skip, with their reason.
    #[arg(long)]
    no_install: bool,
    /// Time for the whole run.
    #[arg(long, value_name = "SECONDS", default_value_t = TEST.limit.as_secs())]
    limit_s: u64,
    /// Run only the tests whose name holds this; several are run one after the other.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(arguments.limit_s);
    test(!arguments.no_install, &arguments.filters, deadline)
}

/// All tests, as a stage of `ci`.
pub(crate) fn install_and_test(deadline: Instant) -> Outcome {
    test(true, &[], deadline)
}

/// All tests with what this machine has, as a stage of `check`.
pub(crate) fn test_as_is(deadline: Instant) -> Outcome {
    test(false, &[], deadline)
}

fn test(may_install: bool, filters: &[String], deadline: Instant) -> Outcome {
    let prepared = install::prepare(may_install, deadline);
    // Every test binary runs even if one fails: a whole report is worth the seconds.
    let suite = ["test", "--workspace", "--no-fail-fast"];
    if filters.is_empty() {
        process::run(&mut cargo(&suite), deadline)?;
    }
    for filter in filters {
        process::run(cargo(&suite).arg("--").arg(filter), deadline)?;
    }
    prepared
}
