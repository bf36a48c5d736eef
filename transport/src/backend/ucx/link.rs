//! The byte stream of `ucx`: a session's records leave as small messages, and its payload as packets of their
//! own, from memory to memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::context::{POSIX_NOTE, is_over_posix};
use super::engine::{CLOSE_TIME, Operand, PostResult, SWEEP_EVERY};
use super::events::{EventBatch, HEADER_LEN_MAX, Header, IncomingPacket, Received, ReceiverKey};
use super::lingering::LingeringEngine;
use crate::backend::streamed::ByteStream;
use crate::backend::{Environment, WaitSource};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::RawBytes;
use crate::wire::record::head_len;
use crate::wire::session::{self, Packet, Session, Urgency};

/// The longest packet. Smaller packets of other transfers may leave between two.
pub(super) const PACKET_LEN: usize = 1 << 20;
/// The most packets in flight.
const PACKETS_MAX: usize = 8;
/// The most bytes of records in one message, and the most such messages in flight.
const RECORDS_LEN_MAX: usize = 64 << 10;
const RECORDS_MAX: usize = 8;
/// The most bytes of records that leave with a packet, which delays them by no more than its eager part.
const COALESCED_LEN_MAX: usize = 128;
/// The most pieces that are gathered at once.
const PIECES_MAX: usize = 512;
/// The most messages that arrived out of order, and the most packets that arrived before their message.
const EARLY_MAX: usize = 1024;

const _: () = assert!(
    size_of::<ReceiverKey>() + head_len(true, true) + size_of::<u64>() + COALESCED_LEN_MAX <= HEADER_LEN_MAX,
    "the peer drops a header beyond that"
);

/// The parts of the byte stream that any thread may access.
#[derive(Debug)]
pub(super) struct UcxByteStream {
    pub(super) descriptor: OwnedFd,
    /// Requests are in flight that complete only if a thread polls.
    pending: AtomicBool,
    /// Calls that moved data, or tried to.
    calls: AtomicU64,
    notes: Vec<String>,
    environment: Arc<dyn Environment>,
}

/// The parts that only the holder of the poll lock accesses.
#[derive(Debug)]
pub(super) struct UcxState {
    engine: LingeringEngine,
    batch: EventBatch,
    /// This end's key, and the peer's.
    key: ReceiverKey,
    peer_key: ReceiverKey,
    /// The peer's hello has arrived.
    hello_received: bool,
    /// Messages of records sent and received, and those that arrived out of order.
    sent: u64,
    taken: u64,
    out_of_order: BTreeMap<u64, Vec<u8>>,
    /// Packets whose message was not announced yet.
    early_packets: Vec<IncomingPacket>,
    /// In flight: messages of records, and packets sent.
    records: usize,
    packets: usize,
    /// Memory for the next messages of records.
    spare: Vec<Vec<u8>>,
}

impl UcxByteStream {
    pub(super) fn new(state: &mut UcxState, environment: &Arc<dyn Environment>) -> Result<Self> {
        let transports = state.engine.transports();
        let mut notes = vec![match &transports[..] {
            [] => "UCX does not report which transports it uses".to_owned(),
            transports => format!("UCX uses {}", transports.join(", ")),
        }];
        notes.extend(is_over_posix(&transports).then(|| POSIX_NOTE.to_owned()));
        Ok(Self {
            descriptor: state.engine.descriptor()?,
            pending: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            notes,
            environment: environment.clone(),
        })
    }

    /// Publishes to other threads whether requests are in flight.
    fn update_pending(&self, state: &UcxState, session: &Session) {
        let pending = !state.engine.is_idle() || session.has_packet();
        if self.pending.load(Ordering::Relaxed) != pending {
            self.pending.store(pending, Ordering::Release);
        }
    }
}

impl UcxState {
    pub(super) fn new(engine: LingeringEngine, (key, peer_key): (ReceiverKey, ReceiverKey)) -> Self {
        Self {
            engine,
            batch: EventBatch::default(),
            key,
            peer_key,
            hello_received: false,
            sent: 0,
            taken: 0,
            out_of_order: BTreeMap::new(),
            early_packets: Vec::new(),
            records: 0,
            packets: 0,
            spare: Vec::new(),
        }
    }

