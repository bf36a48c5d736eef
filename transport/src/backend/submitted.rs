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
/// modify the same atomic in one step, so the second to do so sees everything that the first did before.
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

    /// Takes all operations, oldest first, with the poll lock held. May miss those whose `push` has not returned.
    pub(super) fn take(&self) -> VecDeque<Op> {
        if !self.any.load(Ordering::Acquire) {
            return VecDeque::new();
        }
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.ops())
    }

    /// Returns true if there are any. Called right after releasing the poll lock.
    ///
    /// Writes the value that it reads: even a moment of `false` would let the next holder of the poll lock
    /// perform a newer operation before those in the queue.
    pub(super) fn has_any(&self) -> bool {
        self.any.fetch_or(false, Ordering::AcqRel)
    }

    fn ops(&self) -> MutexGuard<'_, VecDeque<Op>> {
        self.ops.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::transfer::message::Delivery;

    const OPS: u64 = 300_000;

    /// Follows `Streamed::with_poll_lock`: performs under the lock, or leaves the operation to the holder.
    fn perform(performed: &Mutex<Vec<u64>>, submitted: &Submitted, mut op: Option<Op>) {
        loop {
            let Some(mut ids) = performed.try_lock() else {
                let Some(op) = op.take() else { return };
                submitted.push(op);
                continue;
            };
            for op in submitted.take().into_iter().chain(op.take()) {
                let Op::Ack { id, .. } = op else { unreachable!("only these are submitted") };
                ids.push(id);
            }
            drop(ids);
            if !submitted.has_any() {
                return;
            }
        }
    }

    #[test]
    fn operations_of_one_thread_keep_their_order_beside_a_poller() {
        let (performed, submitted) = (Mutex::new(Vec::new()), Submitted::default());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    perform(&performed, &submitted, None);
                }
            });
            for id in 0..OPS {
                let op = Op::Ack { id, delivery: Delivery::Delivered, ack_now: false };
                perform(&performed, &submitted, Some(op));
            }
            done.store(true, Ordering::Release);
        });
        perform(&performed, &submitted, None);
        let performed = performed.into_inner();
        let overtaken = performed.windows(2).find(|pair| pair[1] != pair[0] + 1);
        assert_eq!((performed.len() as u64, overtaken), (OPS, None));
    }
}
