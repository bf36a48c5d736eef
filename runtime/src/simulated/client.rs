//! The driver of a simulated client, and its script. It submits, scatters, queries, cancels and releases,
//! then awaits and releases its remaining tasks; or it leaves early.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Poll, Waker};

use super::graph::{Behavior, Datum};
use super::rng::Rng;
use super::simulation::{Event, PeerId, Requester, Simulation};
use crate::client::{ClientState, TRIES_MAX};
use crate::error::{Error, ErrorKind};
use crate::protocol::{ClientId, FromClient, Key, TaskArguments, ToClient, WorkerId};

#[derive(Debug)]
pub(super) struct SimulatedClient {
    pub(super) known: BTreeSet<WorkerId>,
    state: ClientState,
    shape: Shape,
    /// Actions left before it awaits the remaining tasks.
    actions_left: u64,
    futures: BTreeMap<Key, FutureState>,
    /// Requests that precede scattered data.
    requests: BTreeMap<u64, (Key, WorkerId)>,
    is_gone: bool,
}

/// The shape of a graph.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Chain,
    Tree,
    FanIn,
    Shared,
    Mixed,
}

/// The client's state for one future.
#[derive(Debug, Default)]
struct FutureState {
    /// The data has not been sent to a worker yet.
    is_underway: bool,
    is_awaited: bool,
    is_fetching: bool,
    tries: usize,
    has_ended: bool,
}

impl SimulatedClient {
    pub(super) fn new(number: ClientId, rng: &mut Rng) -> Self {
        let shapes = [Shape::Chain, Shape::Tree, Shape::FanIn, Shape::Shared, Shape::Mixed];
        Self {
            known: BTreeSet::new(),
            state: ClientState::new(number),
            shape: shapes[rng.below(5) as usize],
            actions_left: 5 + rng.below(60),
            futures: BTreeMap::new(),
            requests: BTreeMap::new(),
            is_gone: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_gone || self.actions_left == 0 && self.futures.is_empty()
    }

    fn inputs(&self, rng: &mut Rng) -> Vec<Key> {
        let ready = self.futures.iter().filter(|(_, handle)| !handle.is_underway);
        let keys: Vec<Key> = ready.map(|(key, _)| *key).collect();
        let count = match self.shape {
            _ if rng.once_in(4) => 0,
            Shape::Chain => return keys.last().copied().into_iter().collect(),
            Shape::Shared => return keys.first().copied().into_iter().chain(rng.pick(&keys)).collect(),
            Shape::Tree => 2,
            Shape::FanIn => rng.below(20),
            Shape::Mixed => rng.below(5),
        };
        (0..count).filter_map(|_| rng.pick(&keys)).collect()
    }

    fn any(&self, rng: &mut Rng) -> Option<Key> {
        let keys: Vec<Key> = self.futures.keys().copied().collect();
        rng.pick(&keys)
    }
}

impl Simulation {
    pub(super) fn act(&mut self, id: ClientId) {
        let client = self.client(id);
        if client.is_gone {
            return;
        }
        client.actions_left -= 1;
        match self.rng.below(20) {
            0..11 => self.submit(id),
            11..13 => self.scatter(id),
            13..15 => self.release_any(id),
            15..17 => self.await_any(id),
            17 if !self.conditions.is_calm => self.cancel_any(id),
            18 => self.request_any(id),
            19 if !self.conditions.is_calm && self.rng.once_in(30) => return self.client_leaves(id),
            _ => {}
        }
        if self.client(id).actions_left == 0 {
            let futures = &mut self.client(id).futures;
            futures.values_mut().for_each(|handle| handle.is_awaited = true);
        } else {
            let soon = if self.rng.once_in(2) { 0 } else { self.rng.magnitude(6) };
            self.after(soon, Event::ClientActs(id));
        }
        self.flush_client(id);
    }

    fn submit(&mut self, id: ClientId) {
        let inputs = self.clients_inputs(id);
        let behavior = Behavior::random(&mut self.rng, self.conditions.is_calm);
        let (micros, bytes) = (self.rng.magnitude(6), self.bytes());
        let submitted =
            self.client(id).state.submit(behavior.name(), 0, inputs.clone(), TaskArguments::default());
        let key = submitted.expect("an open connection");
        self.graph.add(key, behavior, inputs, micros, bytes);
        self.client(id).futures.insert(key, FutureState::default());
    }

    fn clients_inputs(&mut self, id: ClientId) -> Vec<Key> {
        let mut rng = Rng::new(self.rng.next());
        self.client(id).inputs(&mut rng)
    }

    fn scatter(&mut self, id: ClientId) {
        let workers: Vec<_> = self.client(id).known.iter().copied().collect();
        let Some(worker) = self.rng.pick(&workers) else { return };
        let bytes = self.bytes();
        let client = self.client(id);
        let key = client.state.scatter(worker).expect("an open connection");
        let request =
            client.state.request(|request| FromClient::WhoHas { request, key }).expect("an open connection");
        client.requests.insert(request, (key, worker));
        client.futures.insert(key, FutureState { is_underway: true, ..FutureState::default() });
        self.graph.add(key, Behavior::Scattered, Vec::new(), 0, bytes);
    }

