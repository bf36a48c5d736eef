//! The scheduler: its state machine ([`state`]), and the shell that brings it what peers say.
//!
//! Whoever receives words takes the state's lock, tells them all, and leaves the answers in the peers' outboxes before it lets
//! go: so each peer hears them in the order in which they were decided.

mod counting;
mod course;
#[cfg(test)]
mod invariants;
mod patience;
mod peers;
mod placing;
mod queue;
mod state;
mod stats;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use towline::{Address, Connection, Endpoint, Listener};

use self::patience::PATIENCE;
use self::state::Violation;
pub(crate) use self::state::{Action, Departure, State};
use crate::error::{Error, ErrorKind, Result};
use crate::line::{self, Outbox};
use crate::metrics::Metrics;
use crate::protocol::{ClientId, FromClient, FromWorker, Hello, Offer, Role, VERSION, Welcome, WorkerId};

/// The state is told the time four times within its patience, and so often at least and at most.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_secs(1);

/// Says where tasks run, and knows where results are. Nothing but words passes it.
///
/// It runs on the tokio runtime that it was started on. Dropping it ends it: its workers and clients then see
/// [`SchedulerLost`](ErrorKind::SchedulerLost).
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
    accepting: JoinHandle<()>,
    closing: Arc<Notify>,
}

/// Settles how a [`Scheduler`] works. [`start`](Self::start) starts it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    patience: Duration,
}

impl Scheduler {
    /// The settings of a scheduler: tasks that nothing can move wait 60 s.
    pub const fn builder() -> Builder {
        Builder { patience: PATIENCE }
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

    /// What it counts. Each look at it looks at each task.
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.desk)
    }

    /// Ends it, and tells its peers before it goes: within the endpoint's [`linger`](towline::Builder::linger).
    pub async fn close(mut self) {
        self.closing.notify_one();
        // It ends in no other way than this.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.desk.end();
        self.accepting.abort();
    }
}

impl Builder {
    /// How long tasks wait while nothing moves: because no worker is there, or because the memory of all workers is full of
    /// results that clients keep. Then, and at the latest after twice that time, they fail with
    /// [`TimedOut`](ErrorKind::TimedOut).
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the scheduler, which listens at `address`.
    ///
    /// # Errors
    /// As [`Endpoint::listen`].
    pub async fn start(self, endpoint: &Endpoint, address: &Address) -> Result<Scheduler> {
        let listener = endpoint.listen(address).await?;
        let address = listener.address().clone();
        tracing::info!(%address, "scheduler started");
        let (desk, closing) = (Arc::new(Desk::default()), Arc::new(Notify::new()));
        desk.lock().state.set_patience(self.patience);
        let tick = (self.patience / 4).clamp(TICK_MIN, TICK_MAX);
        let accepting = tokio::spawn(accept(desk.clone(), listener, tick, closing.clone()));
        Ok(Scheduler { address, desk, accepting, closing })
    }
}

/// Takes peers in until it is dropped, and they with it; or until it closes, when it takes leave of them.
async fn accept(desk: Arc<Desk>, listener: Listener, tick: Duration, closing: Arc<Notify>) {
    let mut peers = tokio::task::JoinSet::new();
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(connection) => _ = peers.spawn(serve(desk.clone(), connection)),
                Err(error) => {
                    tracing::error!(%error, "the scheduler's listener ended");
                    break;
                }
            },
            Some(_) = peers.join_next() => {}
            _ = ticks.tick() => desk.alter(|inside| inside.state.tick(begun.elapsed())),
            () = closing.notified() => break,
        }
    }
    drop(listener);
    desk.end();
    tracing::info!(peers = peers.len(), "scheduler closes");
    while peers.join_next().await.is_some() {}
}

