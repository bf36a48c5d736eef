//! Invariants that hold after each `take_actions`. The simulation checks them.

use std::collections::{BTreeMap, BTreeSet};

use super::state::SchedulerState;
use super::task::{Index, Origin, QueueId, Stage, Task};
use crate::protocol::{ClientId, WorkerId};
use crate::stats::StageCounts;

/// An entry, for assertion messages.
#[derive(Debug)]
struct At<'a>(Index, &'a Task);

impl SchedulerState {
    /// # Panics
    /// If an invariant is violated.
    pub(crate) fn check(&self) {
        let mut waiters = BTreeMap::<Index, u32>::new();
        let mut stages = StageCounts::default();
        let mut client_bytes = BTreeMap::<ClientId, u64>::new();
        for (_, task) in self.all() {
            *task.stage.count(&mut stages) += 1;
            *client_bytes.entry(task.key.client()).or_default() += task.origin.task_bytes(task.inputs.len());
        }
        assert_eq!(self.tasks.stages(), stages);
        for (id, client) in &self.clients {
            assert_eq!(client.bytes, client_bytes.get(id).copied().unwrap_or(0), "bytes of client {id}");
        }
        let mut named = BTreeSet::new();
        for (_, task) in self.all() {
            for input in &task.inputs {
                named.insert(*input);
                *waiters.entry(*input).or_default() += u32::from(task.is_in_progress());
            }
        }
        for (index, task) in self.all() {
            let at = At(index, task);
            assert_eq!(task.waiters, waiters.get(&index).copied().unwrap_or(0), "waiters of {at:?}");
            assert_eq!(task.dependents.is_empty(), !named.contains(&index), "dependents of {at:?}");
            assert!(task.wanted || named.contains(&index), "no entry names {at:?}");
            assert!(!task.wanted || self.clients.contains_key(&task.key.client()), "no client wants {at:?}");
            self.check_stage(&at);
        }
        for (id, worker) in &self.workers {
            let sent = self.sent_to(*id, |task| !matches!(task.origin, Origin::Scattered));
            assert_eq!(worker.sent, sent, "sent to {id}");
            let bytes = sent.iter().map(|index| self.tasks[*index].assignment_bytes()).sum::<usize>();
            assert_eq!(worker.sent_bytes, bytes, "bytes sent to {id}");
            let expected = self.sent_to(*id, |task| matches!(task.origin, Origin::Scattered));
            assert_eq!(worker.expected, expected, "expected at {id}");
            let holds = self.all().filter(|(_, task)| task.holders.contains(id));
            assert_eq!(worker.holds, holds.clone().map(|(index, _)| index).collect(), "held by {id}");
            assert_eq!(worker.bytes, holds.map(|(_, task)| task.bytes).sum::<u64>(), "bytes at {id}");
            assert!(worker.suspect.is_none_or(|suspect| worker.sent.contains(&suspect)), "suspect of {id}");
            assert_eq!(worker.queue.micros(), self.micros_in(QueueId::Worker(*id)), "queue of {id}");
            assert_eq!(worker.queue.is_empty(), self.is_queue_empty(QueueId::Worker(*id)), "queue of {id}");
            assert!(worker.queue.is_empty() || !worker.sent.is_empty(), "{id} has nothing to do");
        }
        for (queue_id, queue) in [(QueueId::Roots, &self.roots), (QueueId::Suspects, &self.suspects)] {
            assert_eq!(queue.micros(), self.micros_in(queue_id), "{queue_id:?}");
            assert_eq!(queue.is_empty(), self.is_queue_empty(queue_id), "{queue_id:?}");
        }
    }

    fn check_stage(&self, at: &At<'_>) {
        let At(index, task) = *at;
        let input = |input: &Index| &self.tasks[*input].stage;
        let is_done = |index: &Index| matches!(input(index), Stage::Done);
        assert_eq!(!task.holders.is_empty(), matches!(task.stage, Stage::Done), "holders of {at:?}");
        assert!(task.holders.iter().all(|holder| self.workers.contains_key(holder)), "holders of {at:?}");
        match &task.stage {
            Stage::Released => assert!(!task.is_needed(), "needed, and not in progress: {at:?}"),
            Stage::Failed(_) => {}
            _ => assert!(task.is_needed(), "{at:?} is not needed"),
        }
        match &task.stage {
            Stage::Waiting { missing } => {
                let lacking = task.inputs.iter().filter(|input| !is_done(input)).count();
                assert!(*missing > 0 && *missing as usize == lacking, "missing inputs of {at:?}");
                let has_failed = task.inputs.iter().any(|index| matches!(input(index), Stage::Failed(_)));
                assert!(!has_failed, "an input failed, but not {at:?}");
            }
            Stage::Ready { queue_id, .. } => {
                assert!(task.inputs.iter().all(is_done), "ready without its inputs: {at:?}");
                let is_in_right_queue = match queue_id {
                    QueueId::Worker(id) => self.workers.contains_key(id),
                    QueueId::Roots => task.inputs.is_empty(),
                    QueueId::Suspects => task.is_suspect(),
                };
                assert!(is_in_right_queue, "in the wrong queue: {at:?}");
            }
            Stage::Sent { worker, .. } => {
                let entry = &self.workers[worker];
                assert!(entry.sent.contains(&index) != entry.expected.contains(&index), "not sent: {at:?}");
            }
            _ => {}
        }
    }

    fn all(&self) -> impl Iterator<Item = (Index, &Task)> + Clone {
        self.tasks.indices().map(|index| (index, &self.tasks[index]))
    }

    fn sent_to(&self, id: WorkerId, is_meant: impl Fn(&Task) -> bool) -> BTreeSet<Index> {
        let is_sent = |task: &Task| matches!(task.stage, Stage::Sent { worker, .. } if worker == id);
        self.all().filter(|(_, task)| is_sent(task) && is_meant(task)).map(|(index, _)| index).collect()
    }

    fn micros_in(&self, queue_id: QueueId) -> u64 {
        self.in_queue(queue_id).sum()
    }

    fn is_queue_empty(&self, queue_id: QueueId) -> bool {
        self.in_queue(queue_id).next().is_none()
    }

    fn in_queue(&self, queue_id: QueueId) -> impl Iterator<Item = u64> {
        self.all().filter_map(move |(_, task)| match task.stage {
            Stage::Ready { queue_id: at, micros } if at == queue_id => Some(micros),
            _ => None,
        })
    }

    /// Asserts that no task entry is left.
    pub(crate) fn check_empty(&self) {
        self.check();
        assert_eq!(self.tasks.len(), 0, "task entries are left: {:?}", self.tasks);
    }
}
