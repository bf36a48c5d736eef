//! Data between workers, and between clients and workers: asked for and answered, one message each, without the scheduler.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{OnceCell, oneshot, watch};
use towline::{Address, Caps, Connection, Destination, Endpoint, Incoming, Message, Place};

use crate::address;
use crate::background::{AtEnd, Background, within};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{Blob, DataReply, DataRequest, Key, ValueBytes, WorkerId};
use crate::value::Value;

/// How long a peer may take to begin its answer. The data itself takes as long as it takes, while the peer lives.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Memory is named for a value of so many bytes.
const DIRECT_LEN_MIN: u64 = 64 << 10;
/// A value with more bytes than this has them in a frame.
const INLINE_LEN_MAX: usize = 32 << 10;

/// The workers that can be asked, and the connections to those that were.
#[derive(Debug)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    /// How this end reaches the scheduler, and so how it reaches workers: with the same options.
    scheduler: Address,
    known: Mutex<FxHashMap<WorkerId, PeerEntry>>,
}

#[derive(Debug)]
struct PeerEntry {
    peer: Arc<Peer>,
    /// Dropped when the scheduler says that the worker is gone: whoever asks it need not find out for itself.
    presence: watch::Sender<()>,
}

#[derive(Debug)]
struct Peer {
    address: String,
    /// What that is from here.
    connect_address: OnceCell<Result<Address>>,
    data_connection: OnceCell<DataConnection>,
}

/// A connection and who waits for answers on it.
#[derive(Debug)]
struct DataConnection {
    connection: Connection,
    pending: Arc<Mutex<PendingRequests>>,
    _receiving: Background,
}

#[derive(Debug, Default)]
struct PendingRequests {
    last: u64,
    open: FxHashMap<u64, oneshot::Sender<(DataReply, Incoming)>>,
    is_closed: bool,
}

