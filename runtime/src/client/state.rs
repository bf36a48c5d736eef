//! A client as a state machine: it is asked for tasks and told what the scheduler said, and answers with words and with whom to
//! wake. It knows no clock, socket or thread, and no data.

use std::mem;
use std::task::{Poll, Waker};

use rustc_hash::FxHashMap;

use crate::error::{Error, ErrorKind, Failure, Result};
use crate::protocol::{ClientId, FromClient, FunctionId, Key, TaskArguments, ToClient, Types, WorkerId};

/// How often a result is asked for that its holders do not give.
pub(crate) const TRIES_MAX: usize = 10;

#[derive(Debug)]
pub(crate) struct State {
    number: ClientId,
    tasks: FxHashMap<Key, Progress>,
    functions: FxHashMap<(&'static str, Types), FunctionId>,
    /// Keys and questions count on.
    last: u64,
    /// Why nothing more will be heard.
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

impl State {
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

    /// What is to be said since this was asked last.
    pub(crate) fn take_messages(&mut self) -> impl Iterator<Item = FromClient> {
        self.messages.drain(..)
    }

    /// Who is to be woken since this was asked last.
    pub(crate) fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers)
    }

    /// Fails once nothing more will be heard.
    pub(crate) fn check(&self) -> Result<()> {
        self.end.clone().map_or(Ok(()), Err)
    }

    // ---- What the client asks for ----

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

    /// The worker will be given the data once the scheduler knows of it: it answers a question that is asked after this.
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

    /// Asks a question; its number.
    pub(crate) fn request(&mut self, build: impl FnOnce(u64) -> FromClient) -> Result<u64> {
        let request = self.count()?;
        self.messages.push(build(request));
        Ok(request)
    }

    /// The worker did not give it: it is heard of again once the scheduler knows better.
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

    // ---- What became of it ----

    /// A worker that has it, and its bytes; whoever asks too early is woken later.
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

    /// What the scheduler says of tasks, and of this client; of workers it says it to others.
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
            // What ended with it says why.
            ToClient::Refused(failure) => {
                self.end(&failure.refused("the scheduler turned this client away").into())
            }
        }
    }

    /// Nothing more will be heard.
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

    /// Tasks that were not released.
    #[cfg(test)]
    pub(crate) fn tasks(&self) -> usize {
        self.tasks.len()
    }
}
