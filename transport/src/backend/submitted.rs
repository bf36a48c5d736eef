//! Operations that wait for whoever has a link's poll lock.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Op;

use crate::platform::mutex::Mutex;

/// A queue that costs a look where nothing is in it.
///
/// The invariant: of one who adds an operation and then fails to get the poll lock, and one who lets the poll lock go and then asks
/// [`has_any`](Self::has_any), at least one sees the other. Both exchange the same word, so that the second of them
/// has seen all that the first did before.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    ops: Mutex<VecDeque<Op>>,
    any: AtomicBool,
}

impl Submitted {
    /// Adds one.
    pub(super) fn push(&self, op: Op) {
        self.ops().push_back(op);
        self.any.swap(true, Ordering::AcqRel);
    }

    /// All of them, oldest first. What is added meanwhile may be missed.
    pub(super) fn take(&self) -> VecDeque<Op> {
        if !self.any.load(Ordering::Acquire) {
            return VecDeque::new();
        }
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.ops())
    }

    /// Whether there are any, for whoever has just let the poll lock go.
    pub(super) fn has_any(&self) -> bool {
        let any = self.any.swap(false, Ordering::AcqRel);
        if any {
            self.any.store(true, Ordering::Release);
        }
        any
    }

    fn ops(&self) -> MutexGuard<'_, VecDeque<Op>> {
        self.ops.lock()
    }
}
