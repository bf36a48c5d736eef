//! Incoming messages: announced, being received, or waiting for the application's acknowledgement.

mod fetching;
mod striped;

use std::collections::VecDeque;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut, Place, Pool, SharedBlock, lines};
use crate::transfer::message::{Announced, Arrival, Delivery, FrameInfo};
use crate::transfer::operation::{Done, Operation};
use crate::wire::chunks::Chunks;
use crate::wire::count::Count;
use crate::wire::credit::{PREGRANT, WINDOW};
use crate::wire::fetching::{Fetcher, addresses_in};
use crate::wire::lending::{Lender, LentFrame};
use crate::wire::record::{Announcement, Payload, Record, corrupt, put};
use crate::wire::sequence_window::SequenceWindow;

/// Small messages of one batch share pool blocks of this length, in bytes. A message kept by the application
/// keeps its whole block.
const SHARED_LEN: usize = 4 << 10;
/// Acknowledgements are sent at once when they free this fraction of the window's bytes.
const ACK_AT: u64 = 4;
/// The same for the window's messages. A sender that keeps a few hundred small messages in flight must not
/// stall while the receiver takes them.
const ACK_MESSAGES_AT: u64 = 16;

#[derive(Debug)]
pub(crate) struct Receives {
    pool: Pool,
    /// Pool blocks for the small messages of one batch of records.
    shared: SharedBlock,
    messages: SequenceWindow<IncomingMessage>,
    bytes_in_use: u64,
    pregranted_in_use: u64,
    /// The application receives into pool memory.
    in_pool: bool,
    /// The pre-granted credit that the peer was given, in bytes.
    pregranted: u64,
    /// Unsent acknowledgements, as runs of numbers.
    acks: Vec<(u64, u32, Delivery)>,
    /// What the unsent acknowledgements free, and whether a sender waits for one.
    acked_messages: u64,
    acked_bytes: u64,
    acked_pregranted: u64,
    acks_urgent: bool,
    /// Accepted or streaming payloads that are incomplete: their data may arrive at any time.
    filling: usize,
    /// Accepted payloads that this end fetches, in turns.
    fetching: VecDeque<u64>,
    /// A part of the first of them is being read.
    part_in_flight: bool,
    /// Payload arrives in chunks of this length, in any order.
    chunk_len: Option<usize>,
    pub(crate) copied: Count,
}

/// An announced message that is not acknowledged.
#[derive(Debug)]
struct IncomingMessage {
    cost: u64,
    pregranted: u64,
    ack_now: bool,
    /// The length of each frame, as long as they are needed.
    lens: Vec<usize>,
    state: ReceiveState,
}

#[derive(Debug)]
enum ReceiveState {
    /// The application has the whole payload.
    Complete,
    /// The sender has the payload. The addresses are those of a fetchable message.
    Waiting(Vec<u64>),
    /// The payload is arriving.
    Filling(Filling),
    /// The payload is being fetched, frame by frame, from these addresses on.
    Fetching(Filling, Vec<u64>),
}

#[derive(Debug)]
struct Filling {
    buffers: Buffers,
    /// The first frame that is not full.
    frame: usize,
    remaining: u64,
    /// The chunks that the buffers are split into, if there are chunks.
    chunks: Option<Box<Chunks>>,
    /// The application has already rejected the message.
    rejected: bool,
}

#[derive(Debug)]
enum Buffers {
    /// Pool memory, chosen before the application decides.
    FromPool(Vec<Option<BufferMut>>, Done<Vec<Buffer>>),
    /// Memory named by the application.
    FromApplication(Operation<Vec<Option<BufferMut>>, Vec<Buffer>>),
}

impl Filling {
    fn new(buffers: Buffers, remaining: u64) -> Self {
        Self { buffers, frame: 0, remaining, chunks: None, rejected: false }
    }

    /// Splits the buffers into chunks, if payload arrives in chunks.
    fn cut(&mut self, lens: &[usize], chunk_len: Option<usize>) {
        self.chunks = chunk_len.map(|chunk_len| Box::new(Chunks::cut(self.frames(lens), chunk_len)));
    }

