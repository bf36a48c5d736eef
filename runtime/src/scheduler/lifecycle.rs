//! The lifecycle of a task: needed, ready, sent, done; lost and recomputed; failed; released.
//!
//! Invariants: a task that is waiting, ready or sent counts as a waiter of each of its inputs, and no other
//! task does. A needed result is done, in progress or failed. Traversals use an explicit stack, since graphs
//! are deep.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{SchedulerAction, SchedulerState};
use super::task::{Index, Origin, Stage, Task};
use crate::error::{ErrorKind, Failure};
use crate::protocol::{Key, ToClient, ToWorker, WorkerId};

/// A task is failed after this many deaths of workers that had it.
pub(crate) const DEATHS_MAX: u8 = 3;
/// A task is failed after a worker has returned it this many times for lack of its inputs.
const RETURNS_MAX: u8 = 10;

impl SchedulerState {
    /// Starts a released task that is needed, and its inputs.
    pub(super) fn activate(&mut self, index: Index) {
        let mut stack = vec![index];
        while let Some(index) = stack.pop() {
            let Some(task) = self.tasks.get(index) else { continue };
            if !matches!(task.stage, Stage::Released) || !task.is_needed() {
                continue;
            }
            if matches!(task.origin, Origin::Scattered) {
                self.fail_with(index, ErrorKind::Lost, "every worker that had this scattered data is gone");
                continue;
            }
            let inputs = task.inputs.clone();
            for input in &inputs {
                let input_task = &mut self.tasks[*input];
                input_task.waiters += 1;
                if matches!(input_task.stage, Stage::Released) {
                    stack.push(*input);
                }
            }
            self.tasks.set_stage(index, Stage::Waiting { missing: 0 });
            self.count_missing(index);
        }
    }

    /// As `activate`, for a task in progress that may have lost inputs.
    pub(super) fn recheck_inputs(&mut self, index: Index) {
        let Some(Task { stage: Stage::Waiting { .. }, inputs, .. }) = self.tasks.get(index) else { return };
        for input in inputs.clone() {
            self.activate(input);
        }
        self.count_missing(index);
    }

    fn count_missing(&mut self, index: Index) {
        let Some(Task { stage: Stage::Waiting { .. }, inputs, .. }) = self.tasks.get(index) else { return };
        let mut missing = 0;
        let mut failed = None;
        for input in inputs {
            match &self.tasks[*input].stage {
                Stage::Done => {}
                Stage::Failed(failure) => failed = Some(failure.clone()),
                _ => missing += 1,
            }
        }
        match failed {
            Some(failure) => self.fail(index, &failure),
            None if missing == 0 => self.ready(index),
            None => self.tasks.set_stage(index, Stage::Waiting { missing }),
        }
    }

