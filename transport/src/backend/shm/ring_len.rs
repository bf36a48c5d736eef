//! The length of a link's ring: long for the first links of a process, short for the others.
//!
//! A ring's pages are there from the start, in both processes. Hundreds of long rings would take hundreds of
//! megabytes for links that are mostly idle.

use std::sync::Arc;

use crate::platform::process::PerProcess;

/// It fits in the caches of both ends.
pub(super) const LONG: usize = 256 << 10;
const SHORT: usize = 32 << 10;
/// The number of links of a process with long rings.
const LONG_RINGS_MAX: usize = 64;

/// Each handle is a link with a long ring.
static LONG_RINGS: PerProcess<Arc<()>> = PerProcess::new(Arc::default);

/// A ring's length, reserved for the life of its link.
#[derive(Debug)]
pub(super) struct RingLen {
    long: Option<Arc<()>>,
}

impl RingLen {
    /// Reserves a long ring if the process has few. Concurrent callers may get one more each.
    pub(super) fn reserve() -> Self {
        let long = LONG_RINGS.get();
        Self { long: (Arc::strong_count(long) <= LONG_RINGS_MAX).then(|| Arc::clone(long)) }
    }

    /// Returns the length in bytes.
    pub(super) fn bytes(&self) -> usize {
        if self.long.is_some() { LONG } else { SHORT }
    }
}