    /// Connects to the worker with that address, and sends a hello. It tells the peer that this end is open,
    /// and that the path to it works.
    pub(super) fn connect(&mut self, address: &[u8]) -> Result<()> {
        self.engine.connect(address)?;
        match self.engine.send(&self.peer_key, Operand::Hello) {
            PostResult::Failed(_, why) => Err(why),
            PostResult::Done(_) | PostResult::Pending => Ok(()),
        }
    }

    /// Returns true if the peer's hello has arrived and ours has left; otherwise makes progress. Over `rc`,
    /// our direction may still be connecting when the peer's hello arrives, and no other thread polls until
    /// this end is open.
    pub(super) fn is_connected(&mut self, session: &mut Session) -> Result<bool> {
        self.progress(session)?;
        Ok(self.hello_received && self.engine.is_idle())
    }

    /// Makes progress and handles all events. Returns true if anything happened.
    fn progress(&mut self, session: &mut Session) -> Result<bool> {
        let progressed = self.engine.progress();
        if !self.engine.has_events() {
            return Ok(progressed);
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.engine.take_events(&mut batch);
        let over = self.complete(&mut batch, session);
        let mut received = batch.received.drain(..);
        let taken =
            over.and_then(|()| received.try_for_each(|message| self.take(message, &batch.bytes, session)));
        for left in received {
            if let Received::Packet(incoming) = left {
                self.engine.release(incoming);
            }
        }
        batch.bytes.clear();
        let lost = self.engine.lost(&mut batch);
        self.batch = batch;
        taken.and_then(|()| self.take_early(session)).and(lost)?;
        Ok(true)
    }

    /// Handles the completed requests. Returns the first failure.
    fn complete(&mut self, batch: &mut EventBatch, session: &mut Session) -> Result<()> {
        let Self { engine, records, packets, spare, .. } = self;
        let mut failure = Ok(());
        engine.take_completed(batch, |operand, result| {
            let result = match (operand, result) {
                (Operand::Hello | Operand::Close, result) => result,
                (Operand::Records(mut bytes), result) => {
                    *records -= 1;
                    bytes.clear();
                    spare.push(bytes);
                    result
                }
                (Operand::Packet(packet), Ok(())) => {
                    *packets -= 1;
                    session.packet_left(packet);
                    Ok(())
                }
                (Operand::Packet(packet), Err(why)) => {
                    *packets -= 1;
                    session.packet_lost(packet);
                    Err(why)
                }
                (Operand::PacketDestination(destination), Ok(())) => session.packet_landed(destination),
                (Operand::PacketDestination(destination), Err(why)) => {
                    session.packet_failed(destination);
                    Err(why)
                }
            };
            if failure.is_ok() {
                failure = result;
            }
        });
        failure
    }

    /// Handles one message. A message with another key is from an unauthenticated peer, and is dropped.
    fn take(&mut self, message: Received, bytes: &[u8], session: &mut Session) -> Result<()> {
        match message {
            Received::Hello(key) => {
                self.hello_received |= key == self.key;
                Ok(())
            }
            Received::Records(range) => match bytes[range].strip_prefix(&self.key) {
                Some(records) => self.take_records(records, session),
                None => Ok(()),
            },
            Received::Packet(incoming) if incoming.header.starts_with(&self.key) => {
                self.take_with_coalesced(incoming, session)
            }
            Received::Packet(incoming) => {
                self.engine.release(incoming);
                Ok(())
            }
        }
    }

    /// Handles records, which follow their number.
    fn take_records(&mut self, records: &[u8], session: &mut Session) -> Result<()> {
        let (number, bytes) =
            records.split_first_chunk().ok_or_else(|| corrupt("records without a number"))?;
        let number = u64::from_le_bytes(*number);
        if bytes.len() > RECORDS_LEN_MAX {
            return Err(corrupt("more records at once than a message takes"));
        }
        if number > self.taken {
            // UCX guarantees no order among messages.
            let is_far = number - self.taken > EARLY_MAX as u64;
            if is_far || self.out_of_order.insert(number, bytes.to_vec()).is_some() {
                return Err(corrupt("records too far ahead, or received twice"));
            }
            return Ok(());
        }
        if number < self.taken {
            return Err(corrupt("records received before"));
        }
        session.received(0, bytes)?;
        self.taken += 1;
        while let Some(bytes) = self.out_of_order.remove(&self.taken) {
            session.received(0, &bytes)?;
            self.taken += 1;
        }
        Ok(())
    }

    /// Handles a packet, after the records coalesced with it.
    fn take_with_coalesced(&mut self, mut incoming: IncomingPacket, session: &mut Session) -> Result<()> {
        let own_len = size_of::<ReceiverKey>() + session.packet_head_len();
        if let Some(records) = incoming.header.get(own_len..).filter(|records| !records.is_empty()) {
            if let Err(error) = self.take_records(records, session) {
                self.engine.release(incoming);
                return Err(error);
            }
            incoming.header.truncate(own_len);
        }
        self.take_packet(incoming, session)
    }

    /// Receives a packet into its destination, or keeps it until its message is announced.
    fn take_packet(&mut self, incoming: IncomingPacket, session: &mut Session) -> Result<()> {
        let came = session.packet_arrived(&incoming.header[size_of::<ReceiverKey>()..], incoming.len);
        let destination = match came {
            Ok(session::PacketArrival::Accepted(destination)) => destination,
            Ok(session::PacketArrival::Early) if self.early_packets.len() < EARLY_MAX => {
                self.early_packets.push(incoming);
                return Ok(());
            }
            came => {
                self.engine.release(incoming);
                return came.and(Err(corrupt("too many packets of unannounced messages")));
            }
        };
        match self.engine.receive(incoming, destination) {
            PostResult::Done(Operand::PacketDestination(destination)) => session.packet_landed(destination),
            PostResult::Failed(Operand::PacketDestination(destination), why) => {
                session.packet_failed(destination);
                Err(why)
            }
            PostResult::Pending | PostResult::Done(_) => Ok(()),
            PostResult::Failed(_, why) => Err(why),
        }
    }

    /// Receives the packets that arrived before their message.
    fn take_early(&mut self, session: &mut Session) -> Result<()> {
        let mut early = std::mem::take(&mut self.early_packets).into_iter();
        let taken = early.try_for_each(|incoming| self.take_packet(incoming, session));
        early.for_each(|incoming| self.engine.release(incoming));
        taken
    }

    /// Sends records at least as urgent as `least`, as far as there is room. A few records leave with the
    /// next packet, if there is one, which saves a message. Returns true if any left.
    fn send_records(&mut self, session: &mut Session, least: Urgency) -> Result<bool> {
        let mut moved = false;
        while self.records < RECORDS_MAX && session.is_due(least) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(&self.peer_key);
            bytes.extend_from_slice(&self.sent.to_le_bytes());
            let begin = bytes.len();
            let mut pieces: Vec<RawBytes<'_>> = Vec::with_capacity(16);
            session.gather(&mut pieces, PIECES_MAX);
            for piece in &pieces {
                let room = RECORDS_LEN_MAX - (bytes.len() - begin);
                piece.split_at(piece.len().min(room)).0.append_to(&mut bytes);
            }
            let records_len = bytes.len() - begin;
            session.wrote(records_len);
            if records_len == 0 {
                self.recycle(bytes);
                continue;
            }
            self.sent += 1;
            moved = true;
            let packet = if records_len <= COALESCED_LEN_MAX { self.next_packet(session) } else { None };
            if let Some(packet) = packet {
                self.send_packet(session, packet, &bytes[size_of::<ReceiverKey>()..])?;
                self.recycle(bytes);
                continue;
            }
            match self.engine.send(&[], Operand::Records(bytes)) {
                PostResult::Done(Operand::Records(bytes)) => self.recycle(bytes),
                PostResult::Pending | PostResult::Done(_) => self.records += 1,
                PostResult::Failed(_, why) => return Err(why),
            }
        }
        Ok(moved)
    }

