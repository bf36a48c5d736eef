//! Messages that follow one another without a wait between them leave together, at the latest when their task yields.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::core::Core;

impl Core {
    /// Whether the message being sent follows another without a wait between them, on a link and from a task that can make
    /// use of it.
    pub(crate) fn is_burst(&self) -> bool {
        let polls = self.waiters.polls();
        let follows = self.polls_at_send.load(Ordering::Relaxed) == polls;
        self.polls_at_send.store(polls, Ordering::Relaxed);
        follows
            && self.link.source().is_some()
            && (self.flushing.load(Ordering::Relaxed) || Handle::try_current().is_ok())
    }

    /// Polls the link when the caller's task has yielded.
    pub(super) fn flush_soon(self: &Arc<Self>) {
        // The task may compute; its runtime may end, or stand idle with a flush that it never runs.
        self.leave_for_later();
        if self.flushing.load(Ordering::Acquire) || self.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let flush = Flush(Arc::downgrade(self));
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { flush.run() });
        }
    }
}

/// A flush to come; the next may be asked for once this is run or dropped.
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
