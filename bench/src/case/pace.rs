//! How long a case is measured.

use std::time::Duration;

/// How long the parts of one repeat take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

impl Pace {
    /// How long each ceiling is measured.
    pub(crate) fn ceiling(self) -> Duration {
        self.duration / 3
    }
}
