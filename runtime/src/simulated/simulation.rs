//! The clock, the network, the scheduler's driver, and the faults of workers.
//!
//! A connection to the scheduler keeps its order, with seeded delays. Requests for data and their replies
//! overtake each other. The transport promises this and no more; its own simulation tests that.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use rustc_hash::FxHasher;

use super::client::SimulatedClient;
use super::graph::{Conditions, Datum, Graph, Outcomes};
use super::rng::Rng;
use super::worker::SimulatedWorker;
use crate::protocol::{ClientId, FromClient, FromWorker, Key, Offer, ToClient, ToWorker, WorkerId};
use crate::scheduler::{Departure, SchedulerAction, SchedulerState};
use crate::worker::Start;

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000 * MILLI;
/// A silent peer is lost within this time.
const LOST_MAX: u64 = 12 * SECOND;
/// The interval of ticks, and the stall timeout.
const TICK: u64 = SECOND;
const STALL_TIMEOUT: u64 = 60 * SECOND;
/// No faults are injected after this time; tasks may still kill workers.
const FAULTS_END: u64 = 20 * SECOND;
/// Limits of a simulation: simulated time and steps.
const TIME_MAX: u64 = 3_600 * SECOND;
const STEPS_MAX: u64 = 300_000;
/// The scheduler's invariants are checked about once in this many steps, and at each step of a single seed.
const CHECK_INTERVAL: u64 = 8;

#[derive(Debug)]
pub(super) struct Simulation {
    pub(super) rng: Rng,
    pub(super) now: u64,
    pub(super) graph: Graph,
    pub(super) conditions: Conditions,
    /// Prints each event.
    pub(super) prints_events: bool,
    scheduler: SchedulerState,
    workers: BTreeMap<WorkerId, SimulatedWorker>,
    clients: BTreeMap<ClientId, SimulatedClient>,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    /// When the last message of each direction arrives.
    last_arrivals: BTreeMap<(PeerId, bool), u64>,
    /// Powers of ten: of message delays in µs, and of values' bytes.
    delay_magnitude: u64,
    size_magnitude: u64,
    joining: u32,
    /// Workers known to the scheduler, and since when it knows none.
    members: u32,
    no_worker_since: u64,
}

/// A peer of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum PeerId {
    Worker(WorkerId),
    Client(ClientId),
}

/// A peer that requests data from a worker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Requester {
    Worker(WorkerId),
    Client(ClientId),
}

#[derive(Debug)]
pub(super) enum Event {
    Tick,
    Join,
    Fault,
    FromWorker(WorkerId, Vec<FromWorker>),
    WorkerGone(WorkerId, Departure),
    FromClient(ClientId, Vec<FromClient>),
    ClientGone(ClientId),
    ToWorker(WorkerId, Vec<ToWorker>),
    ToClient(ClientId, Vec<ToClient>),
    FetchRequested { holder: WorkerId, requester: Requester, key: Key, by: u64 },
    FetchReplied { requester: Requester, key: Key, holder: WorkerId, datum: Option<Datum> },
    PutRequested { worker: WorkerId, client: ClientId, key: Key },
    PutReplied { client: ClientId, key: Key, is_stored: bool },
    AttemptEnded { worker: WorkerId, start: Start, inputs: Vec<Datum> },
    ClientActs(ClientId),
}