/// The state, and the lines to its peers.
#[derive(Default)]
struct Desk(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    state: State,
    clients: BTreeMap<ClientId, Arc<Outbox>>,
    workers: BTreeMap<WorkerId, Arc<Outbox>>,
    /// The scheduler ends, and all peers with it: what each of them leaves behind is nobody's business, and who comes now is
    /// taken leave of at once.
    is_over: bool,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

async fn serve(desk: Arc<Desk>, connection: Connection) {
    let peer = connection.peer().to_string();
    let served = async {
        let hello: Hello = line::hear_one(&connection).await?;
        if hello.version != VERSION {
            line::say(&connection, &Welcome::Version(VERSION)).await?;
            return Err(Error::new(ErrorKind::Invalid, format!("it speaks version {}", hello.version)));
        }
        match hello.role {
            Role::Client => desk.serve_client(&connection).await,
            Role::Worker(offer) => desk.serve_worker(&connection, offer).await,
        }
    };
    match served.await {
        Ok(()) => {
            tracing::info!(%peer, "left");
            // It has left, or this end closes: then what was said leaves first.
            let _ = connection.close().await;
        }
        Err(error) => tracing::warn!(%peer, %error, "gone"),
    }
}

impl Desk {
    async fn serve_client(&self, connection: &Connection) -> Result<()> {
        let outbox = Arc::new(Outbox::default());
        let id = self.change(|inside| {
            let id = inside.state.client_joined()?;
            inside.clients.insert(id, outbox.clone());
            Ok(id)
        })?;
        let _gone = Gone::by(|_| {
            self.leave(|inside| {
                inside.clients.remove(&id);
                inside.state.client_left(id);
            });
        });
        line::say(connection, &Welcome::Number(id)).await?;
        self.listen(connection, &outbox, |state, word: FromClient| state.client_said(id, word)).await
    }

    async fn serve_worker(&self, connection: &Connection, offer: Offer) -> Result<()> {
        let outbox = Arc::new(Outbox::default());
        tracing::info!(address = offer.address, slots = offer.slots, "worker joined");
        let id = self.alter(|inside| {
            let id = inside.state.worker_joined(offer);
            inside.workers.insert(id, outbox.clone());
            id
        });
        let mut gone = Gone::by(|departure| {
            self.leave(|inside| {
                inside.workers.remove(&id);
                inside.state.worker_gone(id, departure);
            });
        });
        line::say(connection, &Welcome::Number(id)).await?;
        self.listen(connection, &outbox, |state, word: FromWorker| state.worker_said(id, word)).await?;
        gone.departure = Departure::Left;
        Ok(())
    }

    /// Brings what the peer says to the state, until the peer leaves.
    async fn listen<W: DeserializeOwned>(
        &self,
        connection: &Connection,
        outbox: &Outbox,
        mut tell: impl FnMut(&mut State, W) -> Result<(), Violation>,
    ) -> Result<()> {
        if self.lock().is_over {
            outbox.close();
        }
        let hearing = async {
            loop {
                let words: Vec<W> = match line::hear(connection).await {
                    Err(error) if error.is_farewell() => return Ok(()),
                    heard => heard?,
                };
                self.change(|inside| words.into_iter().try_for_each(|word| tell(&mut inside.state, word)))?;
            }
        };
        tokio::select! {
            ended = hearing => ended,
            ended = outbox.carry(connection) => ended,
        }
    }

    /// Says no more to anybody.
    fn end(&self) {
        let mut inside = self.lock();
        inside.is_over = true;
        inside.clients.values().chain(inside.workers.values()).for_each(|outbox| outbox.close());
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
        let actions = state.take_actions();
        let mut last: Option<&Arc<Outbox>> = None;
        for action in &actions {
            let outbox = match action {
                Action::Client(id, word) => clients.get(id).inspect(|outbox| outbox.say(word)),
                Action::Worker(id, word) => workers.get(id).inspect(|outbox| outbox.say(word)),
            };
            // One wake-up for what goes to one peer in a row.
            if let Some(last) = last.filter(|last| outbox.is_none_or(|outbox| !Arc::ptr_eq(last, outbox))) {
                last.flush();
            }
            last = outbox.or(last);
        }
        if let Some(last) = last {
            last.flush();
        }
        changed
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inside) -> Result<T, Violation>) -> Result<T> {
        self.alter(change)
            .map_err(|Violation(why)| Error::new(ErrorKind::Invalid, format!("it broke the protocol: {why}")))
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
