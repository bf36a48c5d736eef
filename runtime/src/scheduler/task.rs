//! The scheduler's entries for tasks. An entry also records lineage: it stays while a client wants the
//! result, or another entry names it as an input.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::error::Failure;
use crate::protocol::{Assignment, Attempt, FunctionId, Input, Key, Priority, TaskArguments, WorkerId};
use crate::stats::StageCounts;
use crate::value::Placeholder;

/// Memory of a task, in bytes: its entry, its places in tables and queues, and for each input the back
/// reference.
const TASK_BYTES: usize = size_of::<Option<Task>>() + 96;
const INPUT_BYTES: usize = size_of::<Index>() + size_of::<(Index, u64)>();
/// Size of an input in an assignment, with its holders, in bytes.
const INPUT_ASSIGNMENT_BYTES: usize = size_of::<Input>() + 4 * size_of::<WorkerId>();

/// The position of an entry. It is reused once the entry is removed; its submission number is not.
pub(crate) type Index = u32;

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    pub(crate) inputs: Box<[Index]>,
    pub(crate) dependents: Dependents,
    /// Dependents in progress.
    pub(crate) waiters: u32,
    /// The client has not released it.
    pub(crate) wanted: bool,
    pub(crate) priority: Priority,
    /// Set by [`Tasks::set_stage`], which counts.
    pub(crate) stage: Stage,
    /// The workers that have the result, and its size.
    pub(crate) holders: Vec<WorkerId>,
    pub(crate) bytes: u64,
    /// Workers that died while they had the task, and may have died of it.
    pub(crate) deaths: u8,
    /// How often a worker returned it because it could not fetch the inputs.
    pub(crate) returns: u8,
}

/// How the result comes into being.
#[derive(Debug)]
pub(crate) enum Origin {
    Function {
        function: FunctionId,
        arguments: TaskArguments,
    },
    /// A client sends it to a worker. Once lost, it cannot be recomputed.
    Scattered,
}

impl Origin {
    /// Returns the memory of a task with `inputs` inputs, in bytes.
    pub(crate) fn task_bytes(&self, inputs: usize) -> u64 {
        let (arguments, placeholders) = match self {
            Self::Function { arguments, .. } => (arguments.bytes.0.len(), arguments.placeholders.len()),
            Self::Scattered => (0, 0),
        };
        (TASK_BYTES + inputs * INPUT_BYTES + arguments + placeholders * size_of::<Placeholder>()) as u64
    }
}

/// The stage of a task.
///
/// A task that is waiting, ready or sent is a waiter of each of its inputs.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It is not needed now.
    Released,
    /// This many of its inputs are not done.
    Waiting {
        missing: u32,
    },
    Ready {
        queue_id: QueueId,
        micros: u64,
    },
    Sent {
        worker: WorkerId,
        attempt: Attempt,
        micros: u64,
        recalled: bool,
    },
    /// Its holders have the result.
    Done,
    Failed(Arc<Failure>),
}

impl Stage {
    pub(crate) fn count<'a>(&self, counts: &'a mut StageCounts) -> &'a mut u64 {
        match self {
            Self::Released => &mut counts.released,
            Self::Waiting { .. } => &mut counts.waiting,
            Self::Ready { .. } => &mut counts.ready,
            Self::Sent { .. } => &mut counts.sent,
            Self::Done => &mut counts.done,
            Self::Failed(_) => &mut counts.failed,
        }
    }
}

/// The queue of a ready task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueId {
    /// For any worker that has room.
    Roots,
    /// For any worker that has no other suspect.
    Suspects,
    /// For the worker nearest to its inputs.
    Worker(WorkerId),
}

impl Task {
    pub(crate) fn is_needed(&self) -> bool {
        self.wanted || self.waiters > 0
    }

