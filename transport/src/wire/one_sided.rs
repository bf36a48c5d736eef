//! Gets and puts: our requests in flight, and the peer's requests being served.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut};
use crate::transfer::message::EAGER_LEN_MAX;
use crate::transfer::operation::Operation;
use crate::transfer::region::{Regions, RemoteRegion, WriteLease};
use crate::wire::chunks::{Chunk, ChunkParts, Chunks};
use crate::wire::count::Count;
use crate::wire::record::{Record, Transfer, corrupt, put, put_put};
use crate::wire::send_queue::{DataOwner, DataSource, Ending, SendQueue};
use crate::wire::sends::RECORDS_LEN;

/// The most unanswered requests of one end. Further ones wait.
const REQUESTS_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct OneSided {
    regions: Arc<Regions>,
    queued: VecDeque<(RemoteRegion, u64, Request)>,
    requests: HashMap<u64, Request>,
    next: u64,
    /// The peer's puts whose payload is arriving.
    incoming_puts: HashMap<u64, IncomingPut>,
    /// The peer's requests whose answers have not been sent.
    serving: usize,
    /// Our gets whose data is arriving.
    gets: usize,
    /// Payload arrives in chunks of this length, in any order.
    chunk_len: Option<usize>,
    /// The answer to a put may arrive before the transport reports that the put has left.
    early_acks: bool,
    pub(crate) copied: Count,
}

#[derive(Debug)]
enum Request {
    /// `chunks` are the parts of the buffer that data is received into.
    Get {
        into: Operation<BufferMut, BufferMut>,
        start: usize,
        end: usize,
        chunks: Option<Box<Chunks>>,
    },
    Put {
        from: Operation<Buffer>,
        state: PutState,
    },
}

/// The progress of a put.
#[derive(Debug)]
enum PutState {
    /// Waits for the owner to be ready to receive.
    AwaitingReady,
    /// The payload is leaving. The owner's answer may already have arrived.
    Sending(Option<Result<()>>),
    /// Everything has left; only the owner's answer is missing.
    Sent,
}

impl Request {
    /// Fails the request and returns its memory unchanged. A partly filled buffer would look as if the caller
    /// had filled it.
    fn fail(self, error: Error) {
        match self {
            Self::Get { mut into, start, end, chunks } => {
                if let Some(chunks) = chunks {
                    chunks.join(std::iter::once((into.memory_mut(), end - start)));
                }
                into.memory_mut().truncate(start);
                into.fail(error);
            }
            Self::Put { from, .. } => from.fail(error),
        }
    }
}

#[derive(Debug)]
struct IncomingPut {
    lease: WriteLease,
    at: usize,
    revoked: bool,
    /// The chunks that have arrived, if data arrives in chunks.
    chunks: Option<Box<Chunks>>,
}