impl Peers {
    pub(crate) fn new(endpoint: Endpoint, scheduler: Address) -> Self {
        Self { endpoint, scheduler, known: Mutex::default() }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn joined(&self, worker: WorkerId, address: String) {
        let address = address::resolve_wildcard(&address, &self.scheduler)
            .map_or(address, |resolved| resolved.to_string());
        let peer =
            Arc::new(Peer { address, connect_address: OnceCell::new(), data_connection: OnceCell::new() });
        self.lock().insert(worker, PeerEntry { peer, presence: watch::Sender::new(()) });
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
    pub(crate) fn is_unreachable(&self, worker: WorkerId) -> bool {
        self.lock().get(&worker).is_some_and(|known| matches!(known.peer.connect_address.get(), Some(Err(_))))
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
            let (reply, incoming, connection) =
                self.request(worker, |request| (DataRequest::Fetch { request, key }, Vec::new())).await?;
            match reply {
                DataReply::Found { value, .. } => {
                    let bytes = incoming.payload_len().saturating_add(value.len());
                    if bytes > bytes_max {
                        let why = format!("worker {worker} gives {bytes} bytes for a value of {bytes_max}");
                        return Err(Error::new(ErrorKind::Invalid, why));
                    }
                    let path = connection.path().chosen();
                    Ok(Some((receive_value(incoming, value, &connection).await?, path)))
                }
                DataReply::Missing { .. } => Ok(None),
                _ => Err(unexpected_reply()),
            }
        };
        self.while_present(worker, fetching).await
    }

    /// Has the worker keep the value.
    pub(crate) async fn put(&self, worker: WorkerId, key: Key, value: &Value) -> Result<()> {
        let putting = self.request(worker, |request| {
            let (value, frames) = encode_value(value);
            (DataRequest::Put { request, key, value }, frames)
        });
        let (reply, ..) = self.while_present(worker, putting).await?;
        match reply {
            DataReply::Kept { .. } => Ok(()),
            DataReply::Refused { failure, .. } => Err(failure.into()),
            _ => Err(unexpected_reply()),
        }
    }

    /// What comes of it, unless the worker is gone before that.
    async fn while_present<T>(
        &self,
        worker: WorkerId,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let presence = self.lock().get(&worker).map(|known| known.presence.subscribe());
        let mut presence = presence.ok_or_else(|| gone(worker))?;
        tokio::select! {
            biased;
            result = operation => result,
            _ = presence.changed() => Err(gone(worker)),
        }
    }

    async fn request(
        &self,
        worker: WorkerId,
        build: impl FnOnce(u64) -> (DataRequest, Vec<towline::Buffer>),
    ) -> Result<(DataReply, Incoming, Connection)> {
        let gone = || gone(worker);
        let peer = self.peer(worker).ok_or_else(gone)?;
        let connect_address = || async {
            address::connect_address(&self.endpoint, &peer.address.parse()?, &self.scheduler).await
        };
        let address =
            peer.connect_address.get_or_init(connect_address).await.as_ref().map_err(Error::clone)?;
        let data_connection =
            peer.data_connection.get_or_try_init(|| DataConnection::to(&self.endpoint, address)).await?;
        let (request, reply) = data_connection.open().ok_or_else(gone)?;
        let _guard = PendingGuard(data_connection, request);
        let (header, frames) = build(request);
        data_connection.connection.send(Message::from_parts(postcard::to_allocvec(&header)?, frames)).await?;
        match within(&self.endpoint, REPLY_TIMEOUT, reply).await {
            Some(reply) => {
                let (reply, incoming) = reply.map_err(|_| gone())?;
                Ok((reply, incoming, data_connection.connection.clone()))
            }
            None => {
                let why = format!("worker {worker} did not answer within {} s", REPLY_TIMEOUT.as_secs());
                Err(Error::new(ErrorKind::TimedOut, why))
            }
        }
    }

    /// The worker, with a line that has not ended.
    fn peer(&self, worker: WorkerId) -> Option<Arc<Peer>> {
        let mut known = self.lock();
        let peer = &mut known.get_mut(&worker)?.peer;
        if peer.data_connection.get().is_some_and(DataConnection::is_closed) {
            let Peer { address, connect_address, .. } = &**peer;
            *peer = Arc::new(Peer {
                address: address.clone(),
                connect_address: connect_address.clone(),
                data_connection: OnceCell::new(),
            });
        }
        Some(peer.clone())
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<WorkerId, PeerEntry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unexpected_reply() -> Error {
    Error::new(ErrorKind::Invalid, "a reply of the wrong type")
}

fn gone(worker: WorkerId) -> Error {
    Error::new(ErrorKind::Lost, format!("worker {worker} is gone"))
}

impl DataConnection {
    async fn to(endpoint: &Endpoint, address: &Address) -> Result<Self> {
        let connection = endpoint.connect(address).await?;
        let pending = Arc::new(Mutex::new(PendingRequests::default()));
        let receiving = Background::of(endpoint);
        // However it ends, nobody waits on this line any more, and the next question takes a new one.
        let at_end = AtEnd({
            let pending = pending.clone();
            move || {
                let mut pending = lock(&pending);
                pending.is_closed = true;
                pending.open.clear();
            }
        });
        receiving.spawn(at_end.around(receive_replies(connection.clone(), pending.clone())));
        Ok(Self { connection, pending, _receiving: receiving })
    }

    fn is_closed(&self) -> bool {
        lock(&self.pending).is_closed
    }

    fn open(&self) -> Option<(u64, oneshot::Receiver<(DataReply, Incoming)>)> {
        let mut pending = lock(&self.pending);
        if pending.is_closed {
            return None;
        }
        pending.last += 1;
        let request = pending.last;
        let (reply_sender, reply) = oneshot::channel();
        pending.open.insert(request, reply_sender);
        Some((request, reply))
    }
}

/// A question that is no longer open once nobody waits for its answer.
struct PendingGuard<'a>(&'a DataConnection, u64);

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.pending).open.remove(&self.1);
    }
}

/// Hands each answer to who asked. What nobody asked for, or nobody waits for any more, is rejected.
async fn receive_replies(connection: Connection, pending: Arc<Mutex<PendingRequests>>) {
    while let Ok(incoming) = connection.incoming().await {
        let Ok(reply) = postcard::from_bytes::<DataReply>(incoming.header()) else { break };
        let reply_sender = lock(&pending).open.remove(&reply.request());
        if let Some(reply_sender) = reply_sender {
            let _ = reply_sender.send((reply, incoming));
        }
    }
}

