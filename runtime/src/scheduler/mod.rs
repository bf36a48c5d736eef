//! The scheduler: its state machine ([`state`]), and the shell that brings it what peers say.
//!
//! Whoever receives words takes the state's lock, tells them all, and leaves the answers in the peers' outboxes before it lets
//! go: so each peer hears them in the order in which they were decided.

mod counting;
mod course;
#[cfg(test)]
mod invariants;
mod peers;
mod placing;
mod queue;
mod stall_timeout;
mod state;
mod stats;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use towline::environment::{Environment, System};
use towline::{Address, AvailableMemory, Connection, Endpoint, Listener};

use self::stall_timeout::STALL_TIMEOUT;
use self::state::Violation;
pub(crate) use self::state::{Action, Departure, State};
use crate::address::{self, Seen};
use crate::background::{AtEnd, Background};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::line::{self, Batch, SendQueue};
use crate::metrics::Metrics;
use crate::protocol::{
    ClientId, FromClient, FromWorker, Hello, Offer, Role, SLOTS_MAX, ToClient, ToWorker, VERSION, Welcome,
    WorkerId,
};

/// The state is told the time four times within its stall timeout, and so often at least and at most.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_secs(1);
/// Words of one peer are told in a row for so long, or until their answers are many; then others have their turn.
const TURN: Duration = Duration::from_millis(2);
/// The clock is looked at every so many bytes of words: a look costs as much as the shortest of them.
const CLOCK_EVERY: usize = 256;
/// Memory for the tasks of one client, where nothing else was said, in bytes.
const CLIENT_BYTES_MAX: u64 = 2 << 30;

/// Says where tasks run, and knows where results are. Nothing but words passes it.
///
/// It decides on a thread of its own, or in [another environment](Builder::environment). Dropping it ends it: its workers and
/// clients then see [`SchedulerLost`](ErrorKind::SchedulerLost).
///
/// ```
/// use towline::Endpoint;
/// use towline_runtime::Scheduler;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let scheduler = Scheduler::start(&Endpoint::new()?, &"towline://127.0.0.1:0".parse()?).await?;
/// println!("workers and clients find it at {}", scheduler.address());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scheduler {
    address: Address,
    desk: Arc<Desk>,
    accepting: Background,
    closing: Arc<Notify>,
}

/// Settles how a [`Scheduler`] works. [`start`](Self::start) starts it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    stall_timeout: Duration,
    client_bytes_max: Option<u64>,
    environment: Option<Arc<dyn Environment>>,
}

impl Scheduler {
    /// The settings of a scheduler: tasks that nothing can move wait 60 s, and those of one client take 2 GiB here at the
    /// most, or a quarter of what this process [may have](towline::AvailableMemory).
    pub const fn builder() -> Builder {
        Builder { stall_timeout: STALL_TIMEOUT, client_bytes_max: None, environment: None }
    }

    /// Starts a scheduler that listens at `address`.
    ///
    /// # Errors
    /// As [`Endpoint::listen`].
    pub async fn start(endpoint: &Endpoint, address: &Address) -> Result<Self> {
        Self::builder().start(endpoint, address).await
    }

    /// Tasks of which something is known here: those that a client has not released, and those that others need, or were made
    /// of.
    pub fn tasks(&self) -> usize {
        self.desk.lock().state.tasks()
    }

    /// Where workers and clients find it.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// What it counts.
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.desk)
    }

    /// Ends it, and tells its peers before it goes: within the endpoint's [`linger`](towline::Builder::linger).
    pub async fn close(self) {
        self.closing.notify_one();
        self.accepting.ended().await;
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.desk.end();
    }
}

impl Builder {
    /// How long tasks wait while nothing moves: because no worker is there, or because the memory of all workers is full of
    /// results that clients keep. Then, and at the latest after twice that time, they fail with
    /// [`TimedOut`](ErrorKind::TimedOut).
    pub const fn stall_timeout(mut self, stall_timeout: Duration) -> Self {
        self.stall_timeout = stall_timeout;
        self
    }

