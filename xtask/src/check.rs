//! `cargo xtask check`: the stages that must pass before a commit, cheapest first.

use crate::process::Outcome;
use crate::stage::{NO_LIMIT, OnFailure, Stage, run_all};
use crate::stages::{CLIPPY, DOC, EXAMPLES, FORMAT, TIDY, UNLIMITED_TEST};

const STAGES: [&Stage; 6] = [&FORMAT, &TIDY, &CLIPPY, &UNLIMITED_TEST, &DOC, &EXAMPLES];

pub(crate) fn run() -> Outcome {
    run_all(&STAGES, NO_LIMIT, OnFailure::Stop)
}
