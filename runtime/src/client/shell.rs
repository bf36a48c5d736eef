//! What a client's state machine decides, done: words are carried to the scheduler, and values brought from workers.

use std::future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use towline::Connection;

use super::state::{State, TRIES_MAX};
use crate::background::within;
use crate::error::{Error, ErrorKind, Result};
use crate::line::{self, SendQueue};
use crate::peers::Peers;
use crate::protocol::{Arguments, ClientId, FromClient, Key, ToClient, Types, WorkerId};
use crate::stats::Stats;
use crate::value::Value;

/// How long the scheduler may take to answer a question.
const ANSWER_TIME: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Shell {
    send_queue: SendQueue,
    peers: Peers,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    state: State,
    questions: FxHashMap<u64, oneshot::Sender<ToClient>>,
}

impl Shell {
    pub(crate) fn new(number: ClientId, peers: Peers) -> Self {
        let inside = Inside { state: State::new(number), questions: FxHashMap::default() };
        Self { send_queue: SendQueue::default(), peers, inside: Mutex::new(inside) }
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
        self.alter(|inside| inside.state.submit(name, types, inputs, arguments))
    }

    pub(crate) fn scatter(&self, worker: WorkerId) -> Result<Key> {
        self.alter(|inside| inside.state.scatter(worker))
    }

    pub(crate) fn cancel(&self, key: Key) {
        self.alter(|inside| inside.state.cancel(key));
    }

    pub(crate) fn release(&self, key: Key) {
        self.alter(|inside| inside.state.release(key));
    }

    pub(crate) async fn who_has(&self, key: Key) -> Result<Vec<WorkerId>> {
        match self.ask(|request| FromClient::WhoHas { request, key }).await? {
            ToClient::Holders { workers, .. } => Ok(workers),
            _ => Err(another_question()),
        }
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        match self.ask(|request| FromClient::HowIsIt { request }).await? {
            ToClient::SoItIs { stats, .. } => Ok(stats),
            _ => Err(another_question()),
        }
    }

    async fn ask(&self, question: impl FnOnce(u64) -> FromClient) -> Result<ToClient> {
        let (answer, answered) = oneshot::channel();
        let request = self.alter(|inside| {
            let request = inside.state.ask(question)?;
            inside.questions.insert(request, answer);
            Ok::<_, Error>(request)
        })?;
        let answered = within(self.peers.endpoint(), ANSWER_TIME, answered).await;
        let mut inside = self.lock();
        inside.questions.remove(&request);
        match answered {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) => Err(inside.state.check().err().unwrap_or_else(Error::closed)),
            None => {
                let why = format!("the scheduler did not answer within {} s", ANSWER_TIME.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    // ---- What became of tasks ----

    /// Waits until a worker has it: which, and how many bytes it says that it has.
    pub(crate) async fn done(&self, key: Key) -> Result<(WorkerId, u64)> {
        future::poll_fn(|cx| self.lock().state.poll(key, cx.waker())).await
    }

    /// The value, from a worker that has it.
    pub(crate) async fn value(&self, key: Key) -> Result<Value> {
        let mut failed = None;
        for _ in 0..TRIES_MAX {
            let (worker, bytes) = self.done(key).await?;
            match self.peers.fetch(worker, key, bytes).await {
                Ok(Some((value, _))) => return Ok(value),
                Ok(None) => {}
                // Whoever runs it again would be no easier to reach.
                Err(error) if self.peers.is_out_of_reach(worker) => return Err(error),
                Err(error) => failed = Some(error),
            }
            self.alter(|inside| inside.state.lacks(key, worker));
        }
        let why = failed.map_or_else(|| "they do not have it".to_owned(), |error| error.to_string());
        Err(Error::new(ErrorKind::Lost, format!("{TRIES_MAX} times a worker did not give it: {why}")))
    }

    /// Hears the scheduler until it is gone.
    pub(crate) async fn listen(self: std::sync::Arc<Self>, connection: Connection) {
        let hearing = async {
            loop {
                let batch = line::hear(&connection).await?;
                self.alter(|inside| batch.each(|word| self.heard(inside, word)))?;
            }
        };
        let ended: Result<()> = tokio::select! {
            ended = hearing => ended,
            ended = self.send_queue.carry(&connection) => ended,
        };
        let error = ended.err().unwrap_or_else(Error::closed).as_scheduler_lost();
        tracing::debug!(%error, "the client's line ended");
        self.end(&error);
    }

    fn heard(&self, inside: &mut Inside, word: ToClient) {
        match word {
            ToClient::Joined { worker, address } => self.peers.joined(worker, address),
            ToClient::Left { worker } => self.peers.left(worker),
            ToClient::Holders { request, .. } | ToClient::SoItIs { request, .. } => {
                if let Some(asked) = inside.questions.remove(&request) {
                    // Whoever asked may have given up.
                    let _ = asked.send(word);
                }
            }
            word => inside.state.heard(word),
        }
    }

    /// Nothing more will be heard.
    pub(crate) fn end(&self, error: &Error) {
        self.alter(|inside| {
            inside.state.end(error);
            inside.questions.clear();
        });
        self.send_queue.close();
    }

    /// Changes the state, and does what it answers.
    fn alter<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let mut inside = self.lock();
        let changed = change(&mut inside);
        let mut has_spoken = false;
        for word in inside.state.take_words() {
            self.send_queue.say(&word);
            has_spoken = true;
        }
        let woken = inside.state.take_woken();
        drop(inside);
        if has_spoken {
            self.send_queue.flush();
        }
        woken.into_iter().for_each(Waker::wake);
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn another_question() -> Error {
    Error::new(ErrorKind::Invalid, "an answer to another question")
}