    /// A worker has computed the result.
    pub(super) fn done(&mut self, index: Index, worker: WorkerId, bytes: u64, micros: u32) {
        let task = &mut self.tasks[index];
        if let Origin::Function { function, .. } = task.origin {
            self.functions.record_duration(function, micros);
            self.counts.runs_done += 1;
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.runs_done += 1;
            }
        }
        task.bytes = bytes;
        (task.deaths, task.returns) = (0, 0);
        let inputs = task.inputs.clone();
        self.tasks.set_stage(index, Stage::Done);
        self.add_holder(index, worker);
        self.notify_client(index);
        for dependent in self.tasks.dependents(index) {
            if let Stage::Waiting { missing } = &mut self.tasks[dependent].stage {
                *missing -= 1;
                if *missing == 0 {
                    self.ready(dependent);
                }
            }
        }
        for input in inputs {
            self.tasks[input].waiters -= 1;
            self.release_unneeded(input);
        }
        self.release_unneeded(index);
    }

    /// Fails a task and its dependents.
    pub(super) fn fail(&mut self, index: Index, failure: &Arc<Failure>) {
        let mut stack = vec![index];
        let mut left = Vec::new();
        while let Some(index) = stack.pop() {
            let Some(task) = self.tasks.get(index) else { continue };
            if task.is_in_progress() {
                for input in task.inputs.clone() {
                    self.tasks[input].waiters -= 1;
                    left.push(input);
                }
                self.abandon(index);
            } else if !matches!(task.stage, Stage::Released) {
                continue;
            }
            self.tasks.set_stage(index, Stage::Failed(failure.clone()));
            self.notify_client(index);
            let waiting = |dependent: &Index| matches!(self.tasks[*dependent].stage, Stage::Waiting { .. });
            stack.extend(self.tasks.dependents(index).into_iter().filter(waiting));
            left.push(index);
        }
        for index in left {
            self.release_unneeded(index);
        }
    }

    /// As `fail`, with the task's name.
    pub(super) fn fail_with(&mut self, index: Index, kind: ErrorKind, detail: &str) {
        tracing::debug!(key = ?self.tasks[index].key, %kind, detail, "a task fails");
        let failure = Failure::new(kind, detail);
        let failure = match self.tasks[index].origin {
            Origin::Function { function, .. } => failure.of(self.functions.name(function)),
            Origin::Scattered => failure,
        };
        self.fail(index, &Arc::new(failure));
    }

    /// Frees what is no longer needed: data, attempts, and entries that no other entry names.
    pub(super) fn release_unneeded(&mut self, index: Index) {
        if self.tasks.get(index).is_none_or(Task::is_needed) {
            return;
        }
        let mut stack = vec![index];
        while let Some(index) = stack.pop() {
            let Some(task) = self.tasks.get(index).filter(|task| !task.is_needed()) else { continue };
            if task.is_in_progress() {
                for input in task.inputs.clone() {
                    self.tasks[input].waiters -= 1;
                    stack.push(input);
                }
                self.abandon(index);
                self.tasks.set_stage(index, Stage::Released);
            } else if matches!(task.stage, Stage::Done) {
                for holder in task.holders.clone() {
                    self.free_copy(index, holder);
                }
                self.tasks.set_stage(index, Stage::Released);
            }
            if self.tasks[index].dependents.is_empty()
                && let Some(task) = self.tasks.remove(index)
            {
                if let Some(client) = self.clients.get_mut(&task.key.client()) {
                    client.bytes -= task.origin.task_bytes(task.inputs.len());
                }
                stack.extend(&task.inputs);
            }
        }
    }

    /// Drops the task from its queue or worker.
    fn abandon(&mut self, index: Index) {
        let task = &self.tasks[index];
        if let Stage::Sent { worker, attempt, .. } = task.stage {
            self.actions.push(SchedulerAction::Worker(worker, ToWorker::Drop { key: task.key, attempt }));
        }
        self.detach(index);
    }

    // ---- Holders of data ----

    /// Records that the worker has the data.
    pub(super) fn add_holder(&mut self, index: Index, id: WorkerId) {
        let (Some(worker), task) = (self.workers.get_mut(&id), &mut self.tasks[index]) else { return };
        if !task.holders.contains(&id) {
            task.holders.push(id);
            worker.holds.insert(index);
            worker.bytes = worker.bytes.saturating_add(task.bytes);
        }
    }

    /// Frees the worker's copy.
    pub(super) fn free_copy(&mut self, index: Index, id: WorkerId) {
        let task = &mut self.tasks[index];
        task.holders.retain(|holder| *holder != id);
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.holds.remove(&index)
        {
            worker.bytes = worker.bytes.saturating_sub(task.bytes);
            self.actions.push(SchedulerAction::Worker(id, ToWorker::Free { key: task.key }));
        }
    }

    /// The worker has lost its copy. Recomputes the result if it was the last one.
    pub(super) fn copy_lost(&mut self, index: Index, id: WorkerId) {
        if self.tasks.get(index).is_none() {
            return;
        }
        self.free_copy(index, id);
        let task = &self.tasks[index];
        if !task.holders.is_empty() || !matches!(task.stage, Stage::Done) {
            return;
        }
        if task.wanted {
            self.actions
                .push(SchedulerAction::Client(task.key.client(), ToClient::Recomputing { key: task.key }));
        }
        self.tasks.set_stage(index, Stage::Released);
        for dependent in self.tasks.dependents(index) {
            match &mut self.tasks[dependent].stage {
                Stage::Waiting { missing } => *missing += 1,
                Stage::Ready { .. } => {
                    self.detach(dependent);
                    self.tasks.set_stage(dependent, Stage::Waiting { missing: 1 });
                }
                _ => {}
            }
        }
        self.activate(index);
        self.release_unneeded(index);
    }

    /// A peer could not fetch the data from that worker.
    pub(super) fn fetch_failed(&mut self, index: Index, id: WorkerId) {
        if self.tasks[index].holders.contains(&id) {
            self.copy_lost(index, id);
        }
    }

    /// A worker returned the task: these holders did not send these inputs, or the scheduler recalled it.
    pub(super) fn returned(&mut self, index: Index, lacking: &[(Key, WorkerId)]) {
        for (key, holder) in lacking {
            if let Some(input) = self.tasks.find(*key) {
                self.fetch_failed(input, *holder);
            }
        }
        let Some(task) = self.tasks.get(index) else { return };
        if !matches!(task.stage, Stage::Waiting { .. }) {
            return;
        }
        let returns = task.returns + u8::from(!lacking.is_empty());
        self.tasks[index].returns = returns;
        if returns >= RETURNS_MAX {
            let detail = format!("its inputs could not be fetched, {returns} times");
            return self.fail_with(index, ErrorKind::Lost, &detail);
        }
        self.recheck_inputs(index);
    }

    /// Counts the death of a worker for the tasks that it had been sent.
    pub(super) fn count_deaths(&mut self, sent: &BTreeSet<Index>, suspect: Option<Index>) {
        for index in sent {
            let Some(task) = self.tasks.get(*index).filter(|task| task.is_in_progress()) else { continue };
            // If the worker had a suspect, only the suspect's count rises; the other tasks become suspects.
            let is_blamed = suspect.is_none_or(|suspect| suspect == *index);
            let deaths = if is_blamed { task.deaths + 1 } else { task.deaths.max(1) };
            self.tasks[*index].deaths = deaths;
            if deaths >= DEATHS_MAX {
                let detail = format!("{deaths} workers died while they ran it, and it is not tried again");
                self.fail_with(*index, ErrorKind::Killed, &detail);
            }
        }
    }
}