    /// How much memory the scheduler gives to one client's tasks, in bytes: their arguments, and some 300 bytes for each of them
    /// beside. A client that submits more is turned away, with [`TooLarge`](ErrorKind::TooLarge). Results are not among it: they
    /// stay with the workers.
    pub const fn client_bytes_max(mut self, client_bytes_max: u64) -> Self {
        self.client_bytes_max = Some(client_bytes_max);
        self
    }

    /// Where it decides; by default on a thread of its own, so that a long decision delays no heartbeat of the endpoint.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Starts the scheduler, which listens at `address`.
    ///
    /// # Errors
    /// As [`Endpoint::listen`], and [`Transport`](ErrorKind::Transport) if no thread can be started.
    pub async fn start(self, endpoint: &Endpoint, address: &Address) -> Result<Scheduler> {
        let listener = endpoint.listen(address).await?;
        let address = listener.address().clone();
        tracing::info!(%address, "scheduler started");
        let (inside, turns) = (Mutex::default(), tokio::sync::Mutex::default());
        let desk = Desk { endpoint: endpoint.clone(), address: address.clone(), inside, turns };
        let (desk, closing) = (Arc::new(desk), Arc::new(Notify::new()));
        desk.lock().state.set_stall_timeout(self.stall_timeout);
        let client_bytes_max =
            self.client_bytes_max.unwrap_or_else(|| AvailableMemory::bounded(CLIENT_BYTES_MAX, 4));
        desk.lock().state.set_client_bytes_max(client_bytes_max);
        let tick = (self.stall_timeout / 4).clamp(TICK_MIN, TICK_MAX);
        let environment = match self.environment {
            Some(environment) => environment,
            None => Arc::new(System::start()?),
        };
        let accepting = Background::on(environment.clone());
        let accept = accept(endpoint.clone(), environment, desk.clone(), listener, tick, closing.clone());
        let over = AtEnd({
            let desk = desk.clone();
            move || desk.end()
        });
        accepting.spawn(over.around(accept));
        Ok(Scheduler { address, desk, accepting, closing })
    }
}

/// Takes peers in until it is dropped, and they with it; or until it closes, when it takes leave of them.
async fn accept(
    endpoint: Endpoint,
    environment: Arc<dyn Environment>,
    desk: Arc<Desk>,
    listener: Listener,
    tick: Duration,
    closing: Arc<Notify>,
) {
    let peers = Background::on(environment.clone());
    let begun = environment.now();
    let mut ticked = environment.sleep_until(begun + tick);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(connection) => peers.spawn(serve(endpoint.clone(), desk.clone(), connection)),
                Err(error) => {
                    tracing::error!(%error, "the scheduler's listener ended");
                    break;
                }
            },
            () = &mut ticked => {
                let now = environment.now();
                desk.alter(|inside| inside.state.tick(now - begun));
                ticked = environment.sleep_until(now + tick);
            }
            () = closing.notified() => break,
        }
    }
    drop(listener);
    desk.end();
    tracing::info!(peers = peers.len(), "scheduler closes");
    peers.ended().await;
}

