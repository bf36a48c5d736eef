//! The worker's driver: it stores values, runs functions and exchanges messages, around the state machine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use towline::{Connection, Endpoint, Listener};

use super::Leaving;
use super::counts::{WorkerCounts, add};
use super::serving;
use super::state::{Start, WorkerAction, WorkerState};
use super::threads::Threads;
use crate::background::Background;
use crate::batch::{self, SendQueue};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::function::{FunctionBody, Outcome, Registry};
use crate::peers::Peers;
use crate::protocol::{FUNCTIONS_MAX, FromWorker, Key, TaskArguments, ToWorker, WorkerId};
use crate::value::{Value, substitute};

#[derive(Debug)]
pub(super) struct WorkerDriver {
    inner: Mutex<WorkerInner>,
    registry: Registry,
    send_queue: SendQueue,
    peers: Peers,
    threads: Threads,
    /// Fetches and async functions; `None` once the worker has ended.
    background: Mutex<Option<Background>>,
    counts: WorkerCounts,
}

#[derive(Debug)]
struct WorkerInner {
    state: WorkerState,
    values: FxHashMap<Key, Value>,
    /// Functions by the scheduler's id.
    functions: Vec<(Arc<str>, Result<FunctionBody, Failure>)>,
    /// Why the scheduler refused this worker.
    refusal: Option<Failure>,
}

/// An attempt with its inputs.
struct PreparedAttempt {
    start: Start,
    name: Arc<str>,
    body: Result<FunctionBody, Failure>,
    inputs: Vec<Value>,
}

impl WorkerDriver {
    pub(super) fn start(
        peers: Peers,
        registry: Registry,
        slots: usize,
        memory_bytes_max: u64,
    ) -> Result<Arc<Self>> {
        let threads = Threads::start(slots).map_err(towline::Error::io)?;
        let state = WorkerState::new(slots, memory_bytes_max);
        Ok(Arc::new(Self {
            inner: Mutex::new(WorkerInner {
                state,
                values: FxHashMap::default(),
                functions: Vec::new(),
                refusal: None,
            }),
            registry,
            send_queue: SendQueue::default(),
            background: Mutex::new(Some(Background::of(peers.endpoint()))),
            peers,
            threads,
            counts: WorkerCounts::default(),
        }))
    }

    /// Runs until the scheduler is gone, or this worker leaves.
    pub(super) async fn work(
        self: Arc<Self>,
        connection: Connection,
        listener: Listener,
        leaving: oneshot::Receiver<Leaving>,
    ) -> Error {
        let receiving = async {
            loop {
                let batch = batch::receive(&connection).await?;
                let mut decoded = Ok(());
                self.update(|inner| decoded = batch.for_each(|message| self.on_message(inner, message)));
                decoded?;
            }
        };
        let ended: Result<()> = tokio::select! {
            ended = receiving => ended,
            ended = self.send_queue.transmit(&connection) => ended,
            () = serving::accept(&self, listener) => Err(Error::closed()),
            how = leaving => {
                self.close();
                match how {
                    Ok(Leaving::Killed) => connection.abort(),
                    // The outcome is the same whether or not the scheduler takes part in the close.
                    Ok(Leaving::Graceful) | Err(_) => _ = connection.close().await,
                }
                return Error::closed();
            }
        };
        self.close();
        let error = ended.err().unwrap_or_else(Error::closed);
        tracing::warn!(%error, "the worker ends");
        match self.lock().refusal.take() {
            Some(refusal) => refusal.refused("the scheduler refused this worker").into(),
            None => error.as_scheduler_lost(),
        }
    }

    /// Stops background jobs, and drops all values.
    pub(super) fn close(&self) {
        drop(self.background.lock().unwrap_or_else(PoisonError::into_inner).take());
        let values = std::mem::take(&mut self.lock().values);
        drop(values);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().state.bytes()
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.lock().state.bytes_max()
    }

    pub(super) fn values(&self) -> usize {
        self.lock().values.len()
    }

    #[cfg(feature = "metrics")]
    pub(super) fn running(&self) -> u64 {
        self.lock().state.running() as u64
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        self.peers.endpoint()
    }

    pub(super) const fn counts(&self) -> &WorkerCounts {
        &self.counts
    }

    fn on_message(&self, inner: &mut WorkerInner, message: ToWorker) {
        match message {
            ToWorker::Joined { worker, address } => self.peers.joined(worker, address),
            ToWorker::Left { worker } => self.peers.left(worker),
            ToWorker::Function { .. } if inner.functions.len() == FUNCTIONS_MAX => {}
            ToWorker::Function { name, types } => {
                let body = self.registry.find(&name, types);
                inner.functions.push((name.into(), body));
            }
            ToWorker::Assign(assignment) => inner.state.assigned(assignment),
            ToWorker::Drop { attempt, .. } => inner.state.dropped(attempt),
            ToWorker::Recall { attempt, .. } => inner.state.recalled(attempt),
            ToWorker::Free { key } => inner.state.freed(key),
            ToWorker::Refused(failure) => inner.refusal = Some(failure),
        }
    }

    // ---- Requests of other peers ----

    pub(super) fn value(&self, key: Key) -> Option<Value> {
        self.lock().values.get(&key).cloned()
    }

    /// Stores a value that a client sent.
    pub(super) fn store(self: &Arc<Self>, key: Key, value: Value) {
        self.update(|inner| {
            inner.state.stored(key, value.len());
            inner.values.insert(key, value);
        });
    }

