//! How somebody ends a command: by Ctrl-C, or by a termination.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// What is running gets this long to stop.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(2);

/// What a command ends with that is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// That was its end: exit code 0.
    Done,
    /// It had more to do: exit code 130.
    Interrupted,
}

/// Tells a command that it is to end. Clones tell the same.
#[derive(Clone, Debug)]
pub(crate) struct Ending(watch::Receiver<Option<Outcome>>);

impl Ending {
    /// Watches from a thread of its own, which a spinning wait does not hold up. Both signals are handled even where their
    /// default is to end the process: the first process of a PID namespace, as of a container, has no such default.
    ///
    /// For a command that runs until it is told to end, a termination is success.
    pub(crate) fn watch(runs_until_told: bool) -> Result<Self, Failure> {
        let wrong = |error| Failure::run(format!("the thread that watches for Ctrl-C: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(wrong)?;
        // From here on, before anything is promised, the signals are ours.
        let (mut interruptions, mut terminations) = {
            let _context = runtime.enter();
            (signal(SignalKind::interrupt()).map_err(wrong)?, signal(SignalKind::terminate()).map_err(wrong)?)
        };
        let (tell, told) = watch::channel(None);
        let watching = async move {
            let outcome = next(&mut interruptions, &mut terminations, runs_until_told).await;
            tell.send_replace(Some(outcome));
            // Who asks twice does not want to wait.
            let again = next(&mut interruptions, &mut terminations, runs_until_told);
            let _ = tokio::time::timeout(STOP_WITHIN, again).await;
            std::process::exit(if outcome == Outcome::Done { 0 } else { 130 })
        };
        let watch = move || runtime.block_on(watching);
        std::thread::Builder::new().name("ctrl-c".to_owned()).spawn(watch).map_err(wrong)?;
        Ok(Self(told))
    }

    /// Waits until somebody ends the command, and gives what it ends with.
    pub(crate) async fn outcome(&self) -> Result<(), Failure> {
        let mut told = self.0.clone();
        match told.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Outcome::Done)) => Ok(()),
            Ok(_) => Err(Failure::Interrupted),
            // Only the end of the process ends the thread that watches.
            Err(_) => std::future::pending().await,
        }
    }
}

async fn next(interruptions: &mut Signal, terminations: &mut Signal, runs_until_told: bool) -> Outcome {
    tokio::select! {
        _ = terminations.recv() => if runs_until_told { Outcome::Done } else { Outcome::Interrupted },
        _ = interruptions.recv() => Outcome::Interrupted,
    }
}
