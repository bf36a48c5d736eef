//! The stall timeout fails tasks that nothing can move: they wait for a worker to join, or for memory of
//! workers that are full of results that clients keep.

use std::time::Duration;

use super::state::SchedulerState;
use super::task::{Index, QueueId, Stage};
use crate::error::ErrorKind;
use crate::protocol::Attempt;

/// The default stall timeout.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct StallTimeout {
    limit: Duration,
    stall: Option<Stall>,
}

/// Tasks are ready, and all workers are idle.
#[derive(Clone, Copy, Debug)]
struct Stall {
    since: Duration,
    /// The last attempt and the last submitted task when the stall began.
    attempt: Attempt,
    number: u64,
}

impl Default for StallTimeout {
    fn default() -> Self {
        Self { limit: STALL_TIMEOUT, stall: None }
    }
}

impl SchedulerState {
    pub(crate) fn set_stall_timeout(&mut self, limit: Duration) {
        self.stall_timeout.limit = limit;
    }

    /// Sets the time, on a clock with any origin, and checks for a stall. A stalled task fails after the
    /// limit, and at the latest after twice that. Call it regularly, and take the actions after it.
    pub(crate) fn tick(&mut self, now: Duration) {
        let is_idle = self.workers.values().all(|worker| worker.sent.is_empty());
        // A task with inputs waits for a worker that is present, and proceeds without help.
        if !is_idle || self.roots.is_empty() && self.suspects.is_empty() {
            self.stall_timeout.stall = None;
            return;
        }
        let begun = Stall { since: now, attempt: self.last_attempt, number: self.next_number };
        let stall = *self.stall_timeout.stall.get_or_insert(begun);
        if stall.attempt != self.last_attempt {
            self.stall_timeout.stall = Some(begun);
            return;
        }
        self.free_copies();
        if now.saturating_sub(stall.since) < self.stall_timeout.limit {
            return;
        }
        self.stall_timeout.stall = Some(begun);
        let seconds = self.stall_timeout.limit.as_secs_f32();
        let detail = match self.workers.len() {
            0 => format!("no worker joined for {seconds} s"),
            _ => format!(
                "the memory of every worker is full of results that are kept, and none was released for {seconds} s"
            ),
        };
        for index in self.waiting_since(stall.number) {
            // It may have failed together with an earlier one.
            if self.tasks.get(index).is_some_and(|task| matches!(task.stage, Stage::Ready { .. })) {
                self.fail_with(index, ErrorKind::TimedOut, &detail);
            }
        }
    }

    /// Returns the stalled tasks up to that submission number.
    fn waiting_since(&self, number: u64) -> Vec<Index> {
        let is_meant = |index: &Index| {
            let task = &self.tasks[*index];
            let is_anywhere =
                matches!(task.stage, Stage::Ready { queue_id: QueueId::Roots | QueueId::Suspects, .. });
            is_anywhere && task.priority.number <= number
        };
        self.tasks.indices().filter(is_meant).collect()
    }

    /// Frees the copies of a full worker that other workers have too.
    fn free_copies(&mut self) {
        let full = self.workers.iter().filter(|(_, worker)| worker.is_full());
        let copies: Vec<_> =
            full.flat_map(|(id, worker)| worker.holds.iter().map(|index| (*index, *id))).collect();
        for (index, id) in copies {
            if self.tasks[index].holders.len() > 1 {
                self.free_copy(index, id);
            }
        }
    }
}
