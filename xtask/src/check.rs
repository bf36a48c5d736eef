//! `cargo xtask check`: what must pass before a commit, cheapest first.

use std::time::Duration;

use crate::process::Outcome;
use crate::stage::{OnFailure, Stage, run_all};
use crate::stages::{CLIPPY, DOC, EXAMPLES, FORMAT, TEST_AS_IS, TIDY};

const STAGES: [&Stage; 6] = [&FORMAT, &TIDY, &CLIPPY, &TEST_AS_IS, &DOC, &EXAMPLES];

pub(crate) fn run() -> Outcome {
    run_all(&STAGES, Duration::from_secs(60 * 60), OnFailure::Stop)
}