    /// Rejoins buffers that were split into chunks.
    fn join(&mut self, lens: &[usize]) {
        if let Some(chunks) = self.chunks.take() {
            chunks.join(self.frames(lens));
        }
    }

    /// Returns the buffers that payload is written to, and the payload length of each.
    fn frames(&mut self, lens: &[usize]) -> impl Iterator<Item = (&mut BufferMut, usize)> {
        let frames = self.buffers().iter_mut().zip(lens);
        frames.filter_map(|(buffer, len)| Some((buffer.as_mut()?, *len)))
    }

    fn buffers(&mut self) -> &mut Vec<Option<BufferMut>> {
        match &mut self.buffers {
            Buffers::FromPool(buffers, _) => buffers,
            Buffers::FromApplication(operation) => operation.memory_mut(),
        }
    }
}

impl Receives {
    pub(crate) fn new(pool: Pool) -> Self {
        Self {
            pool,
            shared: SharedBlock::default(),
            messages: SequenceWindow::default(),
            bytes_in_use: 0,
            pregranted_in_use: 0,
            in_pool: false,
            pregranted: 0,
            acks: Vec::new(),
            acked_messages: 0,
            acked_bytes: 0,
            acked_pregranted: 0,
            acks_urgent: false,
            filling: 0,
            fetching: VecDeque::new(),
            part_in_flight: false,
            chunk_len: None,
            copied: Count::default(),
        }
    }

    /// Returns whether data of a message may arrive.
    pub(crate) fn expect_data(&self) -> bool {
        self.filling > 0 || self.pregranted > 0
    }

    /// Returns whether an accepted payload is still arriving or being fetched.
    pub(crate) fn are_incomplete(&self) -> bool {
        self.filling > 0 || self.is_fetching()
    }

    /// Sets whether the application receives into pool memory or names memory from now on. If it names
    /// memory, the peer's pre-granted credit is revoked; data sent by then still fits the credit granted
    /// before.
    pub(crate) fn expect(&mut self, in_pool: bool, records: &mut Vec<u8>) {
        if self.in_pool && !in_pool && self.pregranted > 0 {
            put(records, &Record::Pregrant { bytes: 0 });
        } else if !self.in_pool && in_pool && self.pregranted > 0 {
            put(records, &Record::Pregrant { bytes: self.pregranted });
        }
        self.in_pool = in_pool;
    }

