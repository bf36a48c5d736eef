//! What trials between two hosts came to: remembered for as long as the endpoint lives.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::trial::Figures;
use crate::environment::{Environment, within};

/// A trial that came to nothing is not repeated for so long.
const NOTHING_TIME: Duration = Duration::from_secs(60);
/// Peers may say that they are of any host.
const KNOWN_MAX: usize = 1024;

/// A backend, the peer's host, and its address there: another one may lie at another network.
pub(super) type Way = (&'static str, [u8; 16], Option<IpAddr>);

/// What is known of each way.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
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
pub(super) enum Verdict<'a> {
    Figures(Figures),
    Nothing(String),
    /// Nobody has tried it: it is this connection's turn.
    Untried(Turn<'a>),
}

/// Whoever has it makes the trial, and others wait for what it comes to; dropped, it is another's turn.
pub(super) struct Turn<'a> {
    verdicts: &'a Verdicts,
    way: Way,
}

impl Verdicts {
    /// What is known, once no other connection is about to find out, or at `by`.
    pub(super) async fn of(&self, way: Way, by: Duration, environment: &dyn Environment) -> Verdict<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.look(way, environment.now()) {
                Some(verdict) => return verdict,
                None if within(environment, by, changed).await.is_some() => {}
                None => return Verdict::Nothing("another connection's trial of it is not over yet".into()),
            }
        }
    }

    fn look(&self, way: Way, now: Duration) -> Option<Verdict<'_>> {
        let mut known = self.known();
        match known.get(&way) {
            Some(Known::UnderWay) => return None,
            Some(Known::Figures(figures)) => return Some(Verdict::Figures(*figures)),
            Some(Known::Nothing { why, until }) if now < *until => {
                return Some(Verdict::Nothing(format!("{why} (less than a minute ago)")));
            }
            Some(Known::Nothing { .. }) | None => {}
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| matches!(known, Known::UnderWay));
        }
        known.insert(way, Known::UnderWay);
        Some(Verdict::Untried(Turn { verdicts: self, way }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Way, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Remembers what the trial came to.
    pub(super) fn settle(self, outcome: &Result<Figures, String>, now: Duration) {
        let known = match outcome {
            Ok(figures) => Known::Figures(*figures),
            Err(why) => Known::Nothing { why: why.clone(), until: now + NOTHING_TIME },
        };
        self.verdicts.known().insert(self.way, known);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut known = self.verdicts.known();
        if matches!(known.get(&self.way), Some(Known::UnderWay)) {
            known.remove(&self.way);
        }
        drop(known);
        self.verdicts.changed.notify_waiters();
    }
}
