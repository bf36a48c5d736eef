//! Data transfers between workers, and between clients and workers: a request and a reply, one message each,
//! without the scheduler.

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

/// Time limit for the begin of a reply. The data itself may take any time while the peer lives.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Values of at least this many bytes are received into named destinations.
const DIRECT_LEN_MIN: u64 = 64 << 10;
/// A value with more bytes than this carries them in a frame.
const INLINE_LEN_MAX: usize = 32 << 10;

/// The known workers, and the connections to those that were used.
#[derive(Debug)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    /// The address at which this end reaches the scheduler. Its options hold for connections to workers too.
    scheduler: Address,
    known: Mutex<FxHashMap<WorkerId, PeerEntry>>,
}

#[derive(Debug)]
struct PeerEntry {
    peer: Arc<Peer>,
    /// Dropped when the scheduler reports that the worker is gone, so that pending requests fail at once.
    presence: watch::Sender<()>,
}

#[derive(Debug)]
struct Peer {
    address: String,
    /// The address to connect to from this end.
    connect_address: OnceCell<Result<Address>>,
    data_connection: OnceCell<DataConnection>,
}

/// A connection, and the requests that wait for replies on it.
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

    /// Returns all known workers and their addresses, sorted by id.
    pub(crate) fn all(&self) -> Vec<(WorkerId, String)> {
        let mut all: Vec<_> =
            self.lock().iter().map(|(id, known)| (*id, known.peer.address.clone())).collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn address(&self, worker: WorkerId) -> Option<String> {
        self.lock().get(&worker).map(|known| known.peer.address.clone())
    }

    /// Returns whether this end found that it cannot connect to the worker.
    pub(crate) fn is_unreachable(&self, worker: WorkerId) -> bool {
        self.lock().get(&worker).is_some_and(|known| matches!(known.peer.connect_address.get(), Some(Err(_))))
    }

    /// Fetches a value of at most `bytes_max` bytes. Returns it with the path that carried it, or `None` if
    /// the worker does not have it. A larger value is rejected.
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
                        let why = format!("worker {worker} sent {bytes} bytes for a value of {bytes_max}");
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

    /// Stores the value at the worker.
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

    /// Runs `operation`, and fails it if the worker leaves first.
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

    /// Returns the worker, with its ended connection removed.
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
        // However the task ends, pending requests fail, and the next request opens a new connection.
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

/// Removes a request from the pending ones when its caller stops waiting.
struct PendingGuard<'a>(&'a DataConnection, u64);

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.pending).open.remove(&self.1);
    }
}

/// Passes each reply to its request. A reply without a pending request is rejected.
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

/// Splits the value into bytes for the header and frames.
pub(crate) fn encode_value(value: &Value) -> (ValueBytes, Vec<towline::Buffer>) {
    if value.bytes.len() <= INLINE_LEN_MAX {
        (ValueBytes::Inline(Blob(value.bytes.clone())), value.frames.clone())
    } else {
        let first = towline::Buffer::from(value.bytes.clone());
        (ValueBytes::FirstFrame, std::iter::once(first).chain(value.frames.iter().cloned()).collect())
    }
}

/// Receives the value of a message. Each frame arrives in the kind of memory that the sender had it in; over
/// a link that moves ownership it is the sender's memory itself.
pub(crate) async fn receive_value(
    incoming: Incoming,
    body: ValueBytes,
    connection: &Connection,
) -> Result<Value> {
    let moves = connection.caps().contains(Caps::MOVES_OWNERSHIP);
    let in_host = |place| matches!(place, Place::Host | Place::Arena);
    let places = || incoming.frames().iter().map(|frame| frame.place);
    // Arena frames arrive without a copy where the path can lend, and in host memory elsewhere. Large host
    // frames are read directly from the sender's memory where the path supports it and a destination is
    // named.
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

    /// Replies to one fetch. Returns the integrity check and the number of streams of the connection that it
    /// came over.
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
    async fn worker_connections_use_scheduler_address_options() {
        let plain = path_of_fetch("tcp://127.0.0.1:7100").await;
        assert_eq!(plain.1, 1);
        let with_options = path_of_fetch("tcp://127.0.0.1:7100?integrity=crc32c&streams=3").await;
        assert_eq!(with_options, ("crc32c", 3), "{plain:?}");
    }

    #[tokio::test]
    async fn value_larger_than_announced_is_rejected() {
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
