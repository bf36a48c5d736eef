//! The scheduler as a state machine. Input: messages, and peers that join or leave. Output: messages to send.
//!
//! It uses no clock (the time is an argument), socket or thread. It is deterministic: nothing depends on the
//! order of a hash map. The lifecycle of a task is in `lifecycle.rs`, its placement in `placing.rs`, the
//! stall timeout in `stall_timeout.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::peers::{ClientEntry, Functions, WorkerEntry};
use super::queue::Queue;
use super::stall_timeout::StallTimeout;
use super::stats::SchedulerCounts;
use super::task::{Dependents, Index, Origin, Stage, Task, Tasks};
use crate::error::{Error, ErrorKind};
use crate::protocol::{
    Attempt, ClientId, FromClient, FromWorker, FunctionId, INPUTS_MAX, Key, Offer, Priority, TaskArguments,
    ToClient, ToWorker, VALUE_LEN_MAX, WorkerId,
};

/// Maximum number of clients that may ever join one scheduler.
const CLIENTS_MAX: ClientId = 1 << 24;
/// Maximum number of task entries at a time.
const TASKS_MAX: usize = 16 << 20;
/// Above these limits, output is to be sent before more input is applied.
const ACTIONS_MAX: usize = 1024;
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// The state of the scheduler.
#[derive(Debug, Default)]
pub(crate) struct SchedulerState {
    pub(super) tasks: Tasks,
    pub(super) workers: BTreeMap<WorkerId, WorkerEntry>,
    pub(super) clients: BTreeMap<ClientId, ClientEntry>,
    pub(super) functions: Functions,
    /// Ready tasks for any worker.
    pub(super) roots: Queue,
    pub(super) suspects: Queue,
    pub(super) actions: Vec<SchedulerAction>,
    pub(super) last_attempt: Attempt,
    pub(super) stall_timeout: StallTimeout,
    pub(super) counts: SchedulerCounts,
    /// Approximate size of the actions' contents, beside the actions themselves.
    pub(super) output_bytes: usize,
    has_more_output: bool,
    /// Memory limit for the tasks of one client, in bytes.
    client_bytes_max: Option<u64>,
    next_client: ClientId,
    next_worker: WorkerId,
    pub(super) next_number: u64,
}

/// A message to send. Discard it if its peer has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SchedulerAction {
    Client(ClientId, ToClient),
    Worker(WorkerId, ToWorker),
}

/// A peer violated the protocol or a limit: it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    kind: ErrorKind,
    why: &'static str,
}

impl Violation {
    pub(super) const fn protocol(why: &'static str) -> Self {
        Self { kind: ErrorKind::Invalid, why }
    }

    pub(super) const fn limit(why: &'static str) -> Self {
        Self { kind: ErrorKind::TooLarge, why }
    }
}

impl From<Violation> for Error {
    fn from(Violation { kind, why }: Violation) -> Self {
        Self::new(kind, why)
    }
}

/// How a worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// In good order: its tasks are not suspects.
    Left,
    Died,
}

impl SchedulerState {
    /// Places ready tasks, and takes the messages to send since the last call. Call it after all input is
    /// applied, and again while `has_more_output`.
    pub(crate) fn take_actions(&mut self) -> Vec<SchedulerAction> {
        self.has_more_output = !self.place_ready();
        if !self.has_more_output {
            self.rebalance();
        }
        self.output_bytes = 0;
        std::mem::take(&mut self.actions)
    }

    /// Returns whether more output is pending than was taken.
    pub(crate) fn has_more_output(&self) -> bool {
        self.has_more_output
    }

    /// Returns whether output must be sent before more input is applied. Replies may be much larger than
    /// their requests.
    pub(crate) fn output_is_full(&self) -> bool {
        self.actions.len() >= ACTIONS_MAX || self.output_bytes >= OUTPUT_BYTES_MAX
    }

    /// Sets the memory limit for the tasks of one client, in bytes.
    pub(crate) fn set_client_bytes_max(&mut self, bytes_max: u64) {
        self.client_bytes_max = Some(bytes_max);
    }

