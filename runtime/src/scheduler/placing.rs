//! Placement: a task runs near its inputs, weighed against the load of workers. Tasks are sent as late as
//! possible, so that more urgent ones can overtake.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::peers::WorkerEntry;
use super::queue::Queue;
use super::state::{SchedulerAction, SchedulerState};
use super::task::{Index, Origin, QueueId, Stage, Task};
use crate::error::ErrorKind;
use crate::protocol::{Assignment, Input, Priority, ToWorker, WorkerId};

/// The assumed cost of a transfer: bytes per µs, and µs per input.
const BYTES_PER_MICRO: u64 = 1_000;
const FETCH_MICROS: u64 = 50;
/// Maximum number of holders in an assignment.
const HOLDERS_SENT_MAX: usize = 4;

/// Returns the time to fetch an input to another worker, in µs.
fn fetch_micros(input: &Task) -> u64 {
    FETCH_MICROS + input.bytes / BYTES_PER_MICRO
}

impl SchedulerState {
    /// All inputs are done: puts the task into a queue until a worker has room.
    pub(super) fn ready(&mut self, index: Index) {
        let task = &self.tasks[index];
        let input_bytes = self.input_bytes(index);
        let room = || self.workers.values().map(|worker| worker.offer.memory_bytes_max).max();
        if input_bytes > 0
            && let Some(room) = room().filter(|room| input_bytes > *room)
        {
            let detail = format!("its inputs take {input_bytes} bytes, and no worker has more than {room}");
            return self.fail_with(index, ErrorKind::TooLarge, &detail);
        }
        let queue_id = match (task.is_suspect(), task.inputs.is_empty()) {
            (true, _) => QueueId::Suspects,
            (false, true) => QueueId::Roots,
            (false, false) => self.nearest(index).map_or(QueueId::Roots, QueueId::Worker),
        };
        self.enqueue(index, queue_id);
    }

    fn enqueue(&mut self, index: Index, queue_id: QueueId) {
        let micros = self.micros(index);
        self.tasks.set_stage(index, Stage::Ready { queue_id, micros });
        let priority = self.tasks[index].priority;
        if let Some(queue) = self.queue_id(queue_id) {
            queue.push(priority, index, micros);
        }
    }

    fn micros(&self, index: Index) -> u64 {
        match self.tasks[index].origin {
            Origin::Function { function, .. } => self.functions.micros(function),
            Origin::Scattered => 0,
        }
    }

    fn queue_id(&mut self, queue_id: QueueId) -> Option<&mut Queue> {
        match queue_id {
            QueueId::Roots => Some(&mut self.roots),
            QueueId::Suspects => Some(&mut self.suspects),
            QueueId::Worker(id) => self.workers.get_mut(&id).map(|worker| &mut worker.queue),
        }
    }

    /// Removes the task from its queue or worker.
    pub(super) fn detach(&mut self, index: Index) {
        match self.tasks[index].stage {
            Stage::Ready { queue_id, micros } => {
                if let Some(queue) = self.queue_id(queue_id) {
                    queue.remove(micros);
                }
            }
            Stage::Sent { worker, micros, recalled, .. } => {
                let bytes = self.tasks[index].assignment_bytes();
                let Some(worker) = self.workers.get_mut(&worker) else { return };
                if worker.expected.remove(&index) {
                    return;
                }
                worker.sent.remove(&index);
                worker.sent_micros -= micros;
                worker.sent_bytes -= bytes;
                worker.recalled -= usize::from(recalled);
                worker.suspect.take_if(|suspect| *suspect == index);
            }
            _ => {}
        }
    }

    /// Returns the worker that would finish it first, among those with the memory for its inputs.
    fn nearest(&self, index: Index) -> Option<WorkerId> {
        let input_bytes = self.input_bytes(index);
        let fitting = self.workers.iter().filter(|(_, worker)| input_bytes <= worker.offer.memory_bytes_max);
        // Summed by holder, since both inputs and workers may be many.
        let (mut all, mut here) = (0u128, FxHashMap::<WorkerId, u128>::default());
        for input in &self.tasks[index].inputs {
            let input = &self.tasks[*input];
            let micros = u128::from(fetch_micros(input));
            all += micros;
            input.holders.iter().for_each(|holder| *here.entry(*holder).or_default() += micros);
        }
        let done = |(id, worker): (&WorkerId, &WorkerEntry)| {
            (u128::from(worker.wait_micros()) + all - here.get(id).unwrap_or(&0), *id)
        };
        fitting.map(done).min().map(|(_, id)| id)
    }

