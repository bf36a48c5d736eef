//! `cargo xtask test`: runs all tests; with `--install` it installs what they need first.

use std::time::{Duration, Instant};

use crate::install;
use crate::process::{self, Outcome, cargo};
use crate::python;
use crate::stage::NO_LIMIT;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Install what the tests need and this machine lacks. Without it these tests skip, and the end of the
    /// run prints why
    #[arg(long)]
    install: bool,
    /// End the run after this time; no limit by default
    #[arg(long, value_name = "SECONDS")]
    limit_s: Option<u64>,
    /// Run only tests whose name contains this; several filters run one after the other
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let limit = arguments.limit_s.map_or(NO_LIMIT, Duration::from_secs);
    test(arguments.install, &arguments.filters, Instant::now() + limit)
}

/// Runs the stage: all tests that this machine supports.
pub(crate) fn test_as_is(deadline: Instant) -> Outcome {
    test(false, &[], deadline)
}

fn test(may_install: bool, filters: &[String], deadline: Instant) -> Outcome {
    let prepared = install::prepare(may_install, deadline);
    // Every test binary runs even if one fails: a complete report is worth the time.
    let suite = ["test", "--workspace", "--no-fail-fast"];
    if filters.is_empty() {
        let outcome = process::run(&mut cargo(&suite), deadline);
        python::test(deadline).and(outcome)?;
    }
    for filter in filters {
        process::run(cargo(&suite).arg("--").arg(filter), deadline)?;
    }
    prepared
}
