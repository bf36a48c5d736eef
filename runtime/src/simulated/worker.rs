//! The driver of a simulated worker: values are numbers, and functions take simulated time.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Behavior, Datum};
use super::simulation::{Event, PeerId, Requester, Simulation};
use crate::error::{ErrorKind, Failure};
use crate::protocol::{Key, ToWorker, WorkerId};
use crate::worker::{Start, WorkerAction, WorkerState};

#[derive(Debug)]
pub(super) struct SimulatedWorker {
    pub(super) state: WorkerState,
    pub(super) values: BTreeMap<Key, Datum>,
    pub(super) is_alive: bool,
    /// The worker is paused until this time.
    pub(super) stopped_until: u64,
    known: BTreeSet<WorkerId>,
}

impl SimulatedWorker {
    pub(super) fn new(slots: u32, bytes_max: u64) -> Self {
        Self {
            state: WorkerState::new(slots as usize, bytes_max),
            values: BTreeMap::new(),
            is_alive: true,
            stopped_until: 0,
            known: BTreeSet::new(),
        }
    }

    fn on_message(&mut self, message: ToWorker) {
        match message {
            ToWorker::Joined { worker, .. } => _ = self.known.insert(worker),
            ToWorker::Left { worker } => _ = self.known.remove(&worker),
            ToWorker::Function { .. } => {}
            ToWorker::Assign(assignment) => self.state.assigned(assignment),
            ToWorker::Drop { attempt, .. } => self.state.dropped(attempt),
            ToWorker::Recall { attempt, .. } => self.state.recalled(attempt),
            ToWorker::Free { key } => self.state.freed(key),
            ToWorker::Refused(failure) => panic!("the worker was refused: {failure:?}"),
        }
    }
}

impl Simulation {
    pub(super) fn on_worker_messages(&mut self, id: WorkerId, messages: Vec<ToWorker>) {
        let worker = self.worker(id);
        messages.into_iter().for_each(|message| worker.on_message(message));
        self.flush_worker(id);
    }

    pub(super) fn worker_fetched(&mut self, id: WorkerId, key: Key, datum: Option<Datum>) {
        let worker = self.worker(id);
        worker.values.extend(datum.map(|datum| (key, datum)));
        worker.state.fetched(key, datum.map(|datum| datum.bytes));
        self.flush_worker(id);
    }

    /// A client puts a value. Returns whether the worker stored it.
    pub(super) fn worker_put(&mut self, id: WorkerId, key: Key) -> bool {
        let bytes = self.graph.spec(key).bytes;
        let datum = self.graph.evaluated(key, &[], bytes);
        let worker = self.worker(id);
        let has_room = worker.state.reserve(key, bytes).is_ok();
        if has_room {
            worker.state.release_reservation(bytes);
            worker.state.stored(key, bytes);
            worker.values.insert(key, datum);
            self.flush_worker(id);
        }
        has_room
    }

    pub(super) fn worker_ended(&mut self, id: WorkerId, start: &Start, inputs: &[Datum]) {
        let spec = self.graph.spec(start.key);
        if let Behavior::Kills(times @ 1..) = spec.behavior {
            if times != u32::MAX {
                spec.behavior = Behavior::Kills(times - 1);
            }
            let is_first = !std::mem::replace(&mut spec.has_killed, true);
            self.conditions.death_causes += u32::from(is_first);
            return self.kill(id);
        }
        let failed = match spec.behavior {
            Behavior::Fails => Some(ErrorKind::Failed),
            Behavior::Panics => Some(ErrorKind::Panicked),
            _ => None,
        };
        let (bytes, micros, name) = (spec.bytes, spec.micros, spec.behavior.name());
        let outcome = match failed {
            Some(kind) => Err(Failure::new(kind, "as planned").of(name)),
            None => Ok(self.graph.evaluated(start.key, inputs, bytes)),
        };
        let worker = self.worker(id);
        worker.values.extend(outcome.iter().map(|datum| (start.key, *datum)));
        let result = outcome.map(|datum| datum.bytes);
        worker.state.ended(start.attempt, start.key, result, micros as u32);
        self.flush_worker(id);
    }

    /// Performs the actions of its state machine.
    pub(super) fn flush_worker(&mut self, id: WorkerId) {
        let worker = self.worker(id);
        let actions = worker.state.take_actions();
        let mut messages = Vec::new();
        for action in actions {
            match action {
                WorkerAction::Send(message) => messages.push(message),
                WorkerAction::Discard(key) => _ = self.worker(id).values.remove(&key),
                WorkerAction::Fetch { key, from, .. } => self.fetch(Requester::Worker(id), key, from),
                WorkerAction::Begin(start) => self.begin(id, start),
            }
        }
        let worker = self.worker(id);
        worker.state.check(|key| worker.values.contains_key(&key));
        self.send_to_scheduler(PeerId::Worker(id), messages, Event::FromWorker);
    }

    fn begin(&mut self, id: WorkerId, start: Start) {
        let spec = self.graph.spec(start.key);
        assert_eq!(start.inputs, spec.inputs, "{:?} is begun with its inputs", start.key);
        let duration = spec.micros;
        let worker = self.worker(id);
        let data = start.inputs.iter().map(|key| worker.values.get(key).copied());
        let inputs = data.collect::<Option<Vec<_>>>().expect("an attempt begins when its inputs are here");
        self.after(duration, Event::AttemptEnded { worker: id, start, inputs });
    }

    pub(super) fn knows(&mut self, requester: Requester, holder: WorkerId) -> bool {
        match requester {
            Requester::Worker(id) => self.worker(id).known.contains(&holder),
            Requester::Client(id) => self.client(id).known.contains(&holder),
        }
    }
}
