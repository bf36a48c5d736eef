//! `cargo xtask test`: runs all tests; with `--install` it first installs what they need and this machine lacks.

use std::time::{Duration, Instant};

use crate::install;
use crate::process::{self, Outcome, cargo};
use crate::stage::NO_LIMIT;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Install first what tests need and this machine lacks. Otherwise these skip, and the end of the run says why.
    #[arg(long)]
    install: bool,
    /// End the run after so long. Without it there is no limit.
    #[arg(long, value_name = "SECONDS")]
    limit_s: Option<u64>,
    /// Run only the tests whose name holds this; several are run one after the other.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let limit = arguments.limit_s.map_or(NO_LIMIT, Duration::from_secs);
    test(arguments.install, &arguments.filters, Instant::now() + limit)
}

/// All tests with what this machine has, as a stage.
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
