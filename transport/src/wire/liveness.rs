//! Liveness: when to ping a silent peer, and when to declare it lost.

use std::time::Duration;

/// A peer is lost after this many heartbeats of silence.
const MISSED_MAX: u32 = 3;

/// The action that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Send a ping.
    Ping,
    /// Declare the peer lost, after this much silence.
    Lost(Duration),
}

/// The liveness state of one peer.
#[derive(Debug)]
pub(crate) struct Liveness {
    heartbeat: Duration,
    last_received: Duration,
    last_ping: Duration,
    unanswered: u32,
}

impl Liveness {
    /// Starts with activity at `now`. The peer is pinged after every `heartbeat` of silence.
    pub(crate) fn new(heartbeat: Duration, now: Duration) -> Self {
        Self { heartbeat, last_received: now, last_ping: now, unanswered: 0 }
    }

    /// Records that something arrived from the peer.
    pub(crate) fn record_activity(&mut self, now: Duration) {
        self.last_received = now;
        self.unanswered = 0;
    }

    /// Returns whether anything can be due at `now`.
    pub(crate) fn is_silent(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_received) >= self.heartbeat
    }

    /// Returns what is due at `now`. All received data must have been recorded before. This process may have
    /// been suspended itself, so a long silence counts only after two unanswered pings.
    pub(crate) fn due(&mut self, now: Duration) -> Due {
        let silent = now.saturating_sub(self.last_received);
        if silent >= self.heartbeat * MISSED_MAX && self.unanswered >= MISSED_MAX - 1 {
            return Due::Lost(silent);
        }
        if silent >= self.heartbeat
            && (self.unanswered == 0 || now.saturating_sub(self.last_ping) >= self.heartbeat)
        {
            self.last_ping = now;
            self.unanswered += 1;
            return Due::Ping;
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(3);

    #[test]
    fn a_silent_peer_is_lost_within_ten_seconds() {
        let mut liveness = Liveness::new(HEARTBEAT, Duration::ZERO);
        let lost = (0..40)
            .map(|quarter| HEARTBEAT / 4 * quarter)
            .find(|now| matches!(liveness.due(*now), Due::Lost(_)));
        assert_eq!(lost, Some(Duration::from_secs(9)));
    }

    #[test]
    fn a_peer_that_answers_is_never_lost() {
        let mut liveness = Liveness::new(HEARTBEAT, Duration::ZERO);
        for quarter in 0..1000 {
            let now = HEARTBEAT / 4 * quarter;
            match liveness.due(now) {
                Due::Ping => liveness.record_activity(now + Duration::from_millis(1)),
                Due::Lost(silent) => panic!("lost after {silent:?}"),
                Due::Nothing => {}
            }
        }
    }

    #[test]
    fn a_long_local_sleep_gives_the_peer_time_to_answer() {
        let mut liveness = Liveness::new(HEARTBEAT, Duration::ZERO);
        let woke = Duration::from_secs(3600);
        assert_eq!(liveness.due(woke), Due::Ping);
        assert_eq!(liveness.due(woke + HEARTBEAT / 4), Due::Nothing);
        liveness.record_activity(woke + HEARTBEAT / 2);
        assert_eq!(liveness.due(woke + HEARTBEAT), Due::Nothing);
    }
}
