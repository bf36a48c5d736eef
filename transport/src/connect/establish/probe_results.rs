//! The results of path probes between two hosts, kept for the lifetime of the endpoint.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::sync::Notify;

use super::path_probe::ProbeSpeeds;
use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;

/// A failed path probe is not repeated for so long.
const FAILURE_LIFETIME: Duration = Duration::from_secs(60);
/// The most paths that are recorded. A peer may claim to be on any host.
const PATHS_MAX: usize = 1024;

/// Identifies a probed path: the backend, the peer's host, and its IP address. Another address may be in
/// another network.
pub(super) type ProbeKey = (&'static str, [u8; 16], Option<IpAddr>);

/// The probe result of each path.
#[derive(Debug, Default)]
pub(crate) struct ProbeResults {
    known: Mutex<HashMap<ProbeKey, ProbeState>>,
    changed: Notify,
}

#[derive(Debug)]
enum ProbeState {
    InProgress,
    Measured(ProbeSpeeds),
    Failed { why: String, until: Duration },
}

/// The probe result that one connection gets for a path.
pub(super) enum ProbeResult<'a> {
    Measured(ProbeSpeeds),
    Failed(String),
    /// The path has not been probed: the holder of the permit probes it.
    Unprobed(ProbePermit<'a>),
}

/// The right to probe a path. Other connections wait for the result. Dropping it without a result passes the
/// right on.
pub(super) struct ProbePermit<'a> {
    probe_results: &'a ProbeResults,
    key: ProbeKey,
}

impl ProbeResults {
    /// Returns the result of `key`. Waits while another connection probes the path, until `by` at most.
    pub(super) async fn of(
        &self,
        key: ProbeKey,
        by: Duration,
        environment: &dyn Environment,
    ) -> ProbeResult<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.lookup(key, environment.now()) {
                Some(probe_result) => return probe_result,
                None if within(environment, by, changed).await.is_some() => {}
                None => {
                    return ProbeResult::Failed(
                        "another connection's path probe of it is not over yet".into(),
                    );
                }
            }
        }
    }

    fn lookup(&self, key: ProbeKey, now: Duration) -> Option<ProbeResult<'_>> {
        let mut known = self.known();
        match known.get(&key) {
            Some(ProbeState::InProgress) => return None,
            Some(ProbeState::Measured(speeds)) => return Some(ProbeResult::Measured(*speeds)),
            Some(ProbeState::Failed { why, until }) if now < *until => {
                return Some(ProbeResult::Failed(format!("{why} (less than a minute ago)")));
            }
            Some(ProbeState::Failed { .. }) | None => {}
        }
        if known.len() >= PATHS_MAX {
            known.retain(|_, known| matches!(known, ProbeState::InProgress));
        }
        known.insert(key, ProbeState::InProgress);
        Some(ProbeResult::Unprobed(ProbePermit { probe_results: self, key }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ProbeKey, ProbeState>> {
        self.known.lock()
    }
}

impl ProbePermit<'_> {
    /// Records the result of the probe.
    pub(super) fn record(self, outcome: &Result<ProbeSpeeds, String>, now: Duration) {
        let known = match outcome {
            Ok(speeds) => ProbeState::Measured(*speeds),
            Err(why) => ProbeState::Failed { why: why.clone(), until: now + FAILURE_LIFETIME },
        };
        self.probe_results.known().insert(self.key, known);
    }
}

impl Drop for ProbePermit<'_> {
    fn drop(&mut self) {
        let mut known = self.probe_results.known();
        if matches!(known.get(&self.key), Some(ProbeState::InProgress)) {
            known.remove(&self.key);
        }
        drop(known);
        self.probe_results.changed.notify_waiters();
    }
}
