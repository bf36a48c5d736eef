//! The scheduler's driver: sockets, threads and the clock around its state machine.
//!
//! A task that receives messages takes the state's lock, applies the messages, and pushes the replies to the peers' send queues
//! before it releases the lock. So each peer receives replies in the order in which the state decided them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use towline::environment::Environment;
use towline::{Address, Connection, Endpoint, Listener};

use super::state::{Departure, SchedulerAction, SchedulerState, Violation};
use crate::address::{self, Locality};
use crate::background::Background;
use crate::batch::{self, Batch, Kind, SendQueue};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::protocol::{
    ClientId, FromClient, FromWorker, Hello, Offer, Role, SLOTS_MAX, ToClient, ToWorker, VERSION, Welcome,
    WorkerId,
};

/// The time slice for the messages of one peer. A peer also yields when its replies are many.
const TIME_SLICE: Duration = Duration::from_millis(2);
/// Bytes of messages between two reads of the clock, which costs as much as the shortest message.
const CLOCK_INTERVAL_BYTES: usize = 256;

/// Accepts peers until it is dropped, which drops their connections. When the scheduler closes, it closes
/// each peer's connection in good order.
pub(super) async fn accept(
    endpoint: Endpoint,
    environment: Arc<dyn Environment>,
    driver: Arc<SchedulerDriver>,
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
                Ok(connection) => peers.spawn(serve(endpoint.clone(), driver.clone(), connection)),
                Err(error) => {
                    tracing::error!(%error, "the scheduler's listener ended");
                    break;
                }
            },
            () = &mut ticked => {
                let now = environment.now();
                driver.update(|inner| inner.state.tick(now - begun));
                ticked = environment.sleep_until(now + tick);
            }
            () = closing.notified() => break,
        }
    }
    drop(listener);
    driver.end();
    tracing::info!(peers = peers.len(), "scheduler closes");
    peers.ended().await;
}

/// The state machine, and the send queues of its peers.
pub(super) struct SchedulerDriver {
    endpoint: Endpoint,
    /// The address of the listener.
    address: Address,
    inner: Mutex<SchedulerInner>,
    /// Serializes state updates in arrival order. The inner mutex alone would favour the task that held it
    /// last.
    fair_lock: tokio::sync::Mutex<()>,
}

#[derive(Default)]
pub(super) struct SchedulerInner {
    pub(super) state: SchedulerState,
    clients: BTreeMap<ClientId, Arc<SendQueue>>,
    workers: BTreeMap<WorkerId, Arc<SendQueue>>,
    /// The published address of each worker, and its locality.
    addresses: BTreeMap<WorkerId, (Address, Locality)>,
    /// The scheduler is closing. Departures of peers no longer change the state, and a new peer is closed at
    /// once.
    is_closed: bool,
}

impl fmt::Debug for SchedulerDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerDriver").finish_non_exhaustive()
    }
}

async fn serve(endpoint: Endpoint, driver: Arc<SchedulerDriver>, connection: Connection) {
    let peer = connection.peer().to_string();
    let served = async {
        let mut first = batch::receive_first(&endpoint, &connection).await?;
        let hello: Hello = match first.only() {
            Ok(hello) => hello,
            Err(error) => {
                Kind::Scheduler.send_kind(&endpoint, &connection).await;
                return Err(error);
            }
        };
        if hello.version != VERSION {
            batch::send(&connection, &Welcome::Version(VERSION)).await?;
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the peer has protocol version {}", hello.version),
            ));
        }
        match hello.role {
            Role::Client => {
                let served = driver.serve_client(&connection).await;
                refuse_on_error(&endpoint, &connection, served, ToClient::Refused).await
            }
            Role::Worker(offer) => match driver.check(&offer, &connection) {
                Ok(published) => {
                    let served = driver.serve_worker(&connection, offer, published).await;
                    refuse_on_error(&endpoint, &connection, served, ToWorker::Refused).await
                }
                Err(refusal) => refuse_on_error(&endpoint, &connection, Err(refusal), Welcome::Refused).await,
            },
        }
    };
    match served.await {
        Ok(()) => {
            tracing::info!(%peer, "left");
            // The peer has left, or this end closes: `close` sends what is queued first.
            let _ = connection.close().await;
        }
        // The transport has logged it already.
        Err(error) if error.is_transport() => tracing::debug!(%peer, %error, "gone"),
        Err(error) => tracing::warn!(%peer, %error, "gone"),
    }
}

/// Sends the reason to a refused peer, unless its connection has ended.
async fn refuse_on_error<M: Serialize>(
    endpoint: &Endpoint,
    connection: &Connection,
    served: Result<()>,
    refusal: fn(Failure) -> M,
) -> Result<()> {
    if let Err(error) = &served
        && !error.is_transport()
    {
        batch::send_refusal(endpoint, connection, &refusal(error.failure().clone().truncated())).await;
    }
    served
}

impl SchedulerDriver {
    pub(super) fn new(endpoint: Endpoint, address: Address) -> Self {
        Self { endpoint, address, inner: Mutex::default(), fair_lock: tokio::sync::Mutex::default() }
    }

