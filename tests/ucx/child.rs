//! Runs each claim in a process of its own, by starting this program again.

use std::env;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use towline_tests::libraries::{BOTH, Installed};

/// A claim about one installed UCX.
pub(crate) type Check = fn(&Installed);

/// A function that panics if the claim does not hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    OfEach(Check),
    OfNone(fn()),
}

/// Names the claim. A process with this variable is a child.
const CLAIM: &str = "TOWLINE_UCX_CLAIM";
/// Names the UCX of the claim.
const WHICH: &str = "TOWLINE_UCX_WHICH";
/// The time limit of a claim: two copies of UCX hang.
const CLAIM_TIME: Duration = Duration::from_secs(60);

/// Runs the claim if this process is a child.
pub(crate) fn run_if_asked(mut claims: impl Iterator<Item = (&'static str, Claim)>) -> Option<ExitCode> {
    let name = env::var(CLAIM).ok()?;
    match claims.find(|(claim, _)| *claim == name).unwrap().1 {
        Claim::OfNone(check) => check(),
        Claim::OfEach(check) => {
            let which = env::var(WHICH).unwrap();
            let (_, find) = BOTH.into_iter().find(|(name, _)| *name == which).unwrap();
            check(&find().unwrap());
        }
    }
    Some(ExitCode::SUCCESS)
}

/// Checks a claim in a child process.
pub(crate) fn hold(claim: &str, which: &str) -> Result<(), Failed> {
    let mut command = Command::new(env::current_exe()?);
    // UCX would log the refused attempts.
    command.env(CLAIM, claim).env(WHICH, which).env("UCX_LOG_LEVEL", "fatal");
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let deadline = Instant::now() + CLAIM_TIME;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{claim}: {status}").into()),
            None if Instant::now() < deadline => sleep(Duration::from_millis(5)),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(format!("{claim}: timed out after {CLAIM_TIME:?}").into());
            }
        }
    }
}