    /// Keeps memory for the next message.
    fn recycle(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.spare.push(bytes);
    }

    /// Returns the next packet, if it may leave.
    fn next_packet(&self, session: &mut Session) -> Option<Packet> {
        if self.packets < PACKETS_MAX { session.next_packet() } else { None }
    }

    /// Sends packets, as far as there is room. Returns true if any left.
    fn send_packets(&mut self, session: &mut Session) -> Result<bool> {
        let mut moved = false;
        while let Some(packet) = self.next_packet(session) {
            moved = true;
            self.send_packet(session, packet, &[])?;
        }
        Ok(moved)
    }

    /// Sends one packet, with the `coalesced` records after its head.
    fn send_packet(&mut self, session: &mut Session, packet: Packet, coalesced: &[u8]) -> Result<()> {
        let mut header = Header::from_slice(&self.peer_key);
        header.extend_from_slice(&packet.head);
        header.extend_from_slice(coalesced);
        match self.engine.send(&header, Operand::Packet(packet)) {
            PostResult::Done(Operand::Packet(packet)) => session.packet_left(packet),
            PostResult::Pending | PostResult::Done(_) => self.packets += 1,
            PostResult::Failed(Operand::Packet(packet), why) => {
                session.packet_lost(packet);
                return Err(why);
            }
            PostResult::Failed(_, why) => return Err(why),
        }
        Ok(())
    }
}