impl Simulation {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let conditions =
            Conditions { is_calm: rng.once_in(2), is_tight: rng.once_in(3), ..Conditions::default() };
        let conditions = Conditions { is_tight: conditions.is_tight && !conditions.is_calm, ..conditions };
        let delay_magnitude = 1 + rng.below(if conditions.is_calm { 4 } else { 6 });
        let mut simulation = Self {
            now: 0,
            graph: Graph::default(),
            conditions,
            prints_events: false,
            scheduler: SchedulerState::default(),
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            last_arrivals: BTreeMap::new(),
            delay_magnitude,
            size_magnitude: 1 + rng.below(5),
            joining: 0,
            members: 0,
            no_worker_since: 0,
            rng,
        };
        simulation.after(0, Event::Tick);
        for _ in 0..1 + simulation.rng.below(3) {
            let client = simulation.scheduler.client_joined().expect("a client");
            simulation.clients.insert(client, SimulatedClient::new(client, &mut simulation.rng));
            simulation.after(0, Event::ClientActs(client));
        }
        for _ in 0..1 + simulation.rng.below(5) {
            simulation.join_soon();
        }
        if !conditions.is_calm {
            simulation.after(0, Event::Fault);
        }
        simulation.flush();
        simulation
    }

    /// Runs to the end. Returns the outcomes of tasks, and a hash that is equal for equal runs.
    pub(super) fn run(mut self) -> (Outcomes, u64) {
        let mut trace = FxHasher::default();
        for step in 0.. {
            assert!(step < STEPS_MAX && self.now < TIME_MAX, "the simulation does not end: {self:#?}");
            let Some(((now, _), event)) = self.events.pop_first() else { break };
            (now, std::mem::discriminant(&event)).hash(&mut trace);
            self.now = now;
            if self.prints_events {
                println!("{:>10.3} ms {event:?}", now as f64 / 1e3);
            }
            self.handle(event);
        }
        self.scheduler.check_empty();
        for worker in self.workers.values().filter(|worker| worker.is_alive) {
            worker.state.check_empty();
            assert!(worker.values.is_empty(), "values are left: {:?}", worker.values);
        }
        (self.graph.outcomes, trace.finish())
    }

    fn handle(&mut self, event: Event) {
        if let Some((worker, until)) = self.stopped(&event) {
            return self.defer(worker, until, event);
        }
        match event {
            Event::Tick => {
                self.conditions.had_no_worker |=
                    self.members == 0 && self.now - self.no_worker_since >= STALL_TIMEOUT;
                self.scheduler.tick(Duration::from_micros(self.now));
                self.flush();
                if self.clients.values().any(|client| !client.is_over()) {
                    self.after(TICK, Event::Tick);
                }
            }
            Event::Join => self.join(),
            Event::Fault => self.inject_fault(),
            Event::FromWorker(id, messages) => {
                for message in messages {
                    self.scheduler.on_worker_message(id, message).expect("messages of a worker");
                }
                self.flush();
            }
            Event::WorkerGone(id, departure) => {
                self.scheduler.worker_gone(id, departure);
                self.flush();
                self.gone();
            }
            Event::FromClient(id, messages) => {
                for message in messages {
                    self.scheduler.on_client_message(id, message).expect("messages of a client");
                }
                self.flush();
            }
            Event::ClientGone(id) => {
                self.scheduler.client_left(id);
                self.flush();
            }
            Event::ToWorker(id, messages) => self.on_worker_messages(id, messages),
            Event::ToClient(id, messages) => self.on_client_messages(id, messages),
            Event::FetchRequested { holder, requester, key, .. } => {
                let datum = self.worker(holder).values.get(&key).copied();
                let duration = self.delay() + datum.map_or(0, |datum| datum.bytes / 1_000);
                self.after(duration, Event::FetchReplied { requester, key, holder, datum });
            }
            Event::FetchReplied { requester: Requester::Worker(id), key, datum, .. } => {
                self.worker_fetched(id, key, datum)
            }
            Event::FetchReplied { requester: Requester::Client(id), key, holder, datum } => {
                self.client_fetched(id, key, holder, datum);
            }
            Event::PutRequested { worker, client, key } => {
                let is_stored = self.worker_put(worker, key);
                let delay = self.delay();
                self.after(delay, Event::PutReplied { client, key, is_stored });
            }
            Event::PutReplied { client, key, is_stored } => self.client_put_done(client, key, is_stored),
            Event::AttemptEnded { worker, start, inputs } => self.worker_ended(worker, &start, &inputs),
            Event::ClientActs(client) => self.act(client),
        }
    }

    // ---- The network ----

    pub(super) fn after(&mut self, micros: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + micros, self.scheduled), event);
    }

    /// Returns a seeded delay, in µs.
    pub(super) fn delay(&mut self) -> u64 {
        1 + self.rng.magnitude(self.delay_magnitude)
    }

    pub(super) fn bytes(&mut self) -> u64 {
        self.rng.magnitude(self.size_magnitude)
    }

    /// Sends messages to the scheduler.
    pub(super) fn send_to_scheduler<M>(
        &mut self,
        peer: PeerId,
        messages: Vec<M>,
        event: fn(u32, Vec<M>) -> Event,
    ) {
        let (PeerId::Worker(id) | PeerId::Client(id)) = peer;
        self.send((peer, true), messages, |messages| event(id, messages));
    }

    /// Sends messages in one batch, or one by one.
    fn send<M>(&mut self, link: (PeerId, bool), messages: Vec<M>, event: impl Fn(Vec<M>) -> Event) {
        if messages.is_empty() {
            return;
        }
        let batches: Vec<Vec<M>> = match self.rng.once_in(4) {
            true => messages.into_iter().map(|message| vec![message]).collect(),
            false => vec![messages],
        };
        for batch in batches {
            let at = self.arrival_time(link);
            self.after(at - self.now, event(batch));
        }
    }

    /// Returns when a message sent now arrives: after all that were sent before.
    fn arrival_time(&mut self, link: (PeerId, bool)) -> u64 {
        let delay = self.delay();
        let last = self.last_arrivals.entry(link).or_default();
        *last = (self.now + delay).max(*last);
        *last
    }

    /// Sends the scheduler's messages.
    fn flush(&mut self) {
        let actions = self.scheduler.take_actions();
        // The check takes longer than all the rest.
        if self.prints_events || self.scheduled.is_multiple_of(CHECK_INTERVAL) {
            self.scheduler.check();
        }
        let mut to_workers = BTreeMap::<_, Vec<_>>::new();
        let mut to_clients = BTreeMap::<_, Vec<_>>::new();
        for action in actions {
            match action {
                SchedulerAction::Worker(id, message) => to_workers.entry(id).or_default().push(message),
                SchedulerAction::Client(id, message) => to_clients.entry(id).or_default().push(message),
            }
        }
        for (id, messages) in to_workers {
            self.send((PeerId::Worker(id), false), messages, |messages| Event::ToWorker(id, messages));
        }
        for (id, messages) in to_clients {
            self.send((PeerId::Client(id), false), messages, |messages| Event::ToClient(id, messages));
        }
    }

    /// Requests data from a worker.
    pub(super) fn fetch(&mut self, requester: Requester, key: Key, holder: WorkerId) {
        // The holder left, or the data connection broke: a reply comes all the same.
        if !self.knows(requester, holder) || !self.conditions.is_calm && self.rng.once_in(50) {
            return self.after(1, Event::FetchReplied { requester, key, holder, datum: None });
        }
        let delay = self.delay();
        self.after(delay, Event::FetchRequested { holder, requester, key, by: self.now + LOST_MAX });
    }

    /// Returns the worker at which this happens, if it is paused, and until when; for ever if it is dead.
    fn stopped(&self, event: &Event) -> Option<(WorkerId, u64)> {
        let id = match event {
            Event::ToWorker(id, _)
            | Event::FetchRequested { holder: id, .. }
            | Event::PutRequested { worker: id, .. }
            | Event::AttemptEnded { worker: id, .. }
            | Event::FetchReplied { requester: Requester::Worker(id), .. } => *id,
            _ => return None,
        };
        let worker = &self.workers[&id];
        let until = if worker.is_alive { worker.stopped_until } else { u64::MAX };
        (until > self.now).then_some((id, until))
    }

    fn defer(&mut self, worker: WorkerId, until: u64, event: Event) {
        let is_dead = until == u64::MAX;
        match event {
            Event::FetchRequested { holder, requester, key, by } if is_dead || until > by => {
                let noticed = self.rng.below(by.saturating_sub(self.now) + 1);
                self.after(noticed, Event::FetchReplied { requester, key, holder, datum: None });
            }
            Event::PutRequested { client, key, .. } if is_dead => {
                let noticed = self.rng.below(LOST_MAX);
                self.after(noticed, Event::PutReplied { client, key, is_stored: false });
            }
            _ if is_dead => assert!(!self.workers[&worker].is_alive),
            event => self.after(until - self.now, event),
        }
    }

    // ---- Joins, departures and faults ----

    pub(super) fn worker(&mut self, id: WorkerId) -> &mut SimulatedWorker {
        self.workers.get_mut(&id).expect("a worker that joined")
    }

    pub(super) fn client(&mut self, id: ClientId) -> &mut SimulatedClient {
        self.clients.get_mut(&id).expect("a client that joined")
    }

    pub(super) fn client_goes(&mut self, id: ClientId) {
        let at = self.arrival_time((PeerId::Client(id), true));
        self.after(at - self.now, Event::ClientGone(id));
    }

    fn join_soon(&mut self) {
        self.joining += 1;
        let soon = match self.rng.below(60) {
            0 if !self.conditions.is_calm => 2 * STALL_TIMEOUT + self.rng.below(STALL_TIMEOUT),
            _ => self.rng.magnitude(6),
        };
        self.after(soon, Event::Join);
    }

    fn join(&mut self) {
        self.joining -= 1;
        let slots = 1 + self.rng.below(4) as u32;
        let memory_bytes_max = match self.conditions.is_tight {
            true => 10 + self.rng.below(3 * 10u64.pow(self.size_magnitude as u32)),
            false => 1 << 40,
        };
        let offer = Offer { address: String::new(), slots, memory_bytes_max };
        let id = self.scheduler.worker_joined(offer);
        self.workers.insert(id, SimulatedWorker::new(slots, memory_bytes_max));
        self.members += 1;
        self.flush();
    }

    /// The scheduler has noticed that a worker is gone.
    fn gone(&mut self) {
        self.members -= 1;
        self.no_worker_since = self.now;
        let living = self.workers.values().filter(|worker| worker.is_alive).count();
        if self.joining == 0 && (living == 0 || self.rng.once_in(2)) {
            self.join_soon();
        }
    }

    fn inject_fault(&mut self) {
        if self.now < FAULTS_END {
            let again = 1 + self.rng.magnitude(7);
            self.after(again, Event::Fault);
        }
        let living: Vec<_> =
            self.workers.iter().filter(|(_, worker)| worker.is_alive).map(|(id, _)| *id).collect();
        let Some(id) = self.rng.pick(&living) else { return };
        match self.rng.below(8) {
            0 => {
                self.conditions.death_causes += 1;
                self.kill(id);
            }
            1 => self.leave(id),
            2 => self.join_soon(),
            3 => {
                // A longer pause counts as death.
                let until = self.now + self.rng.below(LOST_MAX - SECOND);
                let worker = self.worker(id);
                // Messages that are already deferred must not be overtaken.
                worker.stopped_until = worker.stopped_until.max(until);
            }
            _ => {}
        }
    }

    /// Ends the worker without a message. The scheduler notices late, and may have lost the worker's last
    /// messages.
    pub(super) fn kill(&mut self, id: WorkerId) {
        self.worker(id).is_alive = false;
        if self.rng.once_in(2) {
            let on_message = self.now + self.delay();
            self.events.retain(|(at, _), event| {
                !matches!(event, Event::FromWorker(from, _) if *from == id) || *at < on_message
            });
        }
        let at = self.arrival_time((PeerId::Worker(id), true)) + self.rng.below(LOST_MAX);
        self.after(at - self.now, Event::WorkerGone(id, Departure::Died));
    }

    fn leave(&mut self, id: WorkerId) {
        self.worker(id).is_alive = false;
        let at = self.arrival_time((PeerId::Worker(id), true));
        self.after(at - self.now, Event::WorkerGone(id, Departure::Left));
    }
}