    /// Handles an announced message, followed by `behind` bytes of records.
    pub(crate) fn announced(
        &mut self,
        message: Announcement<'_>,
        behind: usize,
        records: &mut Vec<u8>,
        lender: &mut Option<Box<dyn Lender>>,
    ) -> Result<Announced> {
        if message.id != self.messages.next() {
            return Err(corrupt(format!("message {} where {} is next", message.id, self.messages.next())));
        }
        let (cost, payload_len) = (message.cost(), message.payload_len());
        let streams = message.payload == Payload::Streams;
        let pregranted = if streams { payload_len } else { 0 };
        let within = self.messages.len() < WINDOW.messages as usize
            && self.bytes_in_use + cost <= WINDOW.bytes
            && self.pregranted_in_use + pregranted <= self.pregranted;
        if !within {
            return Err(corrupt("a message exceeds the granted credit"));
        }
        self.bytes_in_use += cost;
        self.pregranted_in_use += pregranted;
        let mut lens = Vec::new();
        if matches!(message.payload, Payload::Streams | Payload::Waits | Payload::Fetchable(_)) {
            lens.extend(message.frames.iter().map(|frame| frame.len));
        }
        let (state, arrival) = match message.payload {
            Payload::Eager(payload) => {
                let lens = message.frames.iter().map(|frame| frame.len);
                (ReceiveState::Complete, Arrival::Complete(self.land_eager(lens, payload, behind)?))
            }
            Payload::Lent(scope, lent_frames, payload) => {
                let lender =
                    lender.as_mut().ok_or_else(|| corrupt("lent frames on a connection without lending"))?;
                // Empty buffers keep the positions of lent frames.
                let travelled = |frame: &FrameInfo| if scope.lends(frame) { 0 } else { frame.len };
                let mut buffers = self.land_eager(message.frames.iter().map(travelled), payload, behind)?;
                let lent = buffers.iter_mut().zip(&message.frames).filter(|(_, frame)| scope.lends(frame));
                for ((buffer, frame), lent_frame) in lent.zip(lent_frames) {
                    // A bounce copy stands for memory of a place that this end may not have.
                    let place = if frame.place == Place::Arena { Place::Arena } else { Place::Host };
                    *buffer = lender.borrow(LentFrame::decode(lent_frame), frame.len, place)?;
                }
                (ReceiveState::Complete, Arrival::Complete(buffers))
            }
            Payload::Waits | Payload::Fetchable(_) => {
                if self.in_pool && self.pregranted == 0 {
                    // Large messages arrive: let the next ones stream at once.
                    self.pregranted = PREGRANT;
                    put(records, &Record::Pregrant { bytes: PREGRANT });
                }
                let addresses = match message.payload {
                    Payload::Fetchable(addresses) => addresses_in(addresses),
                    _ => Vec::new(),
                };
                (ReceiveState::Waiting(addresses), Arrival::AtSender)
            }
            Payload::Streams => {
                let buffers = self.destinations(lens.iter().copied())?.into_iter().map(Some).collect();
                self.filling += 1;
                let (done, landed) = Done::new();
                let buffers = Buffers::FromPool(buffers, done);
                let mut filling = Filling::new(buffers, payload_len);
                filling.cut(&lens, self.chunk_len);
                (ReceiveState::Filling(filling), Arrival::InProgress(landed))
            }
        };
        let id =
            self.messages.push(IncomingMessage { cost, pregranted, ack_now: message.ack_now, lens, state });
        Ok(Announced {
            id,
            header: Bytes::copy_from_slice(message.header),
            frames: message.frames,
            arrival,
            ack_now: message.ack_now,
        })
    }

    /// Allocates memory for unrequested payload, which the window and the pre-granted credit bound. An
    /// exhausted pool must not end the connection, so other memory is taken then.
    fn destinations(&self, lens: impl Iterator<Item = usize> + Clone) -> Result<Vec<BufferMut>> {
        self.pool.destinations(lens.clone()).or_else(|_| Pool::new(0).destinations(lens))
    }

    /// Copies small payload from the stream to pool memory, with frames aligned to 64 bytes. This is its only
    /// copy.
    fn land_eager(
        &mut self,
        lens: impl ExactSizeIterator<Item = usize> + Clone,
        mut payload: &[u8],
        behind: usize,
    ) -> Result<Vec<Buffer>> {
        self.copied.add(payload.len() as u64);
        let own: usize = lens.clone().map(lines).sum();
        let block_len = own.max(SHARED_LEN.min(own + behind));
        let mut buffers = Vec::with_capacity(lens.len());
        for len in lens {
            let destination = self.shared.destination(&self.pool, len, block_len);
            let mut buffer = destination.or_else(|_| Pool::new(0).take(len))?;
            let (frame, rest) = payload.split_at(len);
            buffer.extend_from_slice(frame)?;
            payload = rest;
            buffers.push(buffer.freeze());
        }
        Ok(buffers)
    }

    /// Ends a batch of records: later messages do not share its blocks.
    pub(crate) fn end_batch(&mut self) {
        self.shared = SharedBlock::default();
    }