    fn input_bytes(&self, index: Index) -> u64 {
        let inputs = self.tasks[index].inputs.iter().map(|input| self.tasks[*input].bytes);
        inputs.fold(0, u64::saturating_add)
    }

    fn fits(&self, index: Index, id: WorkerId) -> bool {
        self.input_bytes(index) <= self.workers[&id].offer.memory_bytes_max
    }

    /// Returns whether fetching its inputs to that worker takes less than `micros_max`.
    fn is_fetched_within(&self, index: Index, worker: WorkerId, micros_max: u64) -> bool {
        let mut inputs = self.tasks[index].inputs.iter().map(|input| &self.tasks[*input]);
        let mut micros = 0u64;
        // Stops as soon as the answer is known.
        micros_max > 0
            && inputs.all(|input| {
                let is_here = input.holders.contains(&worker);
                micros = micros.saturating_add(if is_here { 0 } else { fetch_micros(input) });
                micros < micros_max
            })
    }

    /// Returns whether the worker would be sent the task. A task recalled for a worker that cannot run it
    /// would return to its queue, without end.
    fn may_run(&self, index: Index, id: WorkerId) -> bool {
        self.fits(index, id) && !(self.tasks[index].inputs.is_empty() && self.workers[&id].is_full())
    }

    /// Sends tasks to workers that have room, the least loaded first. Returns false if the output limit
    /// stopped it.
    pub(super) fn place_ready(&mut self) -> bool {
        // With many workers, most messages make no task ready.
        let nothing = |worker: &WorkerEntry| worker.queue.is_empty();
        if self.roots.is_empty() && self.suspects.is_empty() && self.workers.values().all(nothing) {
            return true;
        }
        let mut open: BinaryHeap<_> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.has_room())
            .map(|(id, worker)| Reverse((worker.wait_micros(), worker.sent.len(), *id)))
            .collect();
        while let Some(Reverse((_, _, id))) = open.pop() {
            if self.output_is_full() {
                return false;
            }
            let Some(index) = self.next_for(id) else { continue };
            self.send(id, index);
            let worker = &self.workers[&id];
            if worker.has_room() {
                open.push(Reverse((worker.wait_micros(), worker.sent.len(), id)));
            }
        }
        true
    }

    /// Returns the most urgent task that may run there.
    fn next_for(&mut self, id: WorkerId) -> Option<Index> {
        let Self { tasks, workers, roots, suspects, .. } = self;
        let worker = workers.get_mut(&id)?;
        let root = if worker.is_full() { None } else { roots.first(tasks, QueueId::Roots) };
        let suspect = if worker.suspect.is_some() { None } else { suspects.first(tasks, QueueId::Suspects) };
        let own = worker.queue.first(tasks, QueueId::Worker(id));
        let suspect = suspect.filter(|(_, index)| self.fits(*index, id));
        match [own, root, suspect].into_iter().flatten().min() {
            Some((_, index)) => Some(index),
            None => self.steal_for(id),
        }
    }

    /// Returns a task that waits for a busier worker and would be done earlier here.
    fn steal_for(&mut self, id: WorkerId) -> Option<Index> {
        let here = self.workers[&id].wait_micros();
        // A worker that has room takes from its own queue.
        let is_busy = |worker: &WorkerEntry| !worker.queue.is_empty() && !worker.has_room();
        let busiest = self.workers.iter().filter(|(other, worker)| **other != id && is_busy(worker));
        let (there, victim) = busiest.map(|(other, worker)| (worker.wait_micros(), *other)).max()?;
        let first = self.workers.get_mut(&victim)?.queue.first(&self.tasks, QueueId::Worker(victim));
        if let Some((_, index)) = first
            && self.is_fetched_within(index, id, there.saturating_sub(here))
            && self.fits(index, id)
        {
            return Some(index);
        }
        None
    }

    fn send(&mut self, id: WorkerId, index: Index) {
        self.detach(index);
        let task = &self.tasks[index];
        let Origin::Function { function, arguments } = &task.origin else { return };
        let input = |input: &Index| {
            let input = &self.tasks[*input];
            let near = input.holders.iter().filter(|holder| **holder == id);
            let far = input.holders.iter().filter(|holder| **holder != id);
            let holders = near.chain(far).take(HOLDERS_SENT_MAX).copied().collect();
            Input { key: input.key, bytes: input.bytes, holders }
        };
        self.last_attempt += 1;
        let (function, attempt) = (*function, self.last_attempt);
        let assignment = Assignment {
            key: task.key,
            attempt,
            function,
            priority: task.priority,
            inputs: task.inputs.iter().map(input).collect(),
            arguments: arguments.clone(),
        };
        let (is_suspect, bytes) = (task.is_suspect(), task.assignment_bytes());
        self.output_bytes += bytes;
        let micros = self.functions.micros(function);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        for function in self.functions.since(worker.functions) {
            let message = ToWorker::Function { name: function.name.to_string(), types: function.types };
            self.actions.push(SchedulerAction::Worker(id, message));
        }
        worker.functions = self.functions.len();
        worker.sent.insert(index);
        worker.sent_micros += micros;
        worker.sent_bytes += bytes;
        if is_suspect {
            worker.suspect = Some(index);
        }
        self.tasks.set_stage(index, Stage::Sent { worker: id, attempt, micros, recalled: false });
        tracing::trace!(key = ?assignment.key, attempt, worker = id, "given");
        self.actions.push(SchedulerAction::Worker(id, ToWorker::Assign(assignment)));
    }

    /// Recalls tasks that cannot have begun at a busy worker and would be done earlier at an idle one.
    pub(super) fn rebalance(&mut self) {
        let is_idle = |worker: &WorkerEntry| worker.sent.is_empty() && worker.queue.is_empty();
        let idle: Vec<_> =
            self.workers.iter().filter(|(_, worker)| is_idle(worker)).map(|(id, _)| *id).collect();
        let mut wanted = idle.iter().map(|id| self.workers[id].offer.slots as usize).sum::<usize>();
        if wanted == 0 {
            return;
        }
        let busy = self.workers.iter().map(|(id, worker)| (Reverse(worker.surplus()), *id));
        let mut busy: Vec<_> = busy.filter(|(surplus, _)| surplus.0 > 0).collect();
        busy.sort_unstable();
        for (Reverse(surplus), id) in busy {
            // Half of it: the worker runs the other half while the first is on its way.
            for index in self.last_sent(id, &idle, surplus.div_ceil(2).min(wanted)) {
                self.recall(id, index);
                wanted -= 1;
            }
        }
    }

    /// Returns the least urgent tasks of a worker that are worth moving to an idle one.
    fn last_sent(&self, id: WorkerId, idle: &[WorkerId], count: usize) -> Vec<Index> {
        let worker = &self.workers[&id];
        let is_worth_it = |index: &Index| {
            let Stage::Sent { recalled: false, micros, .. } = self.tasks[*index].stage else { return false };
            let there = worker.wait_micros() - micros / u64::from(worker.offer.slots.max(1));
            idle.iter()
                .any(|idle| self.is_fetched_within(*index, *idle, there) && self.may_run(*index, *idle))
        };
        let mut last: Vec<(Priority, Index)> =
            worker.sent.iter().map(|index| (self.tasks[*index].priority, *index)).collect();
        last.sort_unstable();
        let last = last.into_iter().rev().map(|(_, index)| index);
        last.filter(is_worth_it).take(count).collect()
    }

    fn recall(&mut self, id: WorkerId, index: Index) {
        let task = &mut self.tasks[index];
        let (key, Stage::Sent { attempt, recalled, .. }) = (task.key, &mut task.stage) else { return };
        *recalled = true;
        tracing::trace!(?key, attempt = *attempt, worker = id, "asked back");
        self.actions.push(SchedulerAction::Worker(id, ToWorker::Recall { key, attempt: *attempt }));
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.recalled += 1;
        }
    }
}
