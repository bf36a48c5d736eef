//! The course of a task: needed, ready, sent, done; lost and made again; failed; released.
//!
//! The invariants: what waits, is ready or is sent counts as a waiter at each of its inputs, and nothing else does. Who needs a
//! result has it on its way, or has failed. Whatever leads from task to task goes by a list and not by calls: graphs are deep.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::state::{Action, State};
use super::task::{Index, Origin, Stage, Task};
use crate::error::{ErrorKind, Failure};
use crate::protocol::{Key, ToClient, ToWorker, WorkerId};

/// Deaths of workers after which the task that they had is given up.
pub(crate) const DEATHS_MAX: u8 = 3;
/// A task that was given back so often for want of its inputs is given up.
const RETURNS_MAX: u8 = 10;

impl State {
    /// Somebody needs it: it is to be made, and what it needs for that as well.
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

    /// As `activate`, of one that is on its way already, and may have lost inputs.
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

    /// A worker has made it.
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

    /// It will never be done, nor will those that need it.
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

    /// As `fail`, naming the task.
    pub(super) fn fail_with(&mut self, index: Index, kind: ErrorKind, detail: &str) {
        tracing::debug!(key = ?self.tasks[index].key, %kind, detail, "a task fails");
        let failure = Failure::new(kind, detail);
        let failure = match self.tasks[index].origin {
            Origin::Function { function, .. } => failure.of(self.functions.name(function)),
            Origin::Scattered => failure,
        };
        self.fail(index, &Arc::new(failure));
    }

    /// Gives up what nobody needs any more: its data, its run, and its record once nobody names it.
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

    /// Whoever works on it need not.
    fn abandon(&mut self, index: Index) {
        let task = &self.tasks[index];
        if let Stage::Sent { worker, attempt, .. } = task.stage {
            self.actions.push(Action::Worker(worker, ToWorker::Drop { key: task.key, attempt }));
        }
        self.detach(index);
    }

    // ---- Where data is ----

    /// The worker has the data.
    pub(super) fn add_holder(&mut self, index: Index, id: WorkerId) {
        let (Some(worker), task) = (self.workers.get_mut(&id), &mut self.tasks[index]) else { return };
        if !task.holders.contains(&id) {
            task.holders.push(id);
            worker.holds.insert(index);
            worker.bytes = worker.bytes.saturating_add(task.bytes);
        }
    }

    /// The worker shall not have it any more.
    pub(super) fn free_copy(&mut self, index: Index, id: WorkerId) {
        let task = &mut self.tasks[index];
        task.holders.retain(|holder| *holder != id);
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.holds.remove(&index)
        {
            worker.bytes = worker.bytes.saturating_sub(task.bytes);
            self.actions.push(Action::Worker(id, ToWorker::Free { key: task.key }));
        }
    }

    /// The worker has it no more, though it should.
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
            self.actions.push(Action::Client(task.key.client(), ToClient::Recomputing { key: task.key }));
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

    /// Somebody could not get it from that worker.
    pub(super) fn fetch_failed(&mut self, index: Index, id: WorkerId) {
        if self.tasks[index].holders.contains(&id) {
            self.copy_lost(index, id);
        }
    }

    /// A worker gave it back, since these holders did not give these inputs; or since it was asked to.
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

    /// A worker died that was given these.
    pub(super) fn count_deaths(&mut self, sent: &BTreeSet<Index>, suspect: Option<Index>) {
        for index in sent {
            let Some(task) = self.tasks.get(*index).filter(|task| task.is_in_progress()) else { continue };
            // Beside a suspect the others become suspects, and no more.
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
