//! A client's line to the scheduler, and what was heard of each of its tasks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use std::{future, mem};

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use towline::{Connection, Endpoint};

use crate::error::{Error, ErrorKind, Result};
use crate::line::{self, Outbox};
use crate::peers::Peers;
use crate::protocol::{Arguments, ClientId, FromClient, FunctionId, Key, ToClient, Types, WorkerId};
use crate::value::Value;

/// How often a result is asked for that its holders do not give.
const TRIES_MAX: usize = 10;
/// How long the scheduler may take to answer a question.
const ANSWER_TIME: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Shell {
    number: ClientId,
    outbox: Outbox,
    peers: Peers,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    tasks: FxHashMap<Key, Progress>,
    functions: FxHashMap<(&'static str, Types), FunctionId>,
    questions: FxHashMap<u64, oneshot::Sender<Vec<WorkerId>>>,
    /// Keys and questions count on.
    last: u64,
    /// Why nothing more will be heard.
    end: Option<Error>,
}

#[derive(Debug)]
enum Progress {
    Pending(Vec<Waker>),
    Done(WorkerId),
    Failed(Error),
}

impl Shell {
    pub(crate) fn new(number: ClientId, endpoint: Endpoint) -> Self {
        Self { number, outbox: Outbox::default(), peers: Peers::new(endpoint), inside: Mutex::default() }
    }

    pub(crate) const fn peers(&self) -> &Peers {
        &self.peers
    }

    // ---- What the client says ----

    pub(crate) fn submit(
        &self,
        name: &'static str,
        types: Types,
        inputs: Vec<Key>,
        arguments: Arguments,
    ) -> Result<Key> {
        if inputs.iter().any(|input| input.client() != self.number) {
            return Err(Error::new(ErrorKind::Invalid, "a future of another client among the arguments"));
        }
        let mut inside = self.lock();
        let key = inside.new_key(self.number)?;
        let known = inside.functions.len() as FunctionId;
        let function = *inside.functions.entry((name, types)).or_insert_with(|| {
            self.outbox.say(&FromClient::Function { name: name.to_owned(), types });
            known
        });
        self.outbox.say(&FromClient::Submit { key, function, inputs, arguments });
        drop(inside);
        self.outbox.flush();
        Ok(key)
    }

    pub(crate) fn scatter(&self, worker: WorkerId) -> Result<Key> {
        let mut inside = self.lock();
        let key = inside.new_key(self.number)?;
        self.say(&FromClient::Scatter { key, worker });
        Ok(key)
    }

    pub(crate) fn cancel(&self, key: Key) {
        self.say(&FromClient::Cancel { key });
    }

    pub(crate) fn release(&self, key: Key) {
        self.lock().tasks.remove(&key);
        self.say(&FromClient::Release { key });
    }

    pub(crate) async fn who_has(&self, key: Key) -> Result<Vec<WorkerId>> {
        let (answer, answered) = oneshot::channel();
        let request = {
            let mut inside = self.lock();
            inside.check()?;
            inside.last += 1;
            let request = inside.last;
            inside.questions.insert(request, answer);
            request
        };
        self.say(&FromClient::WhoHas { request, key });
        let answered = tokio::time::timeout(ANSWER_TIME, answered).await;
        self.lock().questions.remove(&request);
        match answered {
            Ok(Ok(workers)) => Ok(workers),
            Ok(Err(_)) => Err(self.lock().end.clone().unwrap_or_else(Error::closed)),
            Err(_) => {
                let why = format!("the scheduler did not answer within {} s", ANSWER_TIME.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    fn say(&self, word: &FromClient) {
        self.outbox.say(word);
        self.outbox.flush();
    }

    // ---- What became of tasks ----

    /// Waits until a worker has it.
    pub(crate) async fn done(&self, key: Key) -> Result<WorkerId> {
        future::poll_fn(|cx| {
            let mut inside = self.lock();
            if let Err(error) = inside.check() {
                return Poll::Ready(Err(error));
            }
            match inside.tasks.get_mut(&key) {
                Some(Progress::Done(worker)) => Poll::Ready(Ok(*worker)),
                Some(Progress::Failed(error)) => Poll::Ready(Err(error.clone())),
                Some(Progress::Pending(wakers)) => {
                    if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                        wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
                None => Poll::Ready(Err(Error::closed())),
            }
        })
        .await
    }

    /// The value, from a worker that has it.
    pub(crate) async fn value(self: std::sync::Arc<Self>, key: Key) -> Result<Value> {
        let mut failed = None;
        for _ in 0..TRIES_MAX {
            let worker = self.done(key).await?;
            match self.peers.fetch(worker, key).await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
            // It is heard of again once the scheduler knows better.
            let mut inside = self.lock();
            if let Some(progress @ Progress::Done(_)) = inside.tasks.get_mut(&key) {
                *progress = Progress::Pending(Vec::new());
                drop(inside);
                self.say(&FromClient::Lacks { key, worker });
            }
        }
        let why = failed.map_or_else(|| "they do not have it".to_owned(), |error| error.to_string());
        Err(Error::new(ErrorKind::Lost, format!("{TRIES_MAX} times a worker did not give it: {why}")))
    }

    /// Hears the scheduler until it is gone.
    pub(crate) async fn listen(self: std::sync::Arc<Self>, connection: Connection) {
        let hearing = async {
            loop {
                let words = line::hear(&connection).await?;
                self.heard(words);
            }
        };
        let ended: Result<()> = tokio::select! {
            ended = hearing => ended,
            ended = self.outbox.carry(&connection) => ended,
        };
        let error = ended.err().unwrap_or_else(Error::closed).as_scheduler_lost();
        tracing::debug!(%error, "the client's line ended");
        self.end(&error);
    }

    fn heard(&self, words: Vec<ToClient>) {
        let mut woken = Vec::new();
        let mut inside = self.lock();
        for word in words {
            match word {
                ToClient::Joined { worker, address } => self.peers.joined(worker, address),
                ToClient::Left { worker } => self.peers.left(worker),
                ToClient::Done { key, worker, .. } => inside.set(key, Progress::Done(worker), &mut woken),
                ToClient::Failed { key, failure } => {
                    inside.set(key, Progress::Failed(failure.into()), &mut woken);
                }
                ToClient::Again { key } => {
                    if let Some(progress @ Progress::Done(_)) = inside.tasks.get_mut(&key) {
                        *progress = Progress::Pending(Vec::new());
                    }
                }
                ToClient::Holders { request, workers } => {
                    if let Some(asked) = inside.questions.remove(&request) {
                        // Whoever asked may have given up.
                        let _ = asked.send(workers);
                    }
                }
            }
        }
        drop(inside);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Nothing more will be heard.
    pub(crate) fn end(&self, error: &Error) {
        let mut woken = Vec::new();
        let mut inside = self.lock();
        inside.end.get_or_insert_with(|| error.clone());
        inside.questions.clear();
        for progress in inside.tasks.values_mut() {
            if let Progress::Pending(wakers) = progress {
                woken.append(wakers);
            }
        }
        drop(inside);
        self.outbox.close();
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn check(&self) -> Result<()> {
        self.end.clone().map_or(Ok(()), Err)
    }

    fn new_key(&mut self, client: ClientId) -> Result<Key> {
        self.check()?;
        self.last += 1;
        let key = Key::new(client, self.last);
        self.tasks.insert(key, Progress::Pending(Vec::new()));
        Ok(key)
    }

    fn set(&mut self, key: Key, progress: Progress, woken: &mut Vec<Waker>) {
        if let Some(before) = self.tasks.get_mut(&key)
            && let Progress::Pending(wakers) = mem::replace(before, progress)
        {
            woken.extend(wakers);
        }
    }
}
