//! How long a case is measured.

use std::time::Duration;

/// The durations of one repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

impl Pace {
    /// Returns how long each ceiling is measured.
    pub(crate) fn ceiling(self) -> Duration {
        self.duration / 3
    }
}