    /// Reserves memory for a value that a client sends, until the reservation is dropped.
    pub(super) fn reserve(&self, key: Key, bytes: u64) -> Result<Reservation<'_>> {
        self.lock().state.reserve(key, bytes)?;
        Ok(Reservation { driver: self, bytes })
    }

    // ---- Actions ----

    /// Changes the state, and performs its actions.
    fn update(self: &Arc<Self>, change: impl FnOnce(&mut WorkerInner)) {
        let mut discarded = Vec::new();
        let mut fetches = Vec::new();
        let mut ready_attempts = Vec::new();
        let mut inner = self.lock();
        change(&mut inner);
        let WorkerInner { state, values, functions, .. } = &mut *inner;
        for action in state.take_actions() {
            match action {
                WorkerAction::Send(message) => self.send_queue.push(&message),
                WorkerAction::Discard(key) => discarded.extend(values.remove(&key)),
                WorkerAction::Fetch { key, from, bytes } => fetches.push((key, from, bytes)),
                WorkerAction::Begin(start) => {
                    let function = functions.get(start.function as usize).cloned();
                    let (name, body) = function.unwrap_or_else(|| ("".into(), Err(undeclared_function())));
                    let inputs = start.inputs.iter().map(|key| values.get(key).cloned().unwrap_or_default());
                    let inputs = inputs.collect();
                    ready_attempts.push(PreparedAttempt { start, name, body, inputs });
                }
            }
        }
        drop(inner);
        self.send_queue.flush();
        for (key, from, bytes) in fetches {
            let driver = self.clone();
            self.spawn(async move { driver.fetch(key, from, bytes).await });
        }
        for prepared in ready_attempts {
            self.begin(prepared);
        }
        // Freed last, and without the lock: it can take long.
        drop(discarded);
    }

    async fn fetch(self: Arc<Self>, key: Key, from: WorkerId, bytes_max: u64) {
        let fetched = self.peers.fetch(from, key, bytes_max).await.unwrap_or_else(|error| {
            tracing::debug!(?key, from, %error, "a fetch failed");
            None
        });
        if fetched.is_none() {
            add(&self.counts.fetches_failed, 1);
        }
        let value = fetched.map(|(value, path)| {
            let bytes = value.len();
            tracing::trace!(?key, from, path, bytes, "fetched");
            add(&self.counts.fetched_bytes, bytes);
            // It is sent together with the message that the value has arrived.
            self.send_queue.push(&FromWorker::Transferred { from, path: path.to_owned(), bytes });
            value
        });
        self.update(|inner| {
            let bytes = value.as_ref().map(Value::len);
            inner.values.extend(value.map(|value| (key, value)));
            inner.state.fetched(key, bytes);
        });
    }

    fn begin(self: &Arc<Self>, prepared: PreparedAttempt) {
        let driver = self.clone();
        let PreparedAttempt { start, name, body, inputs } = prepared;
        let bytes_max = self.bytes_max();
        match body {
            Ok(FunctionBody::Async(function)) => self.spawn(async move {
                let begun = Instant::now();
                let ran = match complete_arguments(&start, &inputs, bytes_max) {
                    Ok(arguments) => function(arguments).await,
                    Err(failure) => Err(failure),
                };
                driver.ended(&start, &name, ran, begun);
            }),
            Ok(FunctionBody::Sync(function)) => self.threads.run(move || {
                let begun = Instant::now();
                let ran =
                    complete_arguments(&start, &inputs, bytes_max).and_then(|arguments| function(arguments));
                drop(inputs);
                driver.ended(&start, &name, ran, begun);
            }),
            Err(failure) => self.ended(&start, &name, Err(failure), Instant::now()),
        }
    }

    fn ended(self: &Arc<Self>, start: &Start, name: &str, outcome: Outcome, begun: Instant) {
        let micros = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        add(&self.counts.run_micros, micros.into());
        match &outcome {
            Ok(value) => {
                add(&self.counts.runs_done, 1);
                tracing::trace!(key = ?start.key, task = name, micros, bytes = value.len(), "ran");
            }
            Err(failure) => {
                add(&self.counts.runs_failed, 1);
                let (kind, why) = (failure.kind, &failure.detail);
                tracing::debug!(key = ?start.key, task = name, micros, %kind, why, "failed");
            }
        }
        self.update(|inner| {
            let result = match outcome {
                Ok(value) => {
                    let bytes = value.len();
                    inner.values.insert(start.key, value);
                    Ok(bytes)
                }
                Err(failure) => Err(failure.of(name)),
            };
            inner.state.ended(start.attempt, start.key, result, micros);
        });
    }

    fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(background) = &*background {
            background.spawn(job);
        }
    }

    fn lock(&self) -> MutexGuard<'_, WorkerInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that is reserved for a value.
pub(super) struct Reservation<'a> {
    driver: &'a WorkerDriver,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.driver.lock().state.release_reservation(self.bytes);
    }
}

fn complete_arguments(start: &Start, inputs: &[Value], bytes_max: u64) -> Result<Value, Failure> {
    let TaskArguments { bytes, placeholders } = &start.arguments;
    substitute(&bytes.0, placeholders, inputs, bytes_max).map_err(|error| error.failure().clone())
}

fn undeclared_function() -> Failure {
    Failure::new(ErrorKind::Invalid, "an undeclared function")
}