    /// Returns the number of task entries, of any stage.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.len()
    }

    // ---- Clients ----

    pub(crate) fn client_joined(&mut self) -> Result<ClientId, Violation> {
        // From 1 on: no key is all zeroes.
        self.next_client += 1;
        if self.next_client >= CLIENTS_MAX {
            return Err(Violation::protocol("too many clients joined"));
        }
        let client = self.next_client;
        self.clients.insert(client, ClientEntry::default());
        for (worker, WorkerEntry { offer, .. }) in &self.workers {
            let joined = ToClient::Joined { worker: *worker, address: offer.address.clone() };
            self.actions.push(SchedulerAction::Client(client, joined));
        }
        Ok(client)
    }

    /// Releases all tasks that the client wanted.
    pub(crate) fn client_left(&mut self, client: ClientId) {
        self.clients.remove(&client);
        for index in self.tasks.of_client(client) {
            // Releasing one task may have removed others.
            if self.tasks.get(index).is_some_and(|task| task.key.client() == client) {
                self.tasks[index].wanted = false;
                self.release_unneeded(index);
            }
        }
    }

    pub(crate) fn on_client_message(
        &mut self,
        client: ClientId,
        message: FromClient,
    ) -> Result<(), Violation> {
        match message {
            FromClient::Function { name, types } => {
                let client = self.clients.get_mut(&client).ok_or(UNKNOWN_CLIENT)?;
                client.name(&mut self.functions, &name, types)
            }
            FromClient::Submit { key, function, inputs, arguments } => {
                self.submitted(client, key, function, &inputs, arguments)
            }
            FromClient::Scatter { key, worker } => self.scattered(client, key, worker),
            FromClient::Release { key } => {
                let index = self.owned_task(client, key)?;
                self.tasks[index].wanted = false;
                self.release_unneeded(index);
                Ok(())
            }
            FromClient::Cancel { key } => {
                let index = self.owned_task(client, key)?;
                if self.tasks[index].is_in_progress() {
                    self.fail_with(index, ErrorKind::Cancelled, "the client cancelled it");
                }
                Ok(())
            }
            FromClient::FetchFailed { key, worker } => {
                let index = self.owned_task(client, key)?;
                self.fetch_failed(index, worker);
                self.notify_client(index);
                Ok(())
            }
            FromClient::WhoHas { request, key } => {
                let index = self.owned_task(client, key)?;
                let workers = self.tasks[index].holders.clone();
                self.output_bytes += workers.len() * size_of::<WorkerId>();
                self.actions.push(SchedulerAction::Client(client, ToClient::Holders { request, workers }));
                Ok(())
            }
            FromClient::GetStats { request } => {
                let stats = self.stats();
                self.output_bytes += stats.len_bytes();
                self.actions.push(SchedulerAction::Client(client, ToClient::Stats { request, stats }));
                Ok(())
            }
        }
    }

    fn submitted(
        &mut self,
        client: ClientId,
        key: Key,
        function: FunctionId,
        inputs: &[Key],
        arguments: TaskArguments,
    ) -> Result<(), Violation> {
        let known = &self.clients.get(&client).ok_or(UNKNOWN_CLIENT)?.functions;
        let function = *known.get(function as usize).ok_or(Violation::protocol("an undeclared function"))?;
        if !arguments.are_within_limits(inputs.len()) {
            return Err(Violation::limit("a task exceeds the limits on arguments"));
        }
        let inputs = inputs.iter().map(|input| self.owned_task(client, *input)).collect::<Result<_, _>>()?;
        let origin = Origin::Function { function, arguments };
        let index = self.insert(client, key, origin, inputs)?;
        self.activate(index);
        Ok(())
    }

    fn scattered(&mut self, client: ClientId, key: Key, worker: WorkerId) -> Result<(), Violation> {
        let index = self.insert(client, key, Origin::Scattered, [].into())?;
        match self.workers.get_mut(&worker) {
            Some(entry) => {
                entry.expected.insert(index);
                self.tasks.set_stage(index, Stage::Sent { worker, attempt: 0, micros: 0, recalled: false });
            }
            None => self.activate(index),
        }
        Ok(())
    }

    fn insert(
        &mut self,
        client: ClientId,
        key: Key,
        origin: Origin,
        inputs: Box<[Index]>,
    ) -> Result<Index, Violation> {
        if key.client() != client || self.tasks.find(key).is_some() {
            return Err(Violation::protocol("a key of another client, or not new"));
        }
        if self.tasks.len() == TASKS_MAX {
            return Err(Violation::limit("more tasks than the scheduler can store"));
        }
        let bytes = origin.task_bytes(inputs.len());
        let known = self.clients.get_mut(&client).ok_or(UNKNOWN_CLIENT)?;
        if known.bytes + bytes > self.client_bytes_max.unwrap_or(u64::MAX) {
            return Err(Violation::limit(
                "its tasks take more memory than the scheduler gives to one client: release results, or submit fewer tasks at a time",
            ));
        }
        known.bytes += bytes;
        self.next_number += 1;
        let number = self.next_number;
        let mut priority = Priority { root: number, depth: Default::default(), number };
        for input in &inputs {
            let Priority { root, depth, .. } = self.tasks[*input].priority;
            priority.root = priority.root.min(root);
            priority.depth.0 = priority.depth.0.max(depth.0.saturating_add(1));
        }
        Ok(self.tasks.insert(Task {
            key,
            origin,
            inputs,
            dependents: Dependents::default(),
            waiters: 0,
            wanted: true,
            priority,
            stage: Stage::Released,
            holders: Vec::new(),
            bytes: 0,
            deaths: 0,
            returns: 0,
        }))
    }

    fn owned_task(&self, client: ClientId, key: Key) -> Result<Index, Violation> {
        let index = self.tasks.find(key).filter(|_| key.client() == client);
        let index = index.filter(|index| self.tasks[*index].wanted);
        index.ok_or(Violation::protocol("an unknown or released key"))
    }

    /// Notifies the client if its task is done or failed.
    pub(super) fn notify_client(&mut self, index: Index) {
        let Task { key, wanted, stage, holders, bytes, .. } = &self.tasks[index];
        if !wanted {
            return;
        }
        let message = match (stage, holders.first()) {
            (Stage::Done, Some(worker)) => ToClient::Done { key: *key, worker: *worker, bytes: *bytes },
            (Stage::Failed(failure), _) => {
                self.output_bytes += failure.detail.len();
                ToClient::Failed { key: *key, failure: failure.clone() }
            }
            _ => return,
        };
        self.actions.push(SchedulerAction::Client(key.client(), message));
    }

    // ---- Workers ----

    pub(crate) fn worker_joined(&mut self, offer: Offer) -> WorkerId {
        self.next_worker += 1;
        let id = self.next_worker;
        for (other, WorkerEntry { offer: theirs, .. }) in &self.workers {
            let here = ToWorker::Joined { worker: *other, address: theirs.address.clone() };
            self.actions.push(SchedulerAction::Worker(id, here));
            let there = ToWorker::Joined { worker: id, address: offer.address.clone() };
            self.actions.push(SchedulerAction::Worker(*other, there));
        }
        for client in self.clients.keys() {
            let joined = ToClient::Joined { worker: id, address: offer.address.clone() };
            self.actions.push(SchedulerAction::Client(*client, joined));
        }
        self.workers.insert(id, WorkerEntry::new(offer));
        id
    }

    /// Recomputes the lost results that are needed, and sends the worker's tasks to others.
    pub(crate) fn worker_gone(&mut self, id: WorkerId, departure: Departure) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.counts.remove(id);
        let (given, results) = (worker.sent.len(), worker.holds.len());
        tracing::info!(worker = id, ?departure, given, results, "a worker is gone");
        self.actions.extend(
            self.clients.keys().map(|client| SchedulerAction::Client(*client, ToClient::Left { worker: id })),
        );
        self.actions.extend(
            self.workers.keys().map(|other| SchedulerAction::Worker(*other, ToWorker::Left { worker: id })),
        );
        let waiting = worker.queue.all(&self.tasks, super::task::QueueId::Worker(id));
        // First, since a result lost below may be an input of these tasks.
        for index in worker.sent.iter().chain(&waiting) {
            self.tasks.set_stage(*index, Stage::Waiting { missing: 0 });
        }
        for index in worker.holds {
            self.copy_lost(index, id);
        }
        for index in worker.expected {
            self.fail_with(
                index,
                ErrorKind::Lost,
                "the worker that was to store this scattered data is gone",
            );
        }
        if departure == Departure::Died {
            self.counts.workers_lost += 1;
            self.count_deaths(&worker.sent, worker.suspect);
        }
        for index in worker.sent.into_iter().chain(waiting) {
            self.recheck_inputs(index);
        }
    }

    pub(crate) fn on_worker_message(&mut self, id: WorkerId, message: FromWorker) -> Result<(), Violation> {
        let worker =
            self.workers.get(&id).ok_or(Violation::protocol("a message of a worker that is gone"))?;
        match message {
            FromWorker::Done { bytes, .. } if bytes > worker.offer.memory_bytes_max.min(VALUE_LEN_MAX) => {
                return Err(Violation::protocol("a result that is larger than its worker's memory"));
            }
            FromWorker::Done { key, attempt, bytes, micros } => match self.end_attempt(id, key, attempt) {
                Some(index) => self.done(index, id, bytes, micros),
                None => self.free_unexpected(id, key),
            },
            FromWorker::Failed { key, attempt, failure } => {
                if let Some(index) = self.end_attempt(id, key, attempt) {
                    self.counts.runs_failed += 1;
                    self.fail(index, &Arc::new(failure.truncated()));
                }
            }
            FromWorker::Returned { key, attempt, lacking } => {
                if lacking.len() > INPUTS_MAX {
                    return Err(Violation::protocol("more inputs than a task may have"));
                }
                if let Some(index) = self.end_attempt(id, key, attempt) {
                    let inputs: FxHashSet<_> = self.tasks[index].inputs.iter().copied().collect();
                    let is_input =
                        |(key, _): &(Key, _)| self.tasks.find(*key).is_none_or(|it| inputs.contains(&it));
                    if !lacking.iter().all(is_input) {
                        return Err(Violation::protocol("a missing input that is no input of the task"));
                    }
                    self.returned(index, &lacking);
                }
            }
            FromWorker::HasCopy { key } => match self.tasks.find(key) {
                Some(index) if matches!(self.tasks[index].stage, Stage::Done) => self.add_holder(index, id),
                _ => self.free_unexpected(id, key),
            },
            FromWorker::Transferred { from, path, bytes } => self.record_transfer(from, id, &path, bytes)?,
        }
        Ok(())
    }

    /// Ends the attempt, if the worker has it. The task is then waiting, with no input missing.
    fn end_attempt(&mut self, id: WorkerId, key: Key, attempt: Attempt) -> Option<Index> {
        let index = self.tasks.find(key)?;
        match self.tasks[index].stage {
            Stage::Sent { worker, attempt: sent, .. } if (worker, sent) == (id, attempt) => {
                self.detach(index);
                self.tasks.set_stage(index, Stage::Waiting { missing: 0 });
                Some(index)
            }
            _ => None,
        }
    }

    /// A late message: the worker's copy is not needed.
    fn free_unexpected(&mut self, id: WorkerId, key: Key) {
        let holds = self.tasks.find(key).is_some_and(|index| self.tasks[index].holders.contains(&id));
        if !holds {
            self.actions.push(SchedulerAction::Worker(id, ToWorker::Free { key }));
        }
    }
}

const UNKNOWN_CLIENT: Violation = Violation::protocol("a message of a client that is gone");