/// The state, and the lines to its peers.
struct Desk {
    endpoint: Endpoint,
    /// Where it listens.
    address: Address,
    inside: Mutex<Inside>,
    /// Who tells the state words next, first come, first served: the lock itself would go to who had it last.
    turns: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inside {
    state: State,
    clients: BTreeMap<ClientId, Arc<SendQueue>>,
    workers: BTreeMap<WorkerId, Arc<SendQueue>>,
    /// Where workers are found, and where this end sees them.
    places: BTreeMap<WorkerId, (Address, Seen)>,
    /// The scheduler ends, and all peers with it: what each of them leaves behind is nobody's business, and who comes now is
    /// taken leave of at once.
    is_over: bool,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

async fn serve(endpoint: Endpoint, desk: Arc<Desk>, connection: Connection) {
    let peer = connection.peer().to_string();
    let served = async {
        let hello: Hello = line::hear_one(&endpoint, &connection).await?;
        if hello.version != VERSION {
            line::say(&connection, &Welcome::Version(VERSION)).await?;
            return Err(Error::new(ErrorKind::Invalid, format!("it speaks version {}", hello.version)));
        }
        match hello.role {
            Role::Client => {
                let served = desk.serve_client(&connection).await;
                turned_away(&endpoint, &connection, served, ToClient::Refused).await
            }
            Role::Worker(offer) => match desk.check(&offer, &connection) {
                Ok(place) => {
                    let served = desk.serve_worker(&connection, offer, place).await;
                    turned_away(&endpoint, &connection, served, ToWorker::Refused).await
                }
                Err(refusal) => turned_away(&endpoint, &connection, Err(refusal), Welcome::Refused).await,
            },
        }
    };
    match served.await {
        Ok(()) => {
            tracing::info!(%peer, "left");
            // It has left, or this end closes: then what was said leaves first.
            let _ = connection.close().await;
        }
        // The transport has logged it already.
        Err(error) if error.is_of_transport() => tracing::debug!(%peer, %error, "gone"),
        Err(error) => tracing::warn!(%peer, %error, "gone"),
    }
}

/// Tells a peer that is turned away why it is. Where its connection ended, nobody is there to be told.
async fn turned_away<W: Serialize>(
    endpoint: &Endpoint,
    connection: &Connection,
    served: Result<()>,
    refusal: fn(Failure) -> W,
) -> Result<()> {
    if let Err(error) = &served
        && !error.is_of_transport()
    {
        line::turn_away(endpoint, connection, &refusal(error.failure().clone().cut())).await;
    }
    served
}

impl Desk {
    /// Where others find a worker, if there can be such a one there.
    fn check(&self, offer: &Offer, connection: &Connection) -> Result<(Address, Seen)> {
        if offer.slots > SLOTS_MAX {
            let why = format!("a worker of {} slots: the most are {SLOTS_MAX}", offer.slots);
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let offered = offer.address.parse::<Address>();
        let offered = offered
            .map_err(|error| Error::new(ErrorKind::Invalid, format!("a worker's address: {error}")))?;
        let seen = Seen::of(connection, self.endpoint.identity());
        let told = address::told(&offered, seen, &self.address)?;
        for (other, seen_other) in self.lock().places.values() {
            address::check_pair((&told, seen), (other, *seen_other))?;
        }
        Ok((told, seen))
    }

    async fn serve_client(&self, connection: &Connection) -> Result<()> {
        let send_queue = Arc::new(SendQueue::default());
        let id = self.alter(|inside| {
            let id = inside.state.client_joined()?;
            inside.clients.insert(id, send_queue.clone());
            Ok::<_, Violation>(id)
        })?;
        let _gone = Gone::by(|_| {
            self.leave(|inside| {
                inside.clients.remove(&id);
                inside.state.client_left(id);
            });
        });
        line::say(connection, &Welcome::Number(id)).await?;
        self.listen(connection, &send_queue, |state, word: FromClient| state.client_said(id, word)).await
    }

    async fn serve_worker(
        &self,
        connection: &Connection,
        offer: Offer,
        place: (Address, Seen),
    ) -> Result<()> {
        let send_queue = Arc::new(SendQueue::default());
        let offer = Offer { address: place.0.to_string(), ..offer };
        tracing::info!(address = offer.address, slots = offer.slots, "worker joined");
        let id = self.alter(|inside| {
            let id = inside.state.worker_joined(offer);
            inside.workers.insert(id, send_queue.clone());
            inside.places.insert(id, place);
            id
        });
        let mut gone = Gone::by(|departure| {
            self.leave(|inside| {
                inside.workers.remove(&id);
                inside.places.remove(&id);
                inside.state.worker_gone(id, departure);
            });
        });
        line::say(connection, &Welcome::Number(id)).await?;
        self.listen(connection, &send_queue, |state, word: FromWorker| state.worker_said(id, word)).await?;
        gone.departure = Departure::Left;
        Ok(())
    }

    /// Brings what the peer says to the state, until the peer leaves.
    async fn listen<W: DeserializeOwned>(
        &self,
        connection: &Connection,
        send_queue: &SendQueue,
        mut tell: impl FnMut(&mut State, W) -> Result<(), Violation>,
    ) -> Result<()> {
        if self.lock().is_over {
            send_queue.close();
        }
        let hearing = async {
            loop {
                let mut batch = match line::hear(connection).await {
                    Err(error) if error.is_farewell() => return Ok(()),
                    heard => heard?,
                };
                loop {
                    let turn = self.turns.lock().await;
                    let begun = Instant::now();
                    let is_left = self.alter(|inside| tell_some(&mut inside.state, &mut batch, &mut tell))?;
                    drop(turn);
                    send_queue.until_most_has_left().await;
                    // Others may wait for this very thread.
                    if begun.elapsed() >= TURN {
                        tokio::task::yield_now().await;
                    }
                    if !is_left {
                        break;
                    }
                }
            }
        };
        tokio::select! {
            ended = hearing => ended,
            ended = send_queue.carry(connection) => ended,
        }
    }

    /// Says no more to anybody.
    fn end(&self) {
        let mut inside = self.lock();
        inside.is_over = true;
        inside.clients.values().chain(inside.workers.values()).for_each(|send_queue| send_queue.close());
    }

    /// As `alter`, for a peer that is gone.
    fn leave(&self, change: impl FnOnce(&mut Inside)) {
        if !self.lock().is_over {
            self.alter(change);
        }
    }

    /// Changes the state, and leaves what it answers with the lines.
    fn alter<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let mut inside = self.lock();
        let changed = change(&mut inside);
        let Inside { state, clients, workers, .. } = &mut *inside;
        let mut last: Option<&Arc<SendQueue>> = None;
        // As few at a time as the state cares to keep: what is said is shorter than what is to be said.
        loop {
            let actions = state.take_actions();
            for action in &actions {
                let send_queue = match action {
                    Action::Client(id, word) => clients.get(id).inspect(|send_queue| send_queue.say(word)),
                    Action::Worker(id, word) => workers.get(id).inspect(|send_queue| send_queue.say(word)),
                };
                // One wake-up for what goes to one peer in a row.
                let is_other = |last: &&Arc<SendQueue>| {
                    send_queue.is_none_or(|send_queue| !Arc::ptr_eq(last, send_queue))
                };
                last.filter(is_other).inspect(|last| last.flush());
                last = send_queue.or(last);
            }
            if !state.is_cut_short() {
                last.inspect(|last| last.flush());
                return changed;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the state words of a batch, for one turn; whether some are left.
fn tell_some<W: DeserializeOwned>(
    state: &mut State,
    batch: &mut Batch,
    tell: &mut impl FnMut(&mut State, W) -> Result<(), Violation>,
) -> Result<bool> {
    let begun = Instant::now();
    let mut looked_at = batch.taken();
    while let Some(word) = batch.next()? {
        tell(state, word)?;
        let is_due = batch.taken() - looked_at >= CLOCK_EVERY;
        if state.has_said_much() || is_due && begun.elapsed() >= TURN {
            return Ok(true);
        }
        looked_at = if is_due { batch.taken() } else { looked_at };
    }
    Ok(false)
}

/// Does what is to be done when a peer is gone, however its task ends.
struct Gone<F: FnMut(Departure)> {
    departure: Departure,
    leave: F,
}

impl<F: FnMut(Departure)> Gone<F> {
    const fn by(leave: F) -> Self {
        Self { departure: Departure::Died, leave }
    }
}

impl<F: FnMut(Departure)> Drop for Gone<F> {
    fn drop(&mut self) {
        (self.leave)(self.departure);
    }
}