/// Where data of a request is written.
#[derive(Debug)]
pub(crate) enum RequestTarget<'a> {
    Buffer(&'a mut BufferMut, usize),
    /// The lease, and the offset in it.
    Region(&'a WriteLease, usize),
}

impl OneSided {
    pub(crate) fn new(regions: Arc<Regions>) -> Self {
        Self {
            regions,
            queued: VecDeque::new(),
            requests: HashMap::new(),
            next: 0,
            incoming_puts: HashMap::new(),
            serving: 0,
            gets: 0,
            chunk_len: None,
            early_acks: false,
            copied: Count::default(),
        }
    }

    /// Makes payload arrive in chunks of `chunk_len` bytes, in any order.
    pub(crate) fn stripe(&mut self, chunk_len: usize) {
        self.chunk_len = Some(chunk_len);
    }

    /// Allows answers to arrive before their puts have left. They then take effect once the put has left.
    pub(crate) fn allow_early_acks(&mut self) {
        self.early_acks = true;
    }

    pub(crate) fn get(&mut self, region: RemoteRegion, offset: u64, into: Operation<BufferMut, BufferMut>) {
        let (start, end) = (into.memory().len(), into.memory().capacity());
        self.queued.push_back((region, offset, Request::Get { into, start, end, chunks: None }));
    }

    pub(crate) fn put(&mut self, region: RemoteRegion, offset: u64, from: Operation<Buffer>) {
        self.queued.push_back((region, offset, Request::Put { from, state: PutState::Sent }));
    }

    /// Returns whether data of a get or put may arrive.
    pub(crate) fn expect_data(&self) -> bool {
        self.gets > 0 || !self.incoming_puts.is_empty()
    }

    /// Returns whether a request could be sent now.
    pub(crate) fn are_due(&self) -> bool {
        !self.queued.is_empty() && self.requests.len() < REQUESTS_MAX
    }

    /// Returns whether all our requests are answered.
    pub(crate) fn are_done(&self) -> bool {
        self.queued.is_empty() && self.requests.is_empty()
    }

    /// Writes requests while the packet has room.
    pub(crate) fn write_requests(&mut self, send_queue: &mut SendQueue) {
        while self.are_due() && send_queue.records_len() < RECORDS_LEN && send_queue.has_room() {
            let Some((region, offset, mut request)) = self.queued.pop_front() else { return };
            let id = self.next;
            self.next += 1;
            match &mut request {
                Request::Get { into, start, end, chunks } => {
                    let len = *end - *start;
                    put(
                        send_queue.encoded(),
                        &Record::Get { id, key: *region.key(), offset, len: len as u64 },
                    );
                    self.gets += 1;
                    *chunks = self.chunk_len.map(|chunk_len| {
                        Box::new(Chunks::cut(std::iter::once((into.memory_mut(), len)), chunk_len))
                    });
                }
                Request::Put { from, state } => {
                    let len = from.memory().len() as u64;
                    let eager = len < EAGER_LEN_MAX;
                    put_put(send_queue.encoded(), id, region.key(), offset, len, eager);
                    if eager {
                        send_queue.payload(std::iter::once(from.memory().clone()));
                    }
                    *state = if eager { PutState::Sent } else { PutState::AwaitingReady };
                }
            }
            self.requests.insert(id, request);
        }
    }

    /// Serves the peer's get.
    pub(crate) fn serve_get(
        &mut self,
        id: u64,
        key: &[u8; 16],
        offset: u64,
        len: u64,
        records: &mut Vec<u8>,
    ) -> Result<Option<DataSource>> {
        self.begin_serving()?;
        match self.regions.read(key, offset, len) {
            Ok(lease) if len > 0 => Ok(Some(DataSource::new(Transfer::Get(id), DataOwner::Region(lease)))),
            Ok(_) => {
                put(records, &Record::Done { id });
                Ok(None)
            }
            Err(error) => {
                put(records, &Record::Refused { id, reason: error.detail().to_owned() });
                Ok(None)
            }
        }
    }

    /// Serves the peer's put.
    pub(crate) fn serve_put(
        &mut self,
        id: u64,
        (key, offset, len): (&[u8; 16], u64, u64),
        payload: Option<&[u8]>,
        records: &mut Vec<u8>,
    ) -> Result<()> {
        self.begin_serving()?;
        let lease = match self.regions.write(key, offset, len) {
            Ok(lease) => lease,
            Err(error) => {
                put(records, &Record::Refused { id, reason: error.detail().to_owned() });
                return Ok(());
            }
        };
        match payload {
            Some(payload) => {
                self.copied.add(payload.len() as u64);
                let written = lease.with(0, |bytes| bytes.copy_from_slice(payload));
                put(records, &if written.is_some() { Record::Done { id } } else { refused(id) });
            }
            None if len < EAGER_LEN_MAX => return Err(corrupt("a small put without its payload")),
            None => {
                put(records, &Record::ReadyToReceive { id });
                let chunks = self.chunk_len;
                let chunks = chunks.map(|chunk_len| Box::new(Chunks::of_region(lease.len(), chunk_len)));
                let incoming = IncomingPut { lease, at: 0, revoked: false, chunks };
                // Chunks in flight are returned to this entry, so a second put must not replace it.
                match self.incoming_puts.entry(id) {
                    Entry::Vacant(entry) => {
                        entry.insert(incoming);
                    }
                    Entry::Occupied(_) => return Err(corrupt("two puts with one number")),
                }
            }
        }
        Ok(())
    }

    fn begin_serving(&mut self) -> Result<()> {
        self.serving += 1;
        if self.serving > REQUESTS_MAX {
            return Err(corrupt(format!("more than {REQUESTS_MAX} unanswered gets and puts")));
        }
        Ok(())
    }

    /// Records that `answers` answers have been sent.
    pub(crate) fn replied(&mut self, answers: usize) {
        self.serving = self.serving.saturating_sub(answers);
    }

    /// Starts sending the payload of our put.
    pub(crate) fn peer_is_ready(&mut self, id: u64) -> Result<DataSource> {
        match self.requests.get_mut(&id) {
            Some(Request::Put { from, state: state @ PutState::AwaitingReady }) => {
                *state = if self.early_acks { PutState::Sending(None) } else { PutState::Sent };
                Ok(DataSource::new(Transfer::Put(id), DataOwner::Put(from.memory().clone())))
            }
            _ => Err(corrupt("ready-to-receive for no waiting put")),
        }
    }

    /// Completes a put whose bytes are in place, or a get of length 0.
    pub(crate) fn done(&mut self, id: u64) -> Result<()> {
        match self.requests.remove(&id) {
            Some(Request::Put { from, state: PutState::Sent }) => from.finish(drop),
            Some(Request::Put { from, state: PutState::Sending(None) }) => {
                self.requests.insert(id, Request::Put { from, state: PutState::Sending(Some(Ok(()))) });
            }
            Some(Request::Get { into, start, end, .. }) if start == end => {
                self.gets -= 1;
                into.finish(|memory| memory);
            }
            other => {
                // Any other request fails with the connection and gets its memory back unchanged.
                self.requests.extend(other.map(|request| (id, request)));
                return Err(corrupt("an answer to no request"));
            }
        }
        Ok(())
    }

    /// Records that the payload of our put has left.
    pub(crate) fn put_left(&mut self, id: u64) {
        let Some(Request::Put { state: state @ PutState::Sending(_), .. }) = self.requests.get_mut(&id)
        else {
            return;
        };
        let PutState::Sending(Some(outcome)) = std::mem::replace(state, PutState::Sent) else { return };
        let Some(Request::Put { from, .. }) = self.requests.remove(&id) else { return };
        match outcome {
            Ok(()) => from.finish(drop),
            Err(error) => from.fail(error),
        }
    }

    pub(crate) fn refused(&mut self, id: u64, reason: String) -> Result<()> {
        let error = Error::new(ErrorKind::Rejected, reason);
        if self.chunks(Transfer::Get(id)).is_some_and(|chunks| !chunks.are_untouched()) {
            return Err(corrupt("a refusal of a get whose answer has begun"));
        }
        if let Some(Request::Put { state: PutState::Sending(outcome), .. }) = self.requests.get_mut(&id) {
            return match outcome.replace(Err(error)) {
                None => Ok(()),
                Some(_) => Err(corrupt("two answers to one request")),
            };
        }
        let Some(request) = self.requests.remove(&id) else { return Err(corrupt("a refusal of no request")) };
        self.gets -= usize::from(matches!(request, Request::Get { .. }));
        request.fail(error);
        Ok(())
    }

    /// Returns how much data of a transfer is missing.
    pub(crate) fn remaining(&self, transfer: Transfer) -> Option<u64> {
        match transfer {
            Transfer::Get(id) => match self.requests.get(&id)? {
                Request::Get { into, end, .. } => Some((*end - into.memory().len()) as u64),
                Request::Put { .. } => None,
            },
            Transfer::Put(id) => {
                self.incoming_puts.get(&id).map(|incoming| (incoming.lease.len() - incoming.at) as u64)
            }
            Transfer::Message(_) => None,
        }
    }

    /// Returns how much data of a transfer has arrived.
    pub(crate) fn position(&self, transfer: Transfer) -> u64 {
        match transfer {
            Transfer::Get(id) => match self.requests.get(&id) {
                Some(Request::Get { into, .. }) => into.memory().len() as u64,
                _ => 0,
            },
            Transfer::Put(id) => self.incoming_puts.get(&id).map_or(0, |incoming| incoming.at as u64),
            Transfer::Message(_) => 0,
        }
    }

    /// Returns where the next bytes of a transfer are written.
    pub(crate) fn room(&mut self, transfer: Transfer) -> Option<RequestTarget<'_>> {
        match transfer {
            Transfer::Get(id) => match self.requests.get_mut(&id)? {
                Request::Get { into, end, .. } => {
                    let missing = *end - into.memory().len();
                    Some(RequestTarget::Buffer(into.memory_mut(), missing))
                }
                Request::Put { .. } => None,
            },
            Transfer::Put(id) => self
                .incoming_puts
                .get(&id)
                .map(|incoming| RequestTarget::Region(&incoming.lease, incoming.at)),
            Transfer::Message(_) => None,
        }
    }

    /// Records that `len` bytes of a transfer arrived, or were discarded because the region was `revoked`.
    pub(crate) fn landed(&mut self, transfer: Transfer, len: u64, revoked: bool, records: &mut Vec<u8>) {
        match transfer {
            Transfer::Get(id) => {
                if self.remaining(transfer) == Some(0)
                    && let Some(Request::Get { into, .. }) = self.requests.remove(&id)
                {
                    self.gets -= 1;
                    into.finish(|memory| memory);
                }
            }
            Transfer::Put(id) => {
                let Some(incoming) = self.incoming_puts.get_mut(&id) else { return };
                incoming.at += len as usize;
                incoming.revoked |= revoked;
                if incoming.at == incoming.lease.len() {
                    put(records, &if incoming.revoked { refused(id) } else { Record::Done { id } });
                    self.incoming_puts.remove(&id);
                }
            }
            Transfer::Message(_) => {}
        }
    }

    /// Returns the region range that a put of the peer is written to.
    pub(crate) fn lease(&self, id: u64) -> Option<&WriteLease> {
        self.incoming_puts.get(&id).map(|incoming| &incoming.lease)
    }

    /// Claims the buffers of an arriving chunk.
    pub(crate) fn claim(&mut self, transfer: Transfer, offset: u64, len: usize) -> Result<ChunkParts> {
        match self.chunks(transfer) {
            Some(chunks) => chunks.claim(offset, len),
            None => Err(corrupt(format!("{len} bytes of unexpected data ({transfer:?})"))),
        }
    }

    fn chunks(&mut self, transfer: Transfer) -> Option<&mut Chunks> {
        match transfer {
            Transfer::Get(id) => match self.requests.get_mut(&id)? {
                Request::Get { chunks, .. } => chunks.as_deref_mut(),
                Request::Put { .. } => None,
            },
            Transfer::Put(id) => self.incoming_puts.get_mut(&id)?.chunks.as_deref_mut(),
            Transfer::Message(_) => None,
        }
    }

    /// Completes a chunk of a transfer, which was discarded if the region was `revoked`.
    pub(crate) fn chunk_landed(&mut self, chunk: Chunk, records: &mut Vec<u8>) {
        let Chunk { transfer, offset, len, parts, revoked, .. } = chunk;
        if let Transfer::Put(id) = transfer
            && self.incoming_puts.get(&id).is_some_and(|incoming| incoming.chunks.is_none())
        {
            // A single stream delivers the data in order.
            return self.landed(transfer, len as u64, revoked, records);
        }
        let is_whole = self.chunks(transfer).is_some_and(|chunks| chunks.landed(offset, parts));
        match transfer {
            Transfer::Get(id) if is_whole => {
                let Some(Request::Get { mut into, start, end, chunks: Some(chunks) }) =
                    self.requests.remove(&id)
                else {
                    return;
                };
                self.gets -= 1;
                chunks.join(std::iter::once((into.memory_mut(), end - start)));
                into.finish(|memory| memory);
            }
            Transfer::Put(id) => {
                let Some(incoming) = self.incoming_puts.get_mut(&id) else { return };
                incoming.revoked |= revoked;
                if is_whole {
                    put(records, &if incoming.revoked { refused(id) } else { Record::Done { id } });
                    self.incoming_puts.remove(&id);
                }
            }
            Transfer::Get(_) | Transfer::Message(_) => {}
        }
    }

    /// Returns the buffers of a chunk that will not arrive.
    pub(crate) fn put_back(&mut self, chunk: Chunk) {
        if let Some(chunks) = self.chunks(chunk.transfer) {
            chunks.put_back(chunk.offset, chunk.parts);
        }
    }

    /// Fails all our requests and drops the peer's.
    pub(crate) fn give_up(&mut self, why: &Error) {
        let queued = self.queued.drain(..).map(|(_, _, request)| request);
        for request in queued.chain(self.requests.drain().map(|(_, request)| request)) {
            request.fail(why.clone());
        }
        self.incoming_puts.clear();
        self.gets = 0;
    }
}

fn refused(id: u64) -> Record<'static> {
    Record::Refused { id, reason: "the region was revoked".into() }
}

/// Returns the endings of a batch that carries `answers` records in answer to the peer's requests.
pub(crate) fn replies(answers: usize) -> impl Iterator<Item = Ending> {
    (0..answers).map(|_| Ending::Replied(None))
}
