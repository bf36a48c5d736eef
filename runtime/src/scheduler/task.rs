//! What the scheduler knows of a task. It is a record of lineage as well: it stays while a client wants the result, or another
//! record names it as an input.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::error::Failure;
use crate::protocol::{Assignment, Attempt, FunctionId, Input, Key, Priority, TaskArguments, WorkerId};
use crate::stats::StageCounts;
use crate::value::Placeholder;

/// What a task takes, in bytes: the record, and its places in tables and queues; and what each of its inputs takes, which knows
/// it as a dependent.
const TASK_BYTES: usize = size_of::<Option<Task>>() + 96;
const INPUT_BYTES: usize = size_of::<Index>() + size_of::<(Index, u64)>();
/// What an input takes, as a worker is told of it with its holders.
const INPUT_ASSIGNMENT_BYTES: usize = size_of::<Input>() + 4 * size_of::<WorkerId>();

/// Where a record lies. Used again once the record is forgotten, which its number is not.
pub(crate) type Index = u32;

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) key: Key,
    pub(crate) origin: Origin,
    pub(crate) inputs: Box<[Index]>,
    pub(crate) dependents: Dependents,
    /// Dependents that need the result before they can be done.
    pub(crate) waiters: u32,
    /// The client has not released it.
    pub(crate) wanted: bool,
    pub(crate) priority: Priority,
    /// Set by [`Tasks::set_stage`], which counts.
    pub(crate) stage: Stage,
    /// Who has the result, and how large it is.
    pub(crate) holders: Vec<WorkerId>,
    pub(crate) bytes: u64,
    /// Workers that died while they had it, and might have died of it.
    pub(crate) deaths: u8,
    /// How often a worker gave it back, since it could not get the inputs.
    pub(crate) returns: u8,
}

/// What makes it.
#[derive(Debug)]
pub(crate) enum Origin {
    Function {
        function: FunctionId,
        arguments: TaskArguments,
    },
    /// A client gave it to a worker: once lost, nothing makes it again.
    Scattered,
}

impl Origin {
    /// The memory of a task of so many inputs, in bytes.
    pub(crate) fn task_bytes(&self, inputs: usize) -> u64 {
        let (arguments, placeholders) = match self {
            Self::Function { arguments, .. } => (arguments.bytes.0.len(), arguments.placeholders.len()),
            Self::Scattered => (0, 0),
        };
        (TASK_BYTES + inputs * INPUT_BYTES + arguments + placeholders * size_of::<Placeholder>()) as u64
    }
}

/// How far it is.
///
/// Waiting, ready or sent, it is a waiter of each of its inputs.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Nobody needs it now.
    Released,
    /// So many of its inputs are not done.
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

/// Where a ready task waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueId {
    /// For any worker that has room.
    Roots,
    /// For any worker that has no other suspect.
    Suspects,
    /// Near its inputs.
    Worker(WorkerId),
}

impl Task {
    pub(crate) fn is_needed(&self) -> bool {
        self.wanted || self.waiters > 0
    }

    /// A worker died that had it, and it has not run to its end since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.deaths > 0
    }

    /// About what it takes to tell a worker of it, in bytes.
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

/// The records that name a task as an input. Those that are forgotten stay in the list until they are most of it.
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

/// All records.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    entries: Vec<Option<Task>>,
    free: Vec<Index>,
    by_key: FxHashMap<Key, Index>,
    /// How many are how far.
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
        // The map's order is no part of what happens.
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

    /// The record, if it is still the one of that number.
    pub(crate) fn same(&self, index: Index, number: u64) -> Option<&Task> {
        self.get(index).filter(|task| task.priority.number == number)
    }

    /// The records that name it as an input: again for each time that they do.
    pub(crate) fn dependents(&self, index: Index) -> Vec<Index> {
        let list = &self[index].dependents.list;
        list.iter()
            .filter(|(index, number)| self.same(*index, *number).is_some())
            .map(|(index, _)| *index)
            .collect()
    }

    /// Forgets a record; its inputs have one dependent less.
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
