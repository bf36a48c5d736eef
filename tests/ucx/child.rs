//! A claim in a process of its own: this program once more.

use std::env;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use crate::libraries::{BOTH, Installed};

/// A name, and what panics if it does not hold. What is no claim about a UCX gets the older one, or none.
pub(crate) type Claim = (&'static str, fn(&Installed));

/// Names the claim, and makes a process a child.
const CLAIM: &str = "TOWLINE_UCX_CLAIM";
/// Its `libucp`.
const LIBUCP: &str = "TOWLINE_UCX_LIBRARY";
/// The longest that a claim may take; two copies of UCX hang.
const CLAIM_TIME: Duration = Duration::from_secs(60);

/// This process is a child.
pub(crate) fn run_if_asked(mut claims: impl Iterator<Item = Claim>) -> Option<ExitCode> {
    let name = env::var(CLAIM).ok()?;
    let libucp = env::var_os(LIBUCP).unwrap_or_default();
    let installed =
        BOTH.iter().filter_map(|(_, find)| find().ok()).find(|installed| installed.libucp == libucp);
    let (_, check) = claims.find(|(claim, _)| *claim == name).unwrap();
    check(&installed.unwrap_or_default());
    Some(ExitCode::SUCCESS)
}

/// Whether a claim holds, as a child finds it.
pub(crate) fn hold(claim: &str, installed: Option<&Installed>) -> Result<(), Failed> {
    let mut command = Command::new(env::current_exe()?);
    // It would print what is tried and refused.
    command.env(CLAIM, claim).env_remove(LIBUCP).env("UCX_LOG_LEVEL", "fatal");
    command.envs(installed.map(|installed| (LIBUCP, &installed.libucp)));
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
