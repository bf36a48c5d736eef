//! `cargo xtask ci`: every stage of continuous integration. `.ci/run` runs it after `cargo xtask test
//! --install`.

use std::time::Duration;

use crate::process::Outcome;
use crate::stage::{OnFailure, Stage, run_all};
use crate::stages::{
    ASAN, BENCH, BINDINGS, BUILD, CLIPPY, DOC, FORMAT, FUZZ, LICENCES, LOOM, SIMULATION, TEST,
};

// ---- The stage list: a new stage is a constant in stages.rs and an entry here. ----
const STAGES: [&Stage; 12] =
    [&FORMAT, &CLIPPY, &BUILD, &TEST, &SIMULATION, &DOC, &LICENCES, &BINDINGS, &ASAN, &LOOM, &FUZZ, &BENCH];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Skip these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = names())]
    skip: Vec<String>,
    /// Run only these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',', value_parser = names(), conflicts_with = "skip")]
    only: Vec<String>,
    /// Time limit for all stages together; each stage has a limit of its own as well
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit_s: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let wanted = |stage: &&&Stage| {
        let named = |list: &[String]| list.iter().any(|name| name == stage.name);
        !named(&arguments.skip) && (arguments.only.is_empty() || named(&arguments.only))
    };
    let stages: Vec<&Stage> = STAGES.iter().filter(wanted).copied().collect();
    run_all(&stages, Duration::from_secs(arguments.limit_s), OnFailure::Continue)
}

fn names() -> Vec<&'static str> {
    STAGES.iter().map(|stage| stage.name).collect()
}
