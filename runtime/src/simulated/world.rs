//! The clock, the network, the scheduler's shell, and what befalls workers.
//!
//! A line to the scheduler and back keeps its order, each word as late as the seed has it; questions for data and their answers
//! overtake each other. That is what the transport promises, and no more; its own simulation shows that it does.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use rustc_hash::FxHasher;

use super::client::Client;
use super::dice::Dice;
use super::graph::{Datum, Ends, Facts, Graph};
use super::worker::Worker;
use crate::protocol::{ClientId, FromClient, FromWorker, Key, Offer, ToClient, ToWorker, WorkerId};
use crate::scheduler::{Action, Departure, State};
use crate::worker::Start;

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000 * MILLI;
/// A peer that says nothing is lost within this time.
const LOST_MAX: u64 = 12 * SECOND;
/// The scheduler is told the time so often, and tasks wait so long.
const TICK: u64 = SECOND;
const STALL_TIMEOUT: u64 = 60 * SECOND;
/// Nothing befalls workers from then on, but what tasks do to them.
const PEACE: u64 = 20 * SECOND;
/// All is over by then, and within so many steps.
const TIME_MAX: u64 = 3_600 * SECOND;
const STEPS_MAX: u64 = 300_000;
/// The scheduler's invariants are looked at once in about so many steps; at each of one seed that was asked for.
const CHECKED: u64 = 8;

#[derive(Debug)]
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) now: u64,
    pub(super) graph: Graph,
    pub(super) facts: Facts,
    /// Each event is printed.
    pub(super) is_told: bool,
    scheduler: State,
    workers: BTreeMap<WorkerId, Worker>,
    clients: BTreeMap<ClientId, Client>,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    /// When what was said last is heard.
    lines: BTreeMap<(Peer, bool), u64>,
    /// Powers of ten of µs that words take, and of the bytes of values.
    lateness: u64,
    size: u64,
    joining: u32,
    /// Workers that the scheduler knows, and since when it knows none.
    members: u32,
    deserted_since: u64,
}

/// Who has a line to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Peer {
    Worker(WorkerId),
    Client(ClientId),
}

/// Who asks a worker for data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    Worker(WorkerId),
    Client(ClientId),
}

