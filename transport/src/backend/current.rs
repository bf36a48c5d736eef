//! The link that a connection uses: the backend's, and after its end a link that fails every operation.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Caps, Link, LinkStats, Op, Progress, SmallSend, WaitSource};
use crate::error::Error;

/// The link of one connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CurrentLink(Arc<ArcSwap<Arc<dyn Link>>>);

impl CurrentLink {
    pub(crate) fn new(link: Arc<dyn Link>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(link)))
    }

    /// Returns the link as it is now. What the caller holds stays open until it is dropped, so never hold it
    /// across an await.
    pub(crate) fn load(&self) -> impl Deref<Target = Arc<Arc<dyn Link>>> {
        self.0.load()
    }

    /// Drops a link that has ended, with its descriptors and memory. Later operations fail with `why`. The
    /// link's figures stay readable.
    pub(crate) fn release(&self, why: Error) {
        let link = self.load();
        let ended = EndedLink { caps: link.caps(), stats: link.stats(), notes: link.notes(), why };
        self.0.store(Arc::new(Arc::new(ended)));
    }
}

/// What is left of a link that has ended.
#[derive(Debug)]
struct EndedLink {
    caps: Caps,
    stats: LinkStats,
    notes: Vec<String>,
    why: Error,
}

impl Link for EndedLink {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn submit(&self, op: Op) {
        op.fail(self.why.clone());
    }

    fn copy(&self, small: SmallSend) -> Option<SmallSend> {
        Some(small)
    }

    fn progress(&self) -> Progress {
        Progress::Idle
    }

    fn source(&self) -> Option<WaitSource<'_>> {
        None
    }

    fn end(&self, _: Error) {}

    fn stats(&self) -> LinkStats {
        self.stats
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}
