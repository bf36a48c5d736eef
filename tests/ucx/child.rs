//! A claim in a process of its own: this program once more.

use std::env;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use towline_tests::libraries::{BOTH, Installed};

/// A claim about a UCX.
pub(crate) type Check = fn(&Installed);

/// What panics if it does not hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    OfEach(Check),
    OfNone(fn()),
}

/// Names the claim, and makes a process a child.
const CLAIM: &str = "TOWLINE_UCX_CLAIM";
/// Names the UCX that it is about.
const WHICH: &str = "TOWLINE_UCX_WHICH";
/// The longest that a claim may take; two copies of UCX hang.
const CLAIM_TIME: Duration = Duration::from_secs(60);

/// This process is a child.
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

/// Whether a claim holds, as a child finds it.
pub(crate) fn hold(claim: &str, which: &str) -> Result<(), Failed> {
    let mut command = Command::new(env::current_exe()?);
    // It would print what is tried and refused.
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
                return Err(format!("{claim}: not decided within {CLAIM_TIME:?}").into());
            }
        }
    }
}