impl ByteStream for UcxByteStream {
    type State = UcxState;

    const HAS_CONTROL_STREAM: bool = true;

    fn write(&self, state: &mut UcxState, session: &mut Session, least: Urgency) -> Result<bool> {
        let records = state.send_records(session, least)?;
        let packets = state.send_packets(session)?;
        self.update_pending(state, session);
        Ok(records || packets)
    }

    fn read(&self, state: &mut UcxState, session: &mut Session) -> Result<bool> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let moved = state.progress(session)?;
        self.update_pending(state, session);
        Ok(moved)
    }

    fn is_blocked(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// UCX returns the memory in flight soon, on the driver; everything else waits for that too.
    fn tear_down(&self, mut state: UcxState, session: Session, why: &Error) {
        self.pending.store(false, Ordering::Release);
        state.early_packets.drain(..).for_each(|incoming| state.engine.release(incoming));
        state.engine.close();
        let environment = self.environment.clone();
        let end = environment.now() + CLOSE_TIME;
        let mut closing = ClosingLink { state, session: Some(session), why: why.clone() };
        if closing.is_idle() {
            return;
        }
        self.environment.spawn(Box::pin(async move {
            while !closing.is_idle() && environment.now() < end {
                environment.sleep_until(environment.now() + SWEEP_EVERY).await;
            }
        }));
    }

    fn source(&self) -> WaitSource<'_> {
        // If a caller returns with requests in flight, the next caller or the driver's sweep polls them.
        // Arming the driver for them each time would make it poll concurrently with the callers.
        WaitSource { descriptor: self.descriptor.as_fd(), writable: false, doorbell: true }
    }

    fn arm(&self, state: &mut UcxState) -> bool {
        state.engine.arm()
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// A link that has ended, until UCX has returned all memory in flight.
#[derive(Debug)]
struct ClosingLink {
    state: UcxState,
    /// `None` once it has given up.
    session: Option<Session>,
    why: Error,
}

impl ClosingLink {
    /// Returns true if no request is in flight; otherwise makes progress.
    fn is_idle(&mut self) -> bool {
        let Self { state, session: Some(session), .. } = self else { return true };
        state.engine.progress();
        let mut batch = std::mem::take(&mut state.batch);
        state.engine.take_events(&mut batch);
        // The session has failed already.
        let _ = state.complete(&mut batch, session);
        for message in batch.received.drain(..) {
            if let Received::Packet(incoming) = message {
                state.engine.release(incoming);
            }
        }
        state.batch = batch;
        state.engine.is_idle()
    }
}

impl Drop for ClosingLink {
    fn drop(&mut self) {
        let Self { state, session, why } = self;
        let Some(mut session) = session.take() else { return };
        state.engine.destroy(|operand| match operand {
            Operand::Packet(packet) => session.packet_lost(packet),
            Operand::PacketDestination(destination) => session.packet_failed(destination),
            Operand::Hello | Operand::Records(_) | Operand::Close => {}
        });
        if state.engine.is_idle() {
            session.give_up(why);
        } else {
            // The process is exiting, and UCX keeps what it has: that memory is not returned.
            std::mem::forget(session);
        }
    }
}

fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