#[derive(Debug)]
pub(super) enum Event {
    Tick,
    Join,
    Befall,
    FromWorker(WorkerId, Vec<FromWorker>),
    WorkerGone(WorkerId, Departure),
    FromClient(ClientId, Vec<FromClient>),
    ClientGone(ClientId),
    ToWorker(WorkerId, Vec<ToWorker>),
    ToClient(ClientId, Vec<ToClient>),
    Asked { holder: WorkerId, asker: Asker, key: Key, by: u64 },
    Answered { asker: Asker, key: Key, holder: WorkerId, datum: Option<Datum> },
    Given { worker: WorkerId, client: ClientId, key: Key },
    Taken { client: ClientId, key: Key, is_kept: bool },
    Ended { worker: WorkerId, start: Start, inputs: Vec<Datum> },
    Acts(ClientId),
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let facts = Facts { is_calm: dice.once_in(2), is_tight: dice.once_in(3), ..Facts::default() };
        let facts = Facts { is_tight: facts.is_tight && !facts.is_calm, ..facts };
        let lateness = 1 + dice.below(if facts.is_calm { 4 } else { 6 });
        let mut world = Self {
            now: 0,
            graph: Graph::default(),
            facts,
            is_told: false,
            scheduler: State::default(),
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            lines: BTreeMap::new(),
            lateness,
            size: 1 + dice.below(5),
            joining: 0,
            members: 0,
            deserted_since: 0,
            dice,
        };
        world.after(0, Event::Tick);
        for _ in 0..1 + world.dice.below(3) {
            let client = world.scheduler.client_joined().expect("a client");
            world.clients.insert(client, Client::new(client, &mut world.dice));
            world.after(0, Event::Acts(client));
        }
        for _ in 0..1 + world.dice.below(5) {
            world.join_soon();
        }
        if !facts.is_calm {
            world.after(0, Event::Befall);
        }
        world.flush();
        world
    }

    /// Runs to the end of all: how its tasks ended, and a number that is the same for the same run.
    pub(super) fn run(mut self) -> (Ends, u64) {
        let mut trace = FxHasher::default();
        for step in 0.. {
            assert!(step < STEPS_MAX && self.now < TIME_MAX, "it never ends: {self:#?}");
            let Some(((now, _), event)) = self.events.pop_first() else { break };
            (now, std::mem::discriminant(&event)).hash(&mut trace);
            self.now = now;
            if self.is_told {
                println!("{:>10.3} ms {event:?}", now as f64 / 1e3);
            }
            self.happen(event);
        }
        self.scheduler.check_empty();
        for worker in self.workers.values().filter(|worker| worker.is_alive) {
            worker.state.check_empty();
            assert!(worker.values.is_empty(), "values are left: {:?}", worker.values);
        }
        (self.graph.ends, trace.finish())
    }

    fn happen(&mut self, event: Event) {
        if let Some((worker, until)) = self.stopped(&event) {
            return self.put_off(worker, until, event);
        }
        match event {
            Event::Tick => {
                self.facts.was_deserted |=
                    self.members == 0 && self.now - self.deserted_since >= STALL_TIMEOUT;
                self.scheduler.tick(Duration::from_micros(self.now));
                self.flush();
                if self.clients.values().any(|client| !client.is_over()) {
                    self.after(TICK, Event::Tick);
                }
            }
            Event::Join => self.join(),
            Event::Befall => self.befall(),
            Event::FromWorker(id, words) => {
                for word in words {
                    self.scheduler.worker_said(id, word).expect("words of a worker");
                }
                self.flush();
            }
            Event::WorkerGone(id, departure) => {
                self.scheduler.worker_gone(id, departure);
                self.flush();
                self.gone();
            }
            Event::FromClient(id, words) => {
                for word in words {
                    self.scheduler.client_said(id, word).expect("words of a client");
                }
                self.flush();
            }
            Event::ClientGone(id) => {
                self.scheduler.client_left(id);
                self.flush();
            }
            Event::ToWorker(id, words) => self.worker_heard(id, words),
            Event::ToClient(id, words) => self.client_heard(id, words),
            Event::Asked { holder, asker, key, .. } => {
                let datum = self.worker(holder).values.get(&key).copied();
                let takes = self.late() + datum.map_or(0, |datum| datum.bytes / 1_000);
                self.after(takes, Event::Answered { asker, key, holder, datum });
            }
            Event::Answered { asker: Asker::Worker(id), key, datum, .. } => {
                self.worker_fetched(id, key, datum)
            }
            Event::Answered { asker: Asker::Client(id), key, holder, datum } => {
                self.client_fetched(id, key, holder, datum);
            }
            Event::Given { worker, client, key } => {
                let is_kept = self.worker_given(worker, key);
                let late = self.late();
                self.after(late, Event::Taken { client, key, is_kept });
            }
            Event::Taken { client, key, is_kept } => self.client_gave(client, key, is_kept),
            Event::Ended { worker, start, inputs } => self.worker_ended(worker, &start, &inputs),
            Event::Acts(client) => self.act(client),
        }
    }

    // ---- The network ----

    pub(super) fn after(&mut self, micros: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + micros, self.scheduled), event);
    }

    /// How late something is.
    pub(super) fn late(&mut self) -> u64 {
        1 + self.dice.magnitude(self.lateness)
    }

    pub(super) fn bytes(&mut self) -> u64 {
        self.dice.magnitude(self.size)
    }

    /// Says words to the scheduler.
    pub(super) fn say_to_scheduler<W>(&mut self, peer: Peer, words: Vec<W>, event: fn(u32, Vec<W>) -> Event) {
        let (Peer::Worker(id) | Peer::Client(id)) = peer;
        self.say((peer, true), words, |words| event(id, words));
    }

    /// Says words together, or one by one.
    fn say<W>(&mut self, line: (Peer, bool), words: Vec<W>, event: impl Fn(Vec<W>) -> Event) {
        if words.is_empty() {
            return;
        }
        let batches: Vec<Vec<W>> = match self.dice.once_in(4) {
            true => words.into_iter().map(|word| vec![word]).collect(),
            false => vec![words],
        };
        for batch in batches {
            let at = self.arrives(line);
            self.after(at - self.now, event(batch));
        }
    }

    /// When what is said now is heard: after all that was said before.
    fn arrives(&mut self, line: (Peer, bool)) -> u64 {
        let late = self.late();
        let last = self.lines.entry(line).or_default();
        *last = (self.now + late).max(*last);
        *last
    }

    /// Does what the scheduler answers.
    fn flush(&mut self) {
        let actions = self.scheduler.take_actions();
        // Which takes longer than all the rest.
        if self.is_told || self.scheduled.is_multiple_of(CHECKED) {
            self.scheduler.check();
        }
        let mut to_workers = BTreeMap::<_, Vec<_>>::new();
        let mut to_clients = BTreeMap::<_, Vec<_>>::new();
        for action in actions {
            match action {
                Action::Worker(id, word) => to_workers.entry(id).or_default().push(word),
                Action::Client(id, word) => to_clients.entry(id).or_default().push(word),
            }
        }
        for (id, words) in to_workers {
            self.say((Peer::Worker(id), false), words, |words| Event::ToWorker(id, words));
        }
        for (id, words) in to_clients {
            self.say((Peer::Client(id), false), words, |words| Event::ToClient(id, words));
        }
    }

    /// Asks a worker for data.
    pub(super) fn fetch(&mut self, asker: Asker, key: Key, holder: WorkerId) {
        // It left, or its connection breaks: an answer comes all the same.
        if !self.knows(asker, holder) || !self.facts.is_calm && self.dice.once_in(50) {
            return self.after(1, Event::Answered { asker, key, holder, datum: None });
        }
        let late = self.late();
        self.after(late, Event::Asked { holder, asker, key, by: self.now + LOST_MAX });
    }

    /// The worker at which this happens, if it stands still, and until when; for ever, if it is dead.
    fn stopped(&self, event: &Event) -> Option<(WorkerId, u64)> {
        let id = match event {
            Event::ToWorker(id, _)
            | Event::Asked { holder: id, .. }
            | Event::Given { worker: id, .. }
            | Event::Ended { worker: id, .. }
            | Event::Answered { asker: Asker::Worker(id), .. } => *id,
            _ => return None,
        };
        let worker = &self.workers[&id];
        let until = if worker.is_alive { worker.stopped_until } else { u64::MAX };
        (until > self.now).then_some((id, until))
    }

    fn put_off(&mut self, worker: WorkerId, until: u64, event: Event) {
        let is_dead = until == u64::MAX;
        match event {
            Event::Asked { holder, asker, key, by } if is_dead || until > by => {
                let noticed = self.dice.below(by.saturating_sub(self.now) + 1);
                self.after(noticed, Event::Answered { asker, key, holder, datum: None });
            }
            Event::Given { client, key, .. } if is_dead => {
                let noticed = self.dice.below(LOST_MAX);
                self.after(noticed, Event::Taken { client, key, is_kept: false });
            }
            _ if is_dead => assert!(!self.workers[&worker].is_alive),
            event => self.after(until - self.now, event),
        }
    }

    // ---- Workers come and go ----

    pub(super) fn worker(&mut self, id: WorkerId) -> &mut Worker {
        self.workers.get_mut(&id).expect("a worker that joined")
    }

    pub(super) fn client(&mut self, id: ClientId) -> &mut Client {
        self.clients.get_mut(&id).expect("a client that joined")
    }

    pub(super) fn client_goes(&mut self, id: ClientId) {
        let at = self.arrives((Peer::Client(id), true));
        self.after(at - self.now, Event::ClientGone(id));
    }

    fn join_soon(&mut self) {
        self.joining += 1;
        let soon = match self.dice.below(60) {
            0 if !self.facts.is_calm => 2 * STALL_TIMEOUT + self.dice.below(STALL_TIMEOUT),
            _ => self.dice.magnitude(6),
        };
        self.after(soon, Event::Join);
    }

    fn join(&mut self) {
        self.joining -= 1;
        let slots = 1 + self.dice.below(4) as u32;
        let memory_bytes_max = match self.facts.is_tight {
            true => 10 + self.dice.below(3 * 10u64.pow(self.size as u32)),
            false => 1 << 40,
        };
        let offer = Offer { address: String::new(), slots, memory_bytes_max };
        let id = self.scheduler.worker_joined(offer);
        self.workers.insert(id, Worker::new(slots, memory_bytes_max));
        self.members += 1;
        self.flush();
    }

    /// A worker is gone, as the scheduler knows by now.
    fn gone(&mut self) {
        self.members -= 1;
        self.deserted_since = self.now;
        let living = self.workers.values().filter(|worker| worker.is_alive).count();
        if self.joining == 0 && (living == 0 || self.dice.once_in(2)) {
            self.join_soon();
        }
    }

    fn befall(&mut self) {
        if self.now < PEACE {
            let again = 1 + self.dice.magnitude(7);
            self.after(again, Event::Befall);
        }
        let living: Vec<_> =
            self.workers.iter().filter(|(_, worker)| worker.is_alive).map(|(id, _)| *id).collect();
        let Some(id) = self.dice.pick(&living) else { return };
        match self.dice.below(8) {
            0 => {
                self.facts.culprits += 1;
                self.kill(id);
            }
            1 => self.leave(id),
            2 => self.join_soon(),
            3 => {
                // For longer it is as good as dead.
                let until = self.now + self.dice.below(LOST_MAX - SECOND);
                let worker = self.worker(id);
                // What it has not heard yet must not be overtaken.
                worker.stopped_until = worker.stopped_until.max(until);
            }
            _ => {}
        }
    }

    /// It is gone without a word; the scheduler learns of it late, and may have lost what it said last.
    pub(super) fn kill(&mut self, id: WorkerId) {
        self.worker(id).is_alive = false;
        if self.dice.once_in(2) {
            let heard = self.now + self.late();
            self.events.retain(|(at, _), event| {
                !matches!(event, Event::FromWorker(from, _) if *from == id) || *at < heard
            });
        }
        let at = self.arrives((Peer::Worker(id), true)) + self.dice.below(LOST_MAX);
        self.after(at - self.now, Event::WorkerGone(id, Departure::Died));
    }

    fn leave(&mut self, id: WorkerId) {
        self.worker(id).is_alive = false;
        let at = self.arrives((Peer::Worker(id), true));
        self.after(at - self.now, Event::WorkerGone(id, Departure::Left));
    }
}
