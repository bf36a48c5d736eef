//! Operations submitted while another thread holds a link's poll lock.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Op;

use crate::platform::mutex::Mutex;

/// A queue that costs one atomic load while it is empty.
///
/// The invariant: thread A pushes an operation and then fails to get the poll lock. Thread B releases the
/// poll lock and then calls [`has_any`](Self::has_any). At least one of the two sees the other's action. Both
/// swap the same atomic, so the second to do so sees everything that the first did before.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    ops: Mutex<VecDeque<Op>>,
    any: AtomicBool,
}

impl Submitted {
    /// Adds an operation.
    pub(super) fn push(&self, op: Op) {
        self.ops().push_back(op);
        self.any.swap(true, Ordering::AcqRel);
    }

    /// Takes all operations, oldest first. May miss those added concurrently.
    pub(super) fn take(&self) -> VecDeque<Op> {
        if !self.any.load(Ordering::Acquire) {
            return VecDeque::new();
        }
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.ops())
    }

    /// Returns true if there are any. Called right after releasing the poll lock.
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
