//! A stage is a named piece of work with a time limit. A run prints the time of each stage and a table at the
//! end.

use std::time::{Duration, Instant};

use crate::process::Outcome;

/// Longer than any run started by a person, who can interrupt it.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Returns the deadline of such a run.
pub(crate) fn no_limit() -> Instant {
    Instant::now() + NO_LIMIT
}

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) limit: Duration,
    /// Does the work. Gives up at the deadline.
    pub(crate) run: fn(Instant) -> Outcome,
}

impl Stage {
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.limit
    }
}

/// What a run does when a stage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    Stop,
    Continue,
}

/// Runs the stages in order, within `total` altogether.
pub(crate) fn run_all(stages: &[&Stage], total: Duration, on_failure: OnFailure) -> Outcome {
    let started = Instant::now();
    let end = started + total;
    let mut table = Vec::new();
    let mut failed = Vec::new();
    for stage in stages {
        eprintln!("stage {} …", stage.name);
        let stage_started = Instant::now();
        let outcome = (stage.run)(stage.deadline().min(end));
        let seconds = stage_started.elapsed().as_secs_f64();
        let verdict = if outcome.is_ok() { "" } else { ", FAILED" };
        println!("stage {}: {seconds:.1} s{verdict}", stage.name);
        table.push(format!("  {:<10} {seconds:>7.1} s{verdict}", stage.name));
        if let Err(message) = outcome {
            eprintln!("stage {}: {message}", stage.name);
            failed.push(stage.name);
            if on_failure == OnFailure::Stop {
                break;
            }
        }
    }
    println!("stages:\n{}", table.join("\n"));
    println!("  {:<10} {:>7.1} s", "total", started.elapsed().as_secs_f64());
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Stage = Stage { name: "good", limit: Duration::from_secs(1), run: |_| Ok(()) };
    const BAD: Stage = Stage { name: "bad", limit: Duration::from_secs(1), run: |_| Err("no".into()) };
    const LATE: Stage = Stage {
        name: "late",
        limit: Duration::from_secs(1),
        run: |deadline| if deadline <= Instant::now() { Err("no time left".into()) } else { Ok(()) },
    };

    #[test]
    fn one_failed_stage_fails_the_run() {
        let minute = Duration::from_secs(60);
        assert_eq!(run_all(&[&GOOD, &LATE], minute, OnFailure::Continue), Ok(()));
        let both = run_all(&[&BAD, &GOOD, &BAD], minute, OnFailure::Continue);
        assert_eq!(both, Err("failed: bad, bad".into()));
        assert_eq!(run_all(&[&BAD, &BAD], minute, OnFailure::Stop), Err("failed: bad".into()));
    }

    #[test]
    fn the_total_cuts_a_stage_short() {
        assert!(run_all(&[&LATE], Duration::ZERO, OnFailure::Continue).is_err());
    }
}
