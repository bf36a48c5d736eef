//! Coalescing: messages sent without a wait between them leave together, at the latest when their task
//! yields.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::core::Core;

impl Core {
    /// Returns whether this message follows another without a wait between them, and whether the link and the
    /// caller's task can coalesce it.
    pub(crate) fn is_burst(&self) -> bool {
        let polls = self.waiters.polls();
        let follows = self.polls_at_send.load(Ordering::Relaxed) == polls;
        self.polls_at_send.store(polls, Ordering::Relaxed);
        follows
            && self.link.load().source().is_some()
            && (self.flushing.load(Ordering::Relaxed) || Handle::try_current().is_ok())
    }

    /// Polls the link once the caller's task has yielded.
    pub(super) fn flush_on_yield(self: &Arc<Self>) {
        // The task may compute, and its runtime may end or idle with a flush that never runs. So the driver
        // polls as well.
        self.poll_by_next_sweep();
        if self.flushing.load(Ordering::Acquire) || self.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let flush = Flush(Arc::downgrade(self));
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { flush.run() });
        }
    }
}

/// A scheduled flush. The next one may be scheduled once this one has run or is dropped.
struct Flush(Weak<Core>);

impl Flush {
    fn run(self) {
        if let Some(core) = self.0.upgrade() {
            core.waiters.poll_link();
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.flushing.store(false, Ordering::Release);
        }
    }
}