    /// Returns whether a worker died that had it, and no attempt has ended since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.deaths > 0
    }

    /// Returns the approximate size of its assignment, in bytes.
    pub(crate) fn assignment_bytes(&self) -> usize {
        let arguments = match &self.origin {
            Origin::Function { arguments, .. } => {
                arguments.bytes.0.len() + arguments.placeholders.len() * size_of::<Placeholder>()
            }
            Origin::Scattered => 0,
        };
        size_of::<Assignment>() + self.inputs.len() * INPUT_ASSIGNMENT_BYTES + arguments
    }

    pub(crate) fn is_in_progress(&self) -> bool {
        matches!(self.stage, Stage::Waiting { .. } | Stage::Ready { .. } | Stage::Sent { .. })
    }
}

/// The entries that name a task as an input. Removed ones stay in the list until they are most of it.
#[derive(Debug, Default)]
pub(crate) struct Dependents {
    list: Vec<(Index, u64)>,
    live_count: u32,
}

impl Dependents {
    pub(crate) fn add(&mut self, index: Index, number: u64) {
        self.list.push((index, number));
        self.live_count += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live_count == 0
    }
}

/// All task entries.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    entries: Vec<Option<Task>>,
    free: Vec<Index>,
    by_key: FxHashMap<Key, Index>,
    /// The number of tasks in each stage.
    stages: StageCounts,
}

impl Tasks {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn stages(&self) -> StageCounts {
        self.stages
    }

    pub(crate) fn set_stage(&mut self, index: Index, stage: Stage) {
        *stage.count(&mut self.stages) += 1;
        let before = std::mem::replace(&mut self[index].stage, stage);
        *before.count(&mut self.stages) -= 1;
    }

    pub(crate) fn find(&self, key: Key) -> Option<Index> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn of_client(&self, client: u32) -> Vec<Index> {
        let mut indices: Vec<_> =
            self.by_key.iter().filter(|(key, _)| key.client() == client).map(|(_, index)| *index).collect();
        // The map's order must not influence the result.
        indices.sort_unstable();
        indices
    }

    pub(crate) fn indices(&self) -> impl Iterator<Item = Index> + Clone {
        self.entries.iter().zip(0..).filter_map(|(entry, index)| entry.as_ref().map(|_| index))
    }

    pub(crate) fn insert(&mut self, task: Task) -> Index {
        let index = self.free.pop().unwrap_or(self.entries.len() as Index);
        self.by_key.insert(task.key, index);
        *task.stage.count(&mut self.stages) += 1;
        for input in &task.inputs {
            self[*input].dependents.add(index, task.priority.number);
        }
        match self.entries.get_mut(index as usize) {
            Some(entry) => *entry = Some(task),
            None => self.entries.push(Some(task)),
        }
        index
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Task> {
        self.entries.get(index as usize)?.as_ref()
    }

    /// Returns the entry, if it still has that submission number.
    pub(crate) fn same(&self, index: Index, number: u64) -> Option<&Task> {
        self.get(index).filter(|task| task.priority.number == number)
    }

    /// Returns the entries that name it as an input, once for each mention.
    pub(crate) fn dependents(&self, index: Index) -> Vec<Index> {
        let list = &self[index].dependents.list;
        list.iter()
            .filter(|(index, number)| self.same(*index, *number).is_some())
            .map(|(index, _)| *index)
            .collect()
    }

    /// Removes an entry from the table and from the dependents of its inputs.
    pub(crate) fn remove(&mut self, index: Index) -> Option<Task> {
        let task = self.entries.get_mut(index as usize)?.take()?;
        self.by_key.remove(&task.key);
        *task.stage.count(&mut self.stages) -= 1;
        self.free.push(index);
        for input in &task.inputs {
            let dependents = &mut self[*input].dependents;
            dependents.live_count -= 1;
            if dependents.list.len() > 16 + 2 * dependents.live_count as usize {
                let mut list = std::mem::take(&mut dependents.list);
                list.retain(|(index, number)| self.same(*index, *number).is_some());
                self[*input].dependents.list = list;
            }
        }
        Some(task)
    }
}

impl std::ops::Index<Index> for Tasks {
    type Output = Task;

    fn index(&self, index: Index) -> &Task {
        self.entries[index as usize].as_ref().expect("a record that is named exists")
    }
}

impl std::ops::IndexMut<Index> for Tasks {
    fn index_mut(&mut self, index: Index) -> &mut Task {
        self.entries[index as usize].as_mut().expect("a record that is named exists")
    }
}
