//! Data between workers, and between clients and workers: asked for and answered, one message each, without the scheduler.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{OnceCell, oneshot, watch};
use towline::{Address, Caps, Connection, Destination, Endpoint, Incoming, Message, Place};

use crate::address;
use crate::background::{AtEnd, Background, within};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Answer, Ask, Blob, Body, Key, WorkerId};
use crate::value::Value;

/// How long a peer may take to begin its answer. The data itself takes as long as it takes, while the peer lives.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Memory is named for a value of so many bytes.
const NAMED_LEN_MIN: u64 = 64 << 10;
/// A value with more bytes than this has them in a frame.
const HERE_LEN_MAX: usize = 32 << 10;

/// The workers that can be asked, and the connections to those that were.
#[derive(Debug)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    /// How this end reaches the scheduler, and so how it reaches workers: with the same options.
    scheduler: Address,
    known: Mutex<FxHashMap<WorkerId, Known>>,
}

#[derive(Debug)]
struct Known {
    peer: Arc<Peer>,
    /// Dropped when the scheduler says that the worker is gone: whoever asks it need not find out for itself.
    presence: watch::Sender<()>,
}

#[derive(Debug)]
struct Peer {
    address: String,
    /// What that is from here.
    reach: OnceCell<Result<Address>>,
    line: OnceCell<Line>,
}

/// A connection and who waits for answers on it.
#[derive(Debug)]
struct Line {
    connection: Connection,
    waiting: Arc<Mutex<Questions>>,
    _hearing: Background,
}

#[derive(Debug, Default)]
struct Questions {
    last: u64,
    open: FxHashMap<u64, oneshot::Sender<(Answer, Incoming)>>,
    is_over: bool,
}

