//! `--wait-for`: retries while a peer is not up yet.

use std::time::{Duration, Instant};

use towline::ErrorKind;

use crate::data::units::parse_seconds;
use crate::failure::Failure;
use crate::terminal::print::say;

/// The first pause between two attempts; each is twice as long as the one before, up to a second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long to try to connect.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct WaitFor {
    /// Seconds to wait for a peer that is not up yet: retry while nothing listens there, the name is unknown
    /// or no answer comes. By default one attempt
    #[arg(long, value_name = "S", value_parser = parse_seconds, help_heading = "The other end")]
    wait_for: Option<Duration>,
}

impl WaitFor {
    pub(crate) fn is_asked_for(self) -> bool {
        self.wait_for.is_some()
    }

    /// Calls `connect` until it succeeds, fails for another reason, or the time is over. `why` returns the
    /// transport's error within an error.
    pub(crate) async fn connect<T, E: Into<Failure>>(
        self,
        connect: impl AsyncFn() -> Result<T, E>,
        why: impl Fn(&E) -> Option<towline::Error>,
    ) -> Result<T, Failure> {
        let (begin, mut pause) = (Instant::now(), PAUSE_MIN);
        let mut is_reported = false;
        loop {
            let error = match connect().await {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            let (Some(limit), Some(reason)) = (self.wait_for, why(&error).filter(is_not_up_yet)) else {
                return Err(error.into());
            };
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let waited = format!("--wait-for {}", limit.as_secs_f64());
                return Err(error.into().during(waited));
            }
            if !is_reported {
                say(format_args!("waiting for the peer, up to {} s: {reason}", limit.as_secs_f64()));
                is_reported = true;
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }
}

fn is_not_up_yet(error: &towline::Error) -> bool {
    matches!(error.kind(), ErrorKind::Refused | ErrorKind::Unavailable | ErrorKind::TimedOut)
}