    /// Accepts a message into `destinations`. With `fetch`, the payload is fetched if the application names
    /// the memory.
    pub(crate) fn accept(
        &mut self,
        id: u64,
        destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>,
        records: &mut Vec<u8>,
        fetch: bool,
    ) {
        let wrong = |why| Error::new(ErrorKind::Invalid, why);
        let Some(incoming) = self.messages.at(id) else {
            return destinations.fail(wrong("that message is already acknowledged"));
        };
        match std::mem::replace(&mut incoming.state, ReceiveState::Complete) {
            ReceiveState::Waiting(addresses) => {
                if let Err(error) = check(&incoming.lens, destinations.memory()) {
                    incoming.state = ReceiveState::Waiting(addresses);
                    return destinations.fail(error);
                }
                let (discarded, remaining) = discarded_and_remaining(&incoming.lens, destinations.memory());
                if fetch && !self.in_pool && !addresses.is_empty() && remaining > 0 {
                    incoming.state = ReceiveState::Fetching(
                        Filling::new(Buffers::FromApplication(destinations), remaining),
                        addresses,
                    );
                    return self.fetching.push_back(id);
                }
                put(records, &Record::Accept { id, discarded: &discarded });
                let mut filling = Filling::new(Buffers::FromApplication(destinations), remaining);
                filling.cut(&incoming.lens, self.chunk_len);
                incoming.state = ReceiveState::Filling(filling);
                self.filling += 1;
                if remaining == 0 {
                    self.complete(id);
                }
            }
            other => {
                incoming.state = other;
                destinations.fail(wrong("that message does not wait for a destination"));
            }
        }
    }

    /// Acknowledges a message for the application.
    pub(crate) fn ack(&mut self, id: u64, delivery: Delivery, ack_now: bool) {
        let Some(incoming) = self.messages.at(id) else { return };
        if let ReceiveState::Filling(filling) | ReceiveState::Fetching(filling, _) = &mut incoming.state {
            // A transfer cannot be stopped: the message is rejected once it is complete.
            filling.rejected |= delivery == Delivery::Rejected;
            return;
        }
        let Some(incoming) = self.messages.remove(id) else { return };
        self.bytes_in_use -= incoming.cost;
        self.pregranted_in_use -= incoming.pregranted;
        self.acked_messages += 1;
        self.acked_bytes += incoming.cost;
        self.acked_pregranted += incoming.pregranted;
        self.acks_urgent |= ack_now || incoming.ack_now;
        match self.acks.last_mut() {
            Some((first, count, acked)) if *first + u64::from(*count) == id && *acked == delivery => {
                *count += 1
            }
            _ => self.acks.push((id, 1, delivery)),
        }
    }

    /// Returns whether acknowledgements are pending, and whether they must be sent at once.
    pub(crate) fn acks_due(&self) -> (bool, bool) {
        let urgent = self.acks_urgent
            || self.acked_messages >= WINDOW.messages / ACK_MESSAGES_AT
            || self.acked_bytes >= WINDOW.bytes / ACK_AT
            || self.acked_pregranted >= PREGRANT / ACK_AT;
        (!self.acks.is_empty(), urgent)
    }

    /// Writes the pending acknowledgements.
    pub(crate) fn write_acks(&mut self, records: &mut Vec<u8>) {
        for (first, count, delivery) in self.acks.drain(..) {
            put(records, &Record::Ack { first, count, delivery });
        }
        (self.acked_messages, self.acked_bytes, self.acked_pregranted, self.acks_urgent) = (0, 0, 0, false);
    }

    /// Returns where the next bytes of a message's data go: buffers, each with the number of bytes it still
    /// takes.
    pub(crate) fn room<'a>(
        &'a mut self,
        id: u64,
        room: &mut Vec<(&'a mut BufferMut, usize)>,
        room_max: usize,
    ) {
        let Some(IncomingMessage { lens, state: ReceiveState::Filling(filling), .. }) = self.messages.at(id)
        else {
            return;
        };
        let from = filling.frame;
        let frames = filling.buffers().iter_mut().zip(lens.iter()).skip(from);
        let open = frames.filter_map(|(buffer, len)| {
            let buffer = buffer.as_mut()?;
            let missing = len - buffer.len();
            (missing > 0).then_some((buffer, missing))
        });
        room.extend(open.take(room_max));
    }

