//! A queue of ready tasks, the most urgent first. A removed task stays in the heap until it comes to the top.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::task::{Index, QueueId, Stage, Tasks};
use crate::protocol::Priority;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(Priority, Index)>>,
    /// The number and the expected duration of tasks that were not removed.
    len: usize,
    micros: u64,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn micros(&self) -> u64 {
        self.micros
    }

    pub(crate) fn push(&mut self, priority: Priority, index: Index, micros: u64) {
        self.heap.push(Reverse((priority, index)));
        self.len += 1;
        self.micros += micros;
    }

    /// Removes one task, which has left this queue.
    pub(crate) fn remove(&mut self, micros: u64) {
        self.len -= 1;
        self.micros -= micros;
        if self.len == 0 {
            self.heap.clear();
        }
    }

    /// Returns the most urgent task that is still in this queue, without removing it.
    pub(crate) fn first(&mut self, tasks: &Tasks, queue_id: QueueId) -> Option<(Priority, Index)> {
        while let Some(Reverse((priority, index))) = self.heap.peek() {
            let task = tasks.same(*index, priority.number);
            if task
                .is_some_and(|task| matches!(task.stage, Stage::Ready { queue_id: at, .. } if at == queue_id))
            {
                return Some((*priority, *index));
            }
            self.heap.pop();
        }
        None
    }

    /// Returns all tasks that are still in this queue.
    pub(crate) fn all(self, tasks: &Tasks, queue_id: QueueId) -> Vec<Index> {
        let mut all: Vec<_> = self
            .heap
            .into_iter()
            .filter_map(|Reverse((priority, index))| {
                let task = tasks.same(index, priority.number)?;
                matches!(task.stage, Stage::Ready { queue_id: at, .. } if at == queue_id)
                    .then_some((priority, index))
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|(_, index)| index).collect()
    }
}
