//! A client as a state machine. Input: calls of the application and messages of the scheduler. Output:
//! messages to send and wakers to wake. It uses no clock, socket or thread, and holds no data.

use std::mem;
use std::task::{Poll, Waker};

use rustc_hash::FxHashMap;

use crate::error::{Error, ErrorKind, Failure, Result};
use crate::protocol::{ClientId, FromClient, FunctionId, Key, TaskArguments, ToClient, Types, WorkerId};

/// Attempts to fetch a result whose holders fail to send it.
pub(crate) const TRIES_MAX: usize = 10;

#[derive(Debug)]
pub(crate) struct ClientState {
    number: ClientId,
    tasks: FxHashMap<Key, Progress>,
    functions: FxHashMap<(&'static str, Types), FunctionId>,
    /// The last number used for a key or a request.
    last: u64,
    /// The error that ended the connection to the scheduler.
    end: Option<Error>,
    messages: Vec<FromClient>,
    wakers: Vec<Waker>,
}

#[derive(Debug)]
enum Progress {
    Pending(Vec<Waker>),
    Done(WorkerId, u64),
    Failed(Error),
}

impl ClientState {
    pub(crate) fn new(number: ClientId) -> Self {
        Self {
            number,
            tasks: FxHashMap::default(),
            functions: FxHashMap::default(),
            last: 0,
            end: None,
            messages: Vec::new(),
            wakers: Vec::new(),
        }
    }

    /// Takes the messages to send since the last call.
    pub(crate) fn take_messages(&mut self) -> impl Iterator<Item = FromClient> {
        self.messages.drain(..)
    }

    /// Takes the wakers to wake since the last call.
    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers)
    }

    /// Returns the error of a connection that has ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.end.clone().map_or(Ok(()), Err)
    }

    // ---- Requests of the application ----

    pub(crate) fn submit(
        &mut self,
        name: &'static str,
        types: Types,
        inputs: Vec<Key>,
        arguments: TaskArguments,
    ) -> Result<Key> {
        if inputs.iter().any(|input| input.client() != self.number) {
            return Err(Error::new(ErrorKind::Invalid, "a future of another client among the arguments"));
        }
        let key = self.new_key()?;
        let known = self.functions.len() as FunctionId;
        let messages = &mut self.messages;
        let function = *self.functions.entry((name, types)).or_insert_with(|| {
            messages.push(FromClient::Function { name: name.to_owned(), types });
            known
        });
        messages.push(FromClient::Submit { key, function, inputs, arguments });
        Ok(key)
    }

    /// Announces that a worker will receive data from this client. The scheduler knows the key once it
    /// replies to a later request.
    pub(crate) fn scatter(&mut self, worker: WorkerId) -> Result<Key> {
        let key = self.new_key()?;
        self.messages.push(FromClient::Scatter { key, worker });
        Ok(key)
    }

    pub(crate) fn cancel(&mut self, key: Key) {
        self.messages.push(FromClient::Cancel { key });
    }

    pub(crate) fn release(&mut self, key: Key) {
        self.tasks.remove(&key);
        self.messages.push(FromClient::Release { key });
    }

    /// Sends a request. Returns its number.
    pub(crate) fn request(&mut self, build: impl FnOnce(u64) -> FromClient) -> Result<u64> {
        let request = self.count()?;
        self.messages.push(build(request));
        Ok(request)
    }

    /// Reports that the worker did not send the value. The task is pending until the scheduler reports a
    /// holder again.
    pub(crate) fn fetch_failed(&mut self, key: Key, worker: WorkerId) {
        if let Some(progress) = self.tasks.get_mut(&key)
            && matches!(progress, Progress::Done(holder, _) if *holder == worker)
        {
            *progress = Progress::Pending(Vec::new());
            self.messages.push(FromClient::FetchFailed { key, worker });
        }
    }

    fn new_key(&mut self) -> Result<Key> {
        let key = Key::new(self.number, self.count()?);
        self.tasks.insert(key, Progress::Pending(Vec::new()));
        Ok(key)
    }

    fn count(&mut self) -> Result<u64> {
        self.check()?;
        self.last += 1;
        Ok(self.last)
    }

    // ---- Messages of the scheduler ----

    /// Returns a worker that has the result, and its size in bytes. Registers `waker` if the result is
    /// pending.
    pub(crate) fn poll(&mut self, key: Key, waker: &Waker) -> Poll<Result<(WorkerId, u64)>> {
        if let Err(error) = self.check() {
            return Poll::Ready(Err(error));
        }
        match self.tasks.get_mut(&key) {
            Some(Progress::Done(worker, bytes)) => Poll::Ready(Ok((*worker, *bytes))),
            Some(Progress::Failed(error)) => Poll::Ready(Err(error.clone())),
            Some(Progress::Pending(wakers)) => {
                if !wakers.iter().any(|known| known.will_wake(waker)) {
                    wakers.push(waker.clone());
                }
                Poll::Pending
            }
            None => Poll::Ready(Err(Error::closed())),
        }
    }

    /// Applies a message about tasks or this client. The driver handles messages about workers and replies to
    /// requests.
    pub(crate) fn on_message(&mut self, message: ToClient) {
        match message {
            ToClient::Done { key, worker, bytes } => self.set(key, Progress::Done(worker, bytes)),
            ToClient::Failed { key, failure } => {
                self.set(key, Progress::Failed(Failure::clone(&failure).into()))
            }
            ToClient::Recomputing { key } => {
                if let Some(progress @ Progress::Done(..)) = self.tasks.get_mut(&key) {
                    *progress = Progress::Pending(Vec::new());
                }
            }
            ToClient::Joined { .. }
            | ToClient::Left { .. }
            | ToClient::Holders { .. }
            | ToClient::Stats { .. } => {}
            // The refusal is the error of the connection that ends after it.
            ToClient::Refused(failure) => {
                self.end(&failure.refused("the scheduler refused this client").into())
            }
        }
    }

    /// Ends the connection: no further messages arrive.
    pub(crate) fn end(&mut self, error: &Error) {
        self.end.get_or_insert_with(|| error.clone());
        for progress in self.tasks.values_mut() {
            if let Progress::Pending(wakers) = progress {
                self.wakers.append(wakers);
            }
        }
    }

    fn set(&mut self, key: Key, progress: Progress) {
        if let Some(before) = self.tasks.get_mut(&key)
            && let Progress::Pending(wakers) = mem::replace(before, progress)
        {
            self.wakers.extend(wakers);
        }
    }

    /// Returns the number of tasks that were not released.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.len()
    }
}