    /// Returns the address to publish for a worker, if all peers can connect to it.
    fn check(&self, offer: &Offer, connection: &Connection) -> Result<(Address, Locality)> {
        if offer.slots > SLOTS_MAX {
            let why = format!("a worker with {} slots: the maximum is {SLOTS_MAX}", offer.slots);
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let offered_address = offer.address.parse::<Address>();
        let offered_address = offered_address
            .map_err(|error| Error::new(ErrorKind::Invalid, format!("a worker's address: {error}")))?;
        let locality = Locality::of(connection, self.endpoint.identity());
        let published_address = address::publish_address(&offered_address, locality, &self.address)?;
        for (other, other_locality) in self.lock().addresses.values() {
            address::check_pair((&published_address, locality), (other, *other_locality))?;
        }
        Ok((published_address, locality))
    }

    async fn serve_client(&self, connection: &Connection) -> Result<()> {
        let send_queue = Arc::new(SendQueue::default());
        let id = self.update(|inner| {
            let id = inner.state.client_joined()?;
            inner.clients.insert(id, send_queue.clone());
            Ok::<_, Violation>(id)
        })?;
        let _guard = DepartureGuard::new(|_| {
            self.update_unless_closed(|inner| {
                inner.clients.remove(&id);
                inner.state.client_left(id);
            });
        });
        batch::send(connection, &Welcome::Number(id)).await?;
        self.receive_messages(connection, &send_queue, |state, message: FromClient| {
            state.on_client_message(id, message)
        })
        .await
    }

    async fn serve_worker(
        &self,
        connection: &Connection,
        offer: Offer,
        published: (Address, Locality),
    ) -> Result<()> {
        let send_queue = Arc::new(SendQueue::default());
        let offer = Offer { address: published.0.to_string(), ..offer };
        tracing::info!(address = offer.address, slots = offer.slots, "worker joined");
        let id = self.update(|inner| {
            let id = inner.state.worker_joined(offer);
            inner.workers.insert(id, send_queue.clone());
            inner.addresses.insert(id, published);
            id
        });
        let mut guard = DepartureGuard::new(|departure| {
            self.update_unless_closed(|inner| {
                inner.workers.remove(&id);
                inner.addresses.remove(&id);
                inner.state.worker_gone(id, departure);
            });
        });
        batch::send(connection, &Welcome::Number(id)).await?;
        self.receive_messages(connection, &send_queue, |state, message: FromWorker| {
            state.on_worker_message(id, message)
        })
        .await?;
        guard.departure = Departure::Left;
        Ok(())
    }

    /// Applies the peer's messages to the state, until the peer leaves.
    async fn receive_messages<M: DeserializeOwned>(
        &self,
        connection: &Connection,
        send_queue: &SendQueue,
        mut apply: impl FnMut(&mut SchedulerState, M) -> Result<(), Violation>,
    ) -> Result<()> {
        if self.lock().is_closed {
            send_queue.close();
        }
        let receiving = async {
            loop {
                let mut batch = match batch::receive(connection).await {
                    Err(error) if error.is_closed_by_peer() => return Ok(()),
                    received => received?,
                };
                loop {
                    let permit = self.fair_lock.lock().await;
                    let begun = Instant::now();
                    let has_more =
                        self.update(|inner| apply_some(&mut inner.state, &mut batch, &mut apply))?;
                    drop(permit);
                    send_queue.wait_for_room().await;
                    // Other tasks may need this thread.
                    if begun.elapsed() >= TIME_SLICE {
                        tokio::task::yield_now().await;
                    }
                    if !has_more {
                        break;
                    }
                }
            }
        };
        tokio::select! {
            ended = receiving => ended,
            ended = send_queue.transmit(connection) => ended,
        }
    }

    /// Closes all send queues.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        inner.clients.values().chain(inner.workers.values()).for_each(|send_queue| send_queue.close());
    }

    /// As `update`, for a peer that has left.
    fn update_unless_closed(&self, change: impl FnOnce(&mut SchedulerInner)) {
        if !self.lock().is_closed {
            self.update(change);
        }
    }

    /// Changes the state, and queues the messages that it returns.
    fn update<T>(&self, change: impl FnOnce(&mut SchedulerInner) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner);
        let SchedulerInner { state, clients, workers, .. } = &mut *inner;
        let mut last: Option<&Arc<SendQueue>> = None;
        // In parts, since a queued message is smaller than its action.
        loop {
            let actions = state.take_actions();
            for action in &actions {
                let send_queue = match action {
                    SchedulerAction::Client(id, message) => {
                        clients.get(id).inspect(|send_queue| send_queue.push(message))
                    }
                    SchedulerAction::Worker(id, message) => {
                        workers.get(id).inspect(|send_queue| send_queue.push(message))
                    }
                };
                // Wake each queue once for consecutive messages.
                let is_other = |last: &&Arc<SendQueue>| {
                    send_queue.is_none_or(|send_queue| !Arc::ptr_eq(last, send_queue))
                };
                last.filter(is_other).inspect(|last| last.flush());
                last = send_queue.or(last);
            }
            if !state.has_more_output() {
                last.inspect(|last| last.flush());
                return changed;
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SchedulerInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies messages of a batch for one time slice. Returns whether some are left.
fn apply_some<M: DeserializeOwned>(
    state: &mut SchedulerState,
    batch: &mut Batch,
    apply: &mut impl FnMut(&mut SchedulerState, M) -> Result<(), Violation>,
) -> Result<bool> {
    let begun = Instant::now();
    let mut checked_at = batch.position();
    while let Some(message) = batch.next()? {
        apply(state, message)?;
        let is_due = batch.position() - checked_at >= CLOCK_INTERVAL_BYTES;
        if state.output_is_full() || is_due && begun.elapsed() >= TIME_SLICE {
            return Ok(true);
        }
        checked_at = if is_due { batch.position() } else { checked_at };
    }
    Ok(false)
}

/// Removes a peer from the state when its task ends, for whatever reason.
struct DepartureGuard<F: FnMut(Departure)> {
    departure: Departure,
    on_departure: F,
}

impl<F: FnMut(Departure)> DepartureGuard<F> {
    const fn new(on_departure: F) -> Self {
        Self { departure: Departure::Died, on_departure }
    }
}

impl<F: FnMut(Departure)> Drop for DepartureGuard<F> {
    fn drop(&mut self) {
        (self.on_departure)(self.departure);
    }
}
