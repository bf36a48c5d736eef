//! What path probes between two hosts came to: remembered for as long as the endpoint lives.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::sync::Notify;

use super::path_probe::Figures;
use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;

/// A path probe that came to nothing is not repeated for so long.
const NOTHING_TIME: Duration = Duration::from_secs(60);
/// Peers may say that they are of any host.
const KNOWN_MAX: usize = 1024;

/// A backend, the peer's host, and its address there: another one may lie at another network.
pub(super) type Way = (&'static str, [u8; 16], Option<IpAddr>);

/// What is known of each way.
#[derive(Debug, Default)]
pub(crate) struct ProbeResults {
    known: Mutex<HashMap<Way, Known>>,
    changed: Notify,
}

#[derive(Debug)]
enum Known {
    UnderWay,
    Figures(Figures),
    Nothing { why: String, until: Duration },
}

/// What one connection learns of a way.
pub(super) enum ProbeResult<'a> {
    Figures(Figures),
    Nothing(String),
    /// Nobody has tried it: it is this connection's turn.
    Untried(ProbePermit<'a>),
}

/// Whoever has it makes the path probe, and others wait for what it comes to; dropped, it is another's turn.
pub(super) struct ProbePermit<'a> {
    probe_results: &'a ProbeResults,
    way: Way,
}

impl ProbeResults {
    /// What is known, once no other connection is about to find out, or at `by`.
    pub(super) async fn of(&self, way: Way, by: Duration, environment: &dyn Environment) -> ProbeResult<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.look(way, environment.now()) {
                Some(probe_result) => return probe_result,
                None if within(environment, by, changed).await.is_some() => {}
                None => {
                    return ProbeResult::Nothing(
                        "another connection's path probe of it is not over yet".into(),
                    );
                }
            }
        }
    }

    fn look(&self, way: Way, now: Duration) -> Option<ProbeResult<'_>> {
        let mut known = self.known();
        match known.get(&way) {
            Some(Known::UnderWay) => return None,
            Some(Known::Figures(figures)) => return Some(ProbeResult::Figures(*figures)),
            Some(Known::Nothing { why, until }) if now < *until => {
                return Some(ProbeResult::Nothing(format!("{why} (less than a minute ago)")));
            }
            Some(Known::Nothing { .. }) | None => {}
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| matches!(known, Known::UnderWay));
        }
        known.insert(way, Known::UnderWay);
        Some(ProbeResult::Untried(ProbePermit { probe_results: self, way }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Way, Known>> {
        self.known.lock()
    }
}

impl ProbePermit<'_> {
    /// Remembers what the path probe came to.
    pub(super) fn record(self, outcome: &Result<Figures, String>, now: Duration) {
        let known = match outcome {
            Ok(figures) => Known::Figures(*figures),
            Err(why) => Known::Nothing { why: why.clone(), until: now + NOTHING_TIME },
        };
        self.probe_results.known().insert(self.way, known);
    }
}

impl Drop for ProbePermit<'_> {
    fn drop(&mut self) {
        let mut known = self.probe_results.known();
        if matches!(known.get(&self.way), Some(Known::UnderWay)) {
            known.remove(&self.way);
        }
        drop(known);
        self.probe_results.changed.notify_waiters();
    }
}