fn lock(pending: &Mutex<PendingRequests>) -> MutexGuard<'_, PendingRequests> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataReply {
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
pub(crate) fn encode_value(value: &Value) -> (ValueBytes, Vec<towline::Buffer>) {
    if value.bytes.len() <= INLINE_LEN_MAX {
        (ValueBytes::Inline(Blob(value.bytes.clone())), value.frames.clone())
    } else {
        let first = towline::Buffer::from(value.bytes.clone());
        (ValueBytes::FirstFrame, std::iter::once(first).chain(value.frames.iter().cloned()).collect())
    }
}

/// Takes the value of a message, each frame in the place that its sender had it in; over a link that moves ownership, the
/// sender's own.
pub(crate) async fn receive_value(
    incoming: Incoming,
    body: ValueBytes,
    connection: &Connection,
) -> Result<Value> {
    let moves = connection.caps().contains(Caps::MOVES_OWNERSHIP);
    let in_host = |place| matches!(place, Place::Host | Place::Arena);
    let places = || incoming.frames().iter().map(|frame| frame.place);
    // Arenas arrive as they are where the path lends, and as host memory elsewhere. Large host frames are read out of their
    // sender's memory where the path can and memory is named for them.
    let is_direct = incoming.payload_len() >= DIRECT_LEN_MIN && !places().any(|place| place == Place::Arena);
    let message = if moves || places().all(in_host) && !is_direct {
        incoming.accept().await?
    } else {
        let destination = |place| Destination::Place(if in_host(place) { Place::Host } else { place });
        let destinations = incoming.frames().iter().map(|frame| destination(frame.place)).collect();
        incoming.accept_into(destinations).await?
    };
    let (_, mut frames) = message.into_parts();
    let bytes = match body {
        ValueBytes::Inline(Blob(bytes)) => bytes,
        ValueBytes::FirstFrame if frames.is_empty() => {
            return Err(Error::new(ErrorKind::Invalid, "a value without its first frame"));
        }
        ValueBytes::FirstFrame => {
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
    async fn path_of_fetch(scheduler: &str) -> (&'static str, usize) {
        let endpoint = Endpoint::new().unwrap();
        let listener = endpoint.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let peers = Peers::new(endpoint, scheduler.parse().unwrap());
        peers.joined(7, listener.address().to_string());
        let missing = async {
            let connection = listener.accept().await.unwrap();
            connection.recv().await.unwrap();
            let answer = postcard::to_allocvec(&DataReply::Missing { request: 1 }).unwrap();
            connection.send(Message::new(answer)).await.unwrap();
            (connection.path().integrity(), connection.path().streams())
        };
        let (path, fetched) = tokio::join!(missing, peers.fetch(7, Key::new(1, 1), 1));
        assert!(fetched.unwrap().is_none());
        path
    }

    #[tokio::test]
    async fn workers_are_reached_with_the_options_of_the_schedulers_address() {
        let plain = path_of_fetch("tcp://127.0.0.1:7100").await;
        assert_eq!(plain.1, 1);
        let with_options = path_of_fetch("tcp://127.0.0.1:7100?integrity=crc32c&streams=3").await;
        assert_eq!(with_options, ("crc32c", 3), "{plain:?}");
    }

    #[tokio::test]
    async fn a_value_that_is_larger_than_was_said_is_not_taken() {
        let endpoint = Endpoint::new().unwrap();
        let listener = endpoint.listen(&"mem://".parse().unwrap()).await.unwrap();
        let peers = Peers::new(endpoint, listener.address().clone());
        peers.joined(7, listener.address().to_string());
        let key = Key::new(1, 1);
        let server = async {
            let connection = listener.accept().await.unwrap();
            for request in 1.. {
                connection.recv().await.unwrap();
                let answer =
                    DataReply::Found { request, value: ValueBytes::Inline(Blob(vec![0; 10].into())) };
                let header = postcard::to_allocvec(&answer).unwrap();
                connection.send(Message::from_parts(header, vec![vec![0; 1000].into()])).await.unwrap();
            }
        };
        let fetches = async {
            let refused = peers.fetch(7, key, 1009).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
            assert_eq!(peers.fetch(7, key, 1010).await.unwrap().unwrap().0.len(), 1010);
        };
        tokio::select! {
            () = server => {}
            () = fetches => {}
        }
    }
}
