//! The client's driver: it exchanges messages with the scheduler, and fetches values from workers, around the
//! state machine.

use std::future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use towline::Connection;

use super::state::{ClientState, TRIES_MAX};
use crate::background::within;
use crate::batch::{self, SendQueue};
use crate::error::{Error, ErrorKind, Result};
use crate::peers::Peers;
use crate::protocol::{ClientId, FromClient, Key, TaskArguments, ToClient, Types, WorkerId};
use crate::stats::Stats;
use crate::value::Value;

/// Time limit for a reply of the scheduler.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct ClientDriver {
    send_queue: SendQueue,
    peers: Peers,
    inner: Mutex<ClientInner>,
}

#[derive(Debug)]
struct ClientInner {
    state: ClientState,
    requests: FxHashMap<u64, oneshot::Sender<ToClient>>,
}

impl ClientDriver {
    pub(crate) fn new(number: ClientId, peers: Peers) -> Self {
        let inner = ClientInner { state: ClientState::new(number), requests: FxHashMap::default() };
        Self { send_queue: SendQueue::default(), peers, inner: Mutex::new(inner) }
    }

    pub(crate) const fn peers(&self) -> &Peers {
        &self.peers
    }

    // ---- Requests of the application ----

    pub(crate) fn submit(
        &self,
        name: &'static str,
        types: Types,
        inputs: Vec<Key>,
        arguments: TaskArguments,
    ) -> Result<Key> {
        self.update(|inner| inner.state.submit(name, types, inputs, arguments))
    }

    pub(crate) fn scatter(&self, worker: WorkerId) -> Result<Key> {
        self.update(|inner| inner.state.scatter(worker))
    }

    pub(crate) fn cancel(&self, key: Key) {
        self.update(|inner| inner.state.cancel(key));
    }

    pub(crate) fn release(&self, key: Key) {
        self.update(|inner| inner.state.release(key));
    }

    pub(crate) async fn who_has(&self, key: Key) -> Result<Vec<WorkerId>> {
        match self.request(|request| FromClient::WhoHas { request, key }).await? {
            ToClient::Holders { workers, .. } => Ok(workers),
            _ => Err(unexpected_reply()),
        }
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        match self.request(|request| FromClient::GetStats { request }).await? {
            ToClient::Stats { stats, .. } => Ok(stats),
            _ => Err(unexpected_reply()),
        }
    }

    async fn request(&self, build: impl FnOnce(u64) -> FromClient) -> Result<ToClient> {
        let (reply_sender, reply) = oneshot::channel();
        let request = self.update(|inner| {
            let request = inner.state.request(build)?;
            inner.requests.insert(request, reply_sender);
            Ok::<_, Error>(request)
        })?;
        let reply = within(self.peers.endpoint(), REPLY_TIMEOUT, reply).await;
        let mut inner = self.lock();
        inner.requests.remove(&request);
        match reply {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(_)) => Err(inner.state.check().err().unwrap_or_else(Error::closed)),
            None => {
                let why = format!("the scheduler did not answer within {} s", REPLY_TIMEOUT.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    // ---- Results of tasks ----

    /// Waits until a worker has the result. Returns the worker and the size it reported, in bytes.
    pub(crate) async fn done(&self, key: Key) -> Result<(WorkerId, u64)> {
        future::poll_fn(|cx| self.lock().state.poll(key, cx.waker())).await
    }

    /// Fetches the value from a worker that has it.
    pub(crate) async fn value(&self, key: Key) -> Result<Value> {
        let mut failed = None;
        for _ in 0..TRIES_MAX {
            let (worker, bytes) = self.done(key).await?;
            match self.peers.fetch(worker, key, bytes).await {
                Ok(Some((value, _))) => return Ok(value),
                Ok(None) => {}
                // A worker that ran the task again would be as unreachable.
                Err(error) if self.peers.is_unreachable(worker) => return Err(error),
                Err(error) => failed = Some(error),
            }
            self.update(|inner| inner.state.fetch_failed(key, worker));
        }
        let why = failed.map_or_else(|| "the holders do not have it".to_owned(), |error| error.to_string());
        Err(Error::new(
            ErrorKind::Lost,
            format!("the value could not be fetched in {TRIES_MAX} attempts: {why}"),
        ))
    }

    /// Receives messages from the scheduler until the connection ends.
    pub(crate) async fn receive_messages(self: std::sync::Arc<Self>, connection: Connection) {
        let receiving = async {
            loop {
                let batch = batch::receive(&connection).await?;
                self.update(|inner| batch.for_each(|message| self.on_message(inner, message)))?;
            }
        };
        let ended: Result<()> = tokio::select! {
            ended = receiving => ended,
            ended = self.send_queue.transmit(&connection) => ended,
        };
        let error = ended.err().unwrap_or_else(Error::closed).as_scheduler_lost();
        tracing::debug!(%error, "the client's connection ended");
        self.end(&error);
    }

    fn on_message(&self, inner: &mut ClientInner, message: ToClient) {
        match message {
            ToClient::Joined { worker, address } => self.peers.joined(worker, address),
            ToClient::Left { worker } => self.peers.left(worker),
            ToClient::Holders { request, .. } | ToClient::Stats { request, .. } => {
                if let Some(reply_sender) = inner.requests.remove(&request) {
                    // The caller may have stopped waiting.
                    let _ = reply_sender.send(message);
                }
            }
            message => inner.state.on_message(message),
        }
    }

    /// Fails everything that waits: no further messages arrive.
    pub(crate) fn end(&self, error: &Error) {
        self.update(|inner| {
            inner.state.end(error);
            inner.requests.clear();
        });
        self.send_queue.close();
    }

    /// Changes the state, and sends the messages and wakes the tasks that it returns.
    fn update<T>(&self, change: impl FnOnce(&mut ClientInner) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner);
        let mut has_messages = false;
        for message in inner.state.take_messages() {
            self.send_queue.push(&message);
            has_messages = true;
        }
        let wakers = inner.state.take_wakers();
        drop(inner);
        if has_messages {
            self.send_queue.flush();
        }
        wakers.into_iter().for_each(Waker::wake);
        changed
    }

    fn lock(&self) -> MutexGuard<'_, ClientInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unexpected_reply() -> Error {
    Error::new(ErrorKind::Invalid, "a reply of the wrong type")
}