    /// The worker stored the value, or refused it.
    pub(super) fn client_put_done(&mut self, id: ClientId, key: Key, is_stored: bool) {
        let client = self.client(id);
        if let Some(handle) = client.futures.get_mut(&key) {
            handle.is_underway = false;
            if !is_stored {
                self.release(id, key);
            }
        }
        self.flush_client(id);
    }

    fn release_any(&mut self, id: ClientId) {
        let mut rng = Rng::new(self.rng.next());
        if let Some(key) = self.client(id).any(&mut rng) {
            self.release(id, key);
        }
    }

    fn release(&mut self, id: ClientId, key: Key) {
        let client = self.client(id);
        client.futures.remove(&key);
        client.state.release(key);
    }

    fn await_any(&mut self, id: ClientId) {
        let mut rng = Rng::new(self.rng.next());
        let client = self.client(id);
        if let Some(key) = client.any(&mut rng)
            && let Some(handle) = client.futures.get_mut(&key)
        {
            handle.is_awaited = true;
        }
    }

    fn cancel_any(&mut self, id: ClientId) {
        let mut rng = Rng::new(self.rng.next());
        if let Some(key) = self.client(id).any(&mut rng) {
            self.graph.spec(key).is_cancelled = true;
            self.client(id).state.cancel(key);
        }
    }

    fn request_any(&mut self, id: ClientId) {
        let mut rng = Rng::new(self.rng.next());
        let client = self.client(id);
        if let Some(key) = client.any(&mut rng) {
            client.state.request(|request| FromClient::WhoHas { request, key }).expect("an open connection");
        }
    }

    fn client_leaves(&mut self, id: ClientId) {
        self.client(id).is_gone = true;
        self.client_goes(id);
    }

    pub(super) fn on_client_messages(&mut self, id: ClientId, messages: Vec<ToClient>) {
        for message in messages {
            let client = self.client(id);
            match message {
                ToClient::Joined { worker, .. } => _ = client.known.insert(worker),
                ToClient::Left { worker } => _ = client.known.remove(&worker),
                ToClient::Holders { request, .. } => {
                    if let Some((key, worker)) = client.requests.remove(&request) {
                        self.start_put(id, key, worker);
                    }
                }
                message => client.state.on_message(message),
            }
        }
        self.flush_client(id);
    }

    fn start_put(&mut self, client: ClientId, key: Key, worker: WorkerId) {
        if self.client(client).known.contains(&worker) && !self.client(client).is_gone {
            let delay = self.delay();
            self.after(delay, Event::PutRequested { worker, client, key });
        } else {
            self.client_put_done(client, key, false);
        }
    }

    pub(super) fn client_fetched(&mut self, id: ClientId, key: Key, holder: WorkerId, datum: Option<Datum>) {
        let client = self.client(id);
        let Some(handle) = client.futures.get_mut(&key) else { return };
        handle.is_fetching = false;
        match datum {
            Some(datum) => self.ended(id, key, Ok(datum)),
            None => {
                handle.tries += 1;
                if handle.tries == TRIES_MAX {
                    let error = Error::new(ErrorKind::Lost, "no worker sent it");
                    self.ended(id, key, Err(error));
                } else {
                    client.state.fetch_failed(key, holder);
                }
            }
        }
        self.flush_client(id);
    }

    fn ended(&mut self, id: ClientId, key: Key, outcome: Result<Datum, Error>) {
        self.graph.check_outcome(key, &outcome, self.conditions);
        if let Some(handle) = self.client(id).futures.get_mut(&key) {
            handle.has_ended = true;
        }
    }

    /// Polls the futures, and sends queued messages.
    fn flush_client(&mut self, id: ClientId) {
        let client = self.client(id);
        if client.is_gone {
            return;
        }
        let awaited = |handle: &FutureState| handle.is_awaited && !handle.is_fetching && !handle.has_ended;
        let keys: Vec<Key> =
            client.futures.iter().filter(|(_, handle)| awaited(handle)).map(|(key, _)| *key).collect();
        for key in keys {
            match self.client(id).state.poll(key, Waker::noop()) {
                Poll::Pending => {}
                Poll::Ready(Ok((holder, _))) => {
                    if let Some(handle) = self.client(id).futures.get_mut(&key) {
                        handle.is_fetching = true;
                    }
                    self.fetch(Requester::Client(id), key, holder);
                }
                Poll::Ready(Err(error)) => self.ended(id, key, Err(error)),
            }
        }
        let client = self.client(id);
        if client.actions_left == 0 && client.futures.values().all(|handle| handle.has_ended) {
            let keys: Vec<Key> = client.futures.keys().copied().collect();
            keys.into_iter().for_each(|key| self.release(id, key));
            assert_eq!(self.client(id).state.tasks(), 0, "the client forgets what it released");
        }
        let messages = self.client(id).state.take_messages().collect();
        self.send_to_scheduler(PeerId::Client(id), messages, Event::FromClient);
    }
}