impl Peers {
    pub(crate) fn new(endpoint: Endpoint, scheduler: Address) -> Self {
        Self { endpoint, scheduler, known: Mutex::default() }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn joined(&self, worker: WorkerId, address: String) {
        let address = address::named(&address, &self.scheduler).map_or(address, |named| named.to_string());
        let peer = Arc::new(Peer { address, reach: OnceCell::new(), line: OnceCell::new() });
        self.lock().insert(worker, Known { peer, presence: watch::Sender::new(()) });
    }

    pub(crate) fn left(&self, worker: WorkerId) {
        self.lock().remove(&worker);
    }

    /// Who can be asked, and where, by id.
    pub(crate) fn all(&self) -> Vec<(WorkerId, String)> {
        let mut all: Vec<_> =
            self.lock().iter().map(|(id, known)| (*id, known.peer.address.clone())).collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn address(&self, worker: WorkerId) -> Option<String> {
        self.lock().get(&worker).map(|known| known.peer.address.clone())
    }

    /// Whether the worker was found to be where this end cannot connect to it.
    pub(crate) fn is_out_of_reach(&self, worker: WorkerId) -> bool {
        self.lock().get(&worker).is_some_and(|known| matches!(known.peer.reach.get(), Some(Err(_))))
    }

    /// The value, if the worker has it, and the path that it came over. It has no more than `bytes_max`: what is more is not
    /// taken.
    pub(crate) async fn fetch(
        &self,
        worker: WorkerId,
        key: Key,
        bytes_max: u64,
    ) -> Result<Option<(Value, &'static str)>> {
        let fetching = async {
            let (answer, incoming, connection) =
                self.ask(worker, |request| (Ask::Fetch { request, key }, Vec::new())).await?;
            match answer {
                Answer::Found { value, .. } => {
                    let bytes = incoming.payload_len().saturating_add(value.len());
                    if bytes > bytes_max {
                        let why = format!("worker {worker} gives {bytes} bytes for a value of {bytes_max}");
                        return Err(Error::new(ErrorKind::Invalid, why));
                    }
                    let path = connection.path().chosen();
                    Ok(Some((land(incoming, value, &connection).await?, path)))
                }
                Answer::Missing { .. } => Ok(None),
                _ => Err(Error::new(ErrorKind::Invalid, "an answer to another question")),
            }
        };
        self.while_there(worker, fetching).await
    }

    /// Has the worker keep the value.
    pub(crate) async fn put(&self, worker: WorkerId, key: Key, value: &Value) -> Result<()> {
        let putting = self.ask(worker, |request| {
            let (value, frames) = pack(value);
            (Ask::Put { request, key, value }, frames)
        });
        let (answer, ..) = self.while_there(worker, putting).await?;
        match answer {
            Answer::Kept { .. } => Ok(()),
            Answer::Refused { failure, .. } => Err(failure.into()),
            _ => Err(Error::new(ErrorKind::Invalid, "an answer to another question")),
        }
    }

    /// What comes of it, unless the worker is gone before that.
    async fn while_there<T>(&self, worker: WorkerId, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let presence = self.lock().get(&worker).map(|known| known.presence.subscribe());
        let mut presence = presence.ok_or_else(|| gone(worker))?;
        tokio::select! {
            biased;
            asked = asking => asked,
            _ = presence.changed() => Err(gone(worker)),
        }
    }

    async fn ask(
        &self,
        worker: WorkerId,
        question: impl FnOnce(u64) -> (Ask, Vec<towline::Buffer>),
    ) -> Result<(Answer, Incoming, Connection)> {
        let gone = || gone(worker);
        let peer = self.peer(worker).ok_or_else(gone)?;
        let reach =
            || async { address::reached(&self.endpoint, &peer.address.parse()?, &self.scheduler).await };
        let address = peer.reach.get_or_init(reach).await.as_ref().map_err(Error::clone)?;
        let line = peer.line.get_or_try_init(|| Line::to(&self.endpoint, address)).await?;
        let (request, answered) = line.open().ok_or_else(gone)?;
        let _question = Asked(line, request);
        let (ask, frames) = question(request);
        line.connection.send(Message::from_parts(postcard::to_allocvec(&ask)?, frames)).await?;
        match within(&self.endpoint, ANSWER_TIME, answered).await {
            Some(answered) => {
                let (answer, incoming) = answered.map_err(|_| gone())?;
                Ok((answer, incoming, line.connection.clone()))
            }
            None => {
                let why = format!("worker {worker} did not answer within {} s", ANSWER_TIME.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    /// The worker, with a line that has not ended.
    fn peer(&self, worker: WorkerId) -> Option<Arc<Peer>> {
        let mut known = self.lock();
        let peer = &mut known.get_mut(&worker)?.peer;
        if peer.line.get().is_some_and(Line::is_over) {
            let Peer { address, reach, .. } = &**peer;
            *peer = Arc::new(Peer { address: address.clone(), reach: reach.clone(), line: OnceCell::new() });
        }
        Some(peer.clone())
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<WorkerId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone(worker: WorkerId) -> Error {
    Error::new(ErrorKind::Lost, format!("worker {worker} is gone"))
}

impl Line {
    async fn to(endpoint: &Endpoint, address: &Address) -> Result<Self> {
        let connection = endpoint.connect(address).await?;
        let waiting = Arc::new(Mutex::new(Questions::default()));
        let hearing = Background::of(endpoint);
        // However it ends, nobody waits on this line any more, and the next question takes a new one.
        let over = AtEnd({
            let waiting = waiting.clone();
            move || {
                let mut waiting = lock(&waiting);
                waiting.is_over = true;
                waiting.open.clear();
            }
        });
        hearing.spawn(over.around(hear(connection.clone(), waiting.clone())));
        Ok(Self { connection, waiting, _hearing: hearing })
    }

    fn is_over(&self) -> bool {
        lock(&self.waiting).is_over
    }

    fn open(&self) -> Option<(u64, oneshot::Receiver<(Answer, Incoming)>)> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_over {
            return None;
        }
        waiting.last += 1;
        let request = waiting.last;
        let (answer, answered) = oneshot::channel();
        waiting.open.insert(request, answer);
        Some((request, answered))
    }
}

/// A question that is no longer open once nobody waits for its answer.
struct Asked<'a>(&'a Line, u64);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).open.remove(&self.1);
    }
}

/// Hands each answer to who asked. What nobody asked for, or nobody waits for any more, is rejected.
async fn hear(connection: Connection, waiting: Arc<Mutex<Questions>>) {
    while let Ok(incoming) = connection.incoming().await {
        let Ok(answer) = postcard::from_bytes::<Answer>(incoming.header()) else { break };
        let asked = lock(&waiting).open.remove(&answer.request());
        if let Some(asked) = asked {
            let _ = asked.send((answer, incoming));
        }
    }
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answer {
    const fn request(&self) -> u64 {
        match self {
            Self::Found { request, .. }
            | Self::Missing { request }
            | Self::Kept { request }
            | Self::Refused { request, .. } => *request,
        }
    }
}

/// The value as part of a header, and frames.
pub(crate) fn pack(value: &Value) -> (Body, Vec<towline::Buffer>) {
    if value.bytes.len() <= HERE_LEN_MAX {
        (Body::Here(Blob(value.bytes.clone())), value.frames.clone())
    } else {
        let first = towline::Buffer::from(value.bytes.clone());
        (Body::FirstFrame, std::iter::once(first).chain(value.frames.iter().cloned()).collect())
    }
}

/// Takes the value of a message, each frame in the place that its sender had it in; over a link that moves ownership, the
/// sender's own.
pub(crate) async fn land(incoming: Incoming, body: Body, connection: &Connection) -> Result<Value> {
    let moves = connection.caps().contains(Caps::MOVES_OWNERSHIP);
    let in_host = |place| matches!(place, Place::Host | Place::Arena);
    let places = || incoming.frames().iter().map(|frame| frame.place);
    // Arenas arrive as they are where the path lends, and as host memory elsewhere. Large host frames are read out of their
    // sender's memory where the path can and memory is named for them.
    let is_named = incoming.payload_len() >= NAMED_LEN_MIN && !places().any(|place| place == Place::Arena);
    let message = if moves || places().all(in_host) && !is_named {
        incoming.accept().await?
    } else {
        let destination = |place| Destination::Place(if in_host(place) { Place::Host } else { place });
        let destinations = incoming.frames().iter().map(|frame| destination(frame.place)).collect();
        incoming.accept_into(destinations).await?
    };
    let (_, mut frames) = message.into_parts();
    let bytes = match body {
        Body::Here(Blob(bytes)) => bytes,
        Body::FirstFrame if frames.is_empty() => {
            return Err(Error::new(ErrorKind::Invalid, "a value without its first frame"));
        }
        Body::FirstFrame => {
            let first = frames.remove(0);
            match first.try_into_bytes() {
                Ok(bytes) => bytes,
                Err(first) => first.to_vec()?.into(),
            }
        }
    };
    Ok(Value { bytes, frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each request for a value with these bytes, on one connection; how that checks what travels, and over how many
    /// streams.
    async fn path_asked_for(scheduler: &str) -> (&'static str, usize) {
        let endpoint = Endpoint::new().unwrap();
        let listener = endpoint.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let peers = Peers::new(endpoint, scheduler.parse().unwrap());
        peers.joined(7, listener.address().to_string());
        let missing = async {
            let connection = listener.accept().await.unwrap();
            connection.recv().await.unwrap();
            let answer = postcard::to_allocvec(&Answer::Missing { request: 1 }).unwrap();
            connection.send(Message::new(answer)).await.unwrap();
            (connection.path().integrity(), connection.path().streams())
        };
        let (path, fetched) = tokio::join!(missing, peers.fetch(7, Key::new(1, 1), 1));
        assert!(fetched.unwrap().is_none());
        path
    }

    #[tokio::test]
    async fn workers_are_reached_with_the_options_of_the_schedulers_address() {
        let plain = path_asked_for("tcp://127.0.0.1:7100").await;
        assert_eq!(plain.1, 1);
        let asked = path_asked_for("tcp://127.0.0.1:7100?integrity=crc32c&streams=3").await;
        assert_eq!(asked, ("crc32c", 3), "{plain:?}");
    }

    #[tokio::test]
    async fn a_value_that_is_larger_than_was_said_is_not_taken() {
        let endpoint = Endpoint::new().unwrap();
        let listener = endpoint.listen(&"mem://".parse().unwrap()).await.unwrap();
        let peers = Peers::new(endpoint, listener.address().clone());
        peers.joined(7, listener.address().to_string());
        let key = Key::new(1, 1);
        let liar = async {
            let connection = listener.accept().await.unwrap();
            for request in 1.. {
                connection.recv().await.unwrap();
                let answer = Answer::Found { request, value: Body::Here(Blob(vec![0; 10].into())) };
                let header = postcard::to_allocvec(&answer).unwrap();
                connection.send(Message::from_parts(header, vec![vec![0; 1000].into()])).await.unwrap();
            }
        };
        let asked = async {
            let refused = peers.fetch(7, key, 1009).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
            assert_eq!(peers.fetch(7, key, 1010).await.unwrap().unwrap().0.len(), 1010);
        };
        tokio::select! {
            () = liar => {}
            () = asked => {}
        }
    }
}