    /// Returns the number of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.messages.next()
    }

    /// Returns the frame that a message's next data belongs to, and the offset in it.
    pub(crate) fn position(&mut self, id: u64) -> (usize, u64) {
        match self.messages.at(id) {
            Some(IncomingMessage { state: ReceiveState::Filling(filling), .. }) => {
                let frame = filling.frame;
                let buffer = filling.buffers().get(frame).and_then(Option::as_ref);
                (frame, buffer.map_or(0, |buffer| buffer.len() as u64))
            }
            _ => (0, 0),
        }
    }

    /// Returns how much data of a message is missing.
    pub(crate) fn remaining(&mut self, id: u64) -> Option<u64> {
        match self.messages.at(id) {
            Some(IncomingMessage { state: ReceiveState::Filling(filling), .. }) => Some(filling.remaining),
            _ => None,
        }
    }

    /// Records that `len` bytes of a message's data have arrived.
    pub(crate) fn landed(&mut self, id: u64, len: u64) {
        let Some(IncomingMessage { lens, state: ReceiveState::Filling(filling), .. }) = self.messages.at(id)
        else {
            return;
        };
        filling.remaining -= len;
        let (mut frame, remaining) = (filling.frame, filling.remaining);
        let buffers = filling.buffers();
        while lens
            .get(frame)
            .is_some_and(|len| buffers[frame].as_ref().is_none_or(|buffer| buffer.len() == *len))
        {
            frame += 1;
        }
        filling.frame = frame;
        if remaining == 0 {
            self.complete(id);
        }
    }

    fn complete(&mut self, id: u64) {
        let Some(incoming) = self.messages.at(id) else { return };
        let ReceiveState::Filling(mut filling) =
            std::mem::replace(&mut incoming.state, ReceiveState::Complete)
        else {
            return;
        };
        filling.join(&incoming.lens);
        self.filling -= 1;
        match filling.buffers {
            Buffers::FromApplication(operation) => {
                operation.finish(freeze);
                self.ack(id, Delivery::Delivered, false);
            }
            Buffers::FromPool(..) if filling.rejected => self.ack(id, Delivery::Rejected, false),
            // The application has not acknowledged yet.
            Buffers::FromPool(buffers, done) => done.resolve(Ok(freeze(buffers))),
        }
    }

    /// Fails all receives in progress.
    pub(crate) fn give_up(&mut self, why: &Error, fetcher: Option<&mut dyn Fetcher>) {
        if let Some(fetcher) = fetcher {
            self.give_up_part(fetcher, why);
        }
        for IncomingMessage { lens, state, .. } in self.messages.drain() {
            let (ReceiveState::Filling(mut filling) | ReceiveState::Fetching(mut filling, _)) = state else {
                continue;
            };
            filling.join(&lens);
            match filling.buffers {
                Buffers::FromApplication(operation) => operation.fail(why.clone()),
                Buffers::FromPool(_, done) => done.resolve(Err(why.clone())),
            }
        }
        self.filling = 0;
        self.fetching.clear();
    }
}

fn freeze(buffers: Vec<Option<BufferMut>>) -> Vec<Buffer> {
    buffers.into_iter().map(|buffer| buffer.map(BufferMut::freeze).unwrap_or_default()).collect()
}

/// Returns the bitmap of discarded frames, and the number of bytes that will arrive.
fn discarded_and_remaining(lens: &[usize], destinations: &[Option<BufferMut>]) -> (Vec<u8>, u64) {
    let mut discarded = Vec::new();
    let mut remaining = 0;
    for (index, (len, destination)) in lens.iter().zip(destinations).enumerate() {
        if destination.is_some() {
            remaining += *len as u64;
        } else {
            discarded.resize(index / 8 + 1, 0);
            discarded[index / 8] |= 1 << (index % 8);
        }
    }
    (discarded, remaining)
}

fn check(lens: &[usize], destinations: &[Option<BufferMut>]) -> Result<()> {
    let fits = |(len, destination): (&usize, &Option<BufferMut>)| {
        destination.as_ref().is_none_or(|buffer| buffer.is_empty() && buffer.capacity() >= *len)
    };
    if lens.len() == destinations.len() && lens.iter().zip(destinations).all(fits) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "the destinations do not fit the message's frames"))
}
