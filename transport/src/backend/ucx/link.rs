//! The line: a session's records leave as small messages, and its payload from memory to memory, by itself.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::context::{POSIX_NOTE, is_over_posix};
use super::engine::{CLOSE_TIME, Cargo, SWEEP_EVERY, Sent};
use super::events::{Arrival, Came, HEADER_LEN_MAX, Happened, Header, Key};
use super::lingering::Lingering;
use crate::backend::streamed::ByteStream;
use crate::backend::{Environment, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::record::head_len;
use crate::wire::session::{self, Packet, Session, Urgency};

/// The longest packet. Small ones of others have their turn between two.
pub(super) const PACKET_LEN: usize = 1 << 20;
/// Packets that may be under way.
const PACKETS_MAX: usize = 8;
/// The most bytes of records in one message, and the most messages under way.
const RECORDS_LEN_MAX: usize = 64 << 10;
const RECORDS_MAX: usize = 8;
/// The most bytes of records that leave with a packet, which delays them by no more than its eager part.
const COALESCED_LEN_MAX: usize = 128;
/// The most slices that are gathered at once.
const SLICES_MAX: usize = 512;
/// Messages that overtook others, and packets that overtook their message.
const EARLY_MAX: usize = 1024;

const _: () = assert!(
    size_of::<Key>() + head_len(true, true) + size_of::<u64>() + COALESCED_LEN_MAX <= HEADER_LEN_MAX,
    "the peer drops a header beyond that"
);

/// A link as everybody sees it.
#[derive(Debug)]
pub(super) struct UcxByteStream {
    pub(super) descriptor: OwnedFd,
    /// Something is under way that goes on only if somebody polls.
    moves: AtomicBool,
    /// Calls that moved data, or tried to.
    calls: AtomicU64,
    notes: Vec<String>,
    environment: Arc<dyn Environment>,
}

/// And as the holder of the poll lock does.
#[derive(Debug)]
pub(super) struct State {
    engine: Lingering,
    happened: Happened,
    /// What this end goes by, and what the peer's does.
    key: Key,
    peer_key: Key,
    /// The peer opened its end.
    greeted: bool,
    /// Messages of records, either way, and those that overtook others.
    sent: u64,
    taken: u64,
    state: BTreeMap<u64, Vec<u8>>,
    /// Packets whose message was not announced yet.
    early: Vec<Arrival>,
    /// Under way: messages of records, packets out.
    records: usize,
    packets: usize,
    /// Memory for the next messages of records.
    spare: Vec<Vec<u8>>,
}

impl UcxByteStream {
    pub(super) fn new(state: &mut State, environment: &Arc<dyn Environment>) -> Result<Self> {
        let transports = state.engine.transports();
        let mut notes = vec![match &transports[..] {
            [] => "UCX does not tell which transports it took".to_owned(),
            transports => format!("UCX took {}", transports.join(", ")),
        }];
        notes.extend(is_over_posix(&transports).then(|| POSIX_NOTE.to_owned()));
        Ok(Self {
            descriptor: state.engine.descriptor()?,
            moves: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            notes,
            environment: environment.clone(),
        })
    }

    /// Lets others see whether something is under way.
    fn show(&self, state: &State, session: &Session) {
        let moves = !state.engine.is_quiet() || session.has_packet();
        if self.moves.load(Ordering::Relaxed) != moves {
            self.moves.store(moves, Ordering::Release);
        }
    }
}

impl State {
    pub(super) fn new(engine: Lingering, (key, peer_key): (Key, Key)) -> Self {
        Self {
            engine,
            happened: Happened::default(),
            key,
            peer_key,
            greeted: false,
            sent: 0,
            taken: 0,
            state: BTreeMap::new(),
            early: Vec::new(),
            records: 0,
            packets: 0,
            spare: Vec::new(),
        }
    }

    /// Connects to the worker with that address, and says hello: the peer knows then that this end is open, and that the way to it
    /// works.
    pub(super) fn greet(&mut self, address: &[u8]) -> Result<()> {
        self.engine.connect(address)?;
        match self.engine.send(&self.peer_key, Cargo::Hello) {
            Sent::Failed(_, why) => Err(why),
            Sent::Done(_) | Sent::Pending => Ok(()),
        }
    }

    /// Whether the peer said hello and ours, if any, has left; otherwise lets UCX move. Over `rc` the way of ours may still be
    /// made when the peer's has come, and nobody else polls until this end is open.
    pub(super) fn is_greeted(&mut self, session: &mut Session) -> Result<bool> {
        self.progress(session)?;
        Ok(self.greeted && self.engine.is_quiet())
    }

    /// Lets UCX move, and sees to all that happened; whether anything did.
    fn progress(&mut self, session: &mut Session) -> Result<bool> {
        let progressed = self.engine.progress();
        if !self.engine.has_news() {
            return Ok(progressed);
        }
        let mut happened = std::mem::take(&mut self.happened);
        self.engine.happened(&mut happened);
        let over = self.land(&mut happened, session);
        let mut came = happened.came.drain(..);
        let taken = over.and_then(|()| came.try_for_each(|came| self.take(came, &happened.bytes, session)));
        for left in came {
            if let Came::Packet(arrival) = left {
                self.engine.release(arrival);
            }
        }
        happened.bytes.clear();
        let lost = self.engine.lost(&mut happened);
        self.happened = happened;
        taken.and_then(|()| self.take_early(session)).and(lost)?;
        Ok(true)
    }

    /// Sees to what was under way and is over; the first failure of it.
    fn land(&mut self, happened: &mut Happened, session: &mut Session) -> Result<()> {
        let Self { engine, records, packets, spare, .. } = self;
        let mut failure = Ok(());
        engine.landed(happened, |cargo, result| {
            let result = match (cargo, result) {
                (Cargo::Hello | Cargo::End, result) => result,
                (Cargo::Records(mut bytes), result) => {
                    *records -= 1;
                    bytes.clear();
                    spare.push(bytes);
                    result
                }
                (Cargo::Packet(packet), Ok(())) => {
                    *packets -= 1;
                    session.packet_left(packet);
                    Ok(())
                }
                (Cargo::Packet(packet), Err(why)) => {
                    *packets -= 1;
                    session.packet_lost(packet);
                    Err(why)
                }
                (Cargo::PacketDestination(destination), Ok(())) => session.packet_landed(destination),
                (Cargo::PacketDestination(destination), Err(why)) => {
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

    /// One message came. What is not for this connection is an unauthenticated peer's, and left alone.
    fn take(&mut self, came: Came, bytes: &[u8], session: &mut Session) -> Result<()> {
        match came {
            Came::Hello(key) => {
                self.greeted |= key == self.key;
                Ok(())
            }
            Came::Records(range) => match bytes[range].strip_prefix(&self.key) {
                Some(records) => self.take_records(records, session),
                None => Ok(()),
            },
            Came::Packet(arrival) if arrival.header.starts_with(&self.key) => {
                self.take_with_coalesced(arrival, session)
            }
            Came::Packet(arrival) => {
                self.engine.release(arrival);
                Ok(())
            }
        }
    }

    /// Records, behind their number.
    fn take_records(&mut self, records: &[u8], session: &mut Session) -> Result<()> {
        let (number, bytes) =
            records.split_first_chunk().ok_or_else(|| corrupt("records without a number"))?;
        let number = u64::from_le_bytes(*number);
        if bytes.len() > RECORDS_LEN_MAX {
            return Err(corrupt("more records at once than a message takes"));
        }
        if number > self.taken {
            // UCX promises no order among messages.
            let is_far = number - self.taken > EARLY_MAX as u64;
            if is_far || self.state.insert(number, bytes.to_vec()).is_some() {
                return Err(corrupt("records that are far ahead of others, or came twice"));
            }
            return Ok(());
        }
        if number < self.taken {
            return Err(corrupt("records that came before"));
        }
        session.received(0, bytes)?;
        self.taken += 1;
        while let Some(bytes) = self.state.remove(&self.taken) {
            session.received(0, &bytes)?;
            self.taken += 1;
        }
        Ok(())
    }

    /// A packet, and before it the records that came with it.
    fn take_with_coalesced(&mut self, mut arrival: Arrival, session: &mut Session) -> Result<()> {
        let own_len = size_of::<Key>() + session.packet_head_len();
        if let Some(records) = arrival.header.get(own_len..).filter(|records| !records.is_empty()) {
            if let Err(error) = self.take_records(records, session) {
                self.engine.release(arrival);
                return Err(error);
            }
            arrival.header.truncate(own_len);
        }
        self.take_packet(arrival, session)
    }

    /// A packet goes to where it belongs, as far as that is known.
    fn take_packet(&mut self, arrival: Arrival, session: &mut Session) -> Result<()> {
        let came = session.packet_came(&arrival.header[size_of::<Key>()..], arrival.len);
        let destination = match came {
            Ok(session::Came::Here(destination)) => destination,
            Ok(session::Came::Early) if self.early.len() < EARLY_MAX => {
                self.early.push(arrival);
                return Ok(());
            }
            came => {
                self.engine.release(arrival);
                return came.and(Err(corrupt("too much payload of messages that did not come")));
            }
        };
        match self.engine.receive(arrival, destination) {
            Sent::Done(Cargo::PacketDestination(destination)) => session.packet_landed(destination),
            Sent::Failed(Cargo::PacketDestination(destination), why) => {
                session.packet_failed(destination);
                Err(why)
            }
            Sent::Pending | Sent::Done(_) => Ok(()),
            Sent::Failed(_, why) => Err(why),
        }
    }

    /// Packets that came before their message.
    fn take_early(&mut self, session: &mut Session) -> Result<()> {
        let mut early = std::mem::take(&mut self.early).into_iter();
        let taken = early.try_for_each(|arrival| self.take_packet(arrival, session));
        early.for_each(|arrival| self.engine.release(arrival));
        taken
    }

    /// Sends records that are no less urgent than `least`, as far as there is room; whether any left. A few leave with the next packet,
    /// if there is one: a message the less.
    fn send_records(&mut self, session: &mut Session, least: Urgency) -> Result<bool> {
        let mut moved = false;
        while self.records < RECORDS_MAX && session.is_due(least) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(&self.peer_key);
            bytes.extend_from_slice(&self.sent.to_le_bytes());
            let begin = bytes.len();
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(16);
            session.gather(&mut slices, SLICES_MAX);
            for slice in &slices {
                let room = RECORDS_LEN_MAX - (bytes.len() - begin);
                bytes.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            let records_len = bytes.len() - begin;
            session.wrote(records_len);
            if records_len == 0 {
                self.keep(bytes);
                continue;
            }
            self.sent += 1;
            moved = true;
            let packet = if records_len <= COALESCED_LEN_MAX { self.next_packet(session) } else { None };
            if let Some(packet) = packet {
                self.send_packet(session, packet, &bytes[size_of::<Key>()..])?;
                self.keep(bytes);
                continue;
            }
            match self.engine.send(&[], Cargo::Records(bytes)) {
                Sent::Done(Cargo::Records(bytes)) => self.keep(bytes),
                Sent::Pending | Sent::Done(_) => self.records += 1,
                Sent::Failed(_, why) => return Err(why),
            }
        }
        Ok(moved)
    }

    /// Memory for the next.
    fn keep(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.spare.push(bytes);
    }

    /// The next packet, if it may leave.
    fn next_packet(&self, session: &mut Session) -> Option<Packet> {
        if self.packets < PACKETS_MAX { session.next_packet() } else { None }
    }

    /// Sends packets, as far as there is room; whether any left.
    fn send_packets(&mut self, session: &mut Session) -> Result<bool> {
        let mut moved = false;
        while let Some(packet) = self.next_packet(session) {
            moved = true;
            self.send_packet(session, packet, &[])?;
        }
        Ok(moved)
    }

    /// Sends one, and the `coalesced` of records behind its head.
    fn send_packet(&mut self, session: &mut Session, packet: Packet, coalesced: &[u8]) -> Result<()> {
        let mut header = Header::from_slice(&self.peer_key);
        header.extend_from_slice(&packet.head);
        header.extend_from_slice(coalesced);
        match self.engine.send(&header, Cargo::Packet(packet)) {
            Sent::Done(Cargo::Packet(packet)) => session.packet_left(packet),
            Sent::Pending | Sent::Done(_) => self.packets += 1,
            Sent::Failed(Cargo::Packet(packet), why) => {
                session.packet_lost(packet);
                return Err(why);
            }
            Sent::Failed(_, why) => return Err(why),
        }
        Ok(())
    }
}

impl ByteStream for UcxByteStream {
    type State = State;

    const BESIDE_CONTROL: bool = true;

    fn write(&self, state: &mut State, session: &mut Session, least: Urgency) -> Result<bool> {
        let records = state.send_records(session, least)?;
        let packets = state.send_packets(session)?;
        self.show(state, session);
        Ok(records || packets)
    }

    fn read(&self, state: &mut State, session: &mut Session) -> Result<bool> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let moved = state.progress(session)?;
        self.show(state, session);
        Ok(moved)
    }

    fn is_blocked(&self) -> bool {
        self.moves.load(Ordering::Acquire)
    }

    /// What UCX has of ours comes back soon, on the driver; everything else waits for that too.
    fn retire(&self, mut state: State, session: Session, why: &Error) {
        self.moves.store(false, Ordering::Release);
        state.early.drain(..).for_each(|arrival| state.engine.release(arrival));
        state.engine.close();
        let environment = self.environment.clone();
        let end = environment.now() + CLOSE_TIME;
        let mut retired = Retired { state, session: Some(session), why: why.clone() };
        if retired.is_quiet() {
            return;
        }
        self.environment.spawn(Box::pin(async move {
            while !retired.is_quiet() && environment.now() < end {
                environment.sleep_until(environment.now() + SWEEP_EVERY).await;
            }
        }));
    }

    fn source(&self) -> Source<'_> {
        // Where a caller leaves with something under way, the next goes on with it, or the driver at its next look: arming the driver
        // for it each time would have it poll beside the callers.
        Source { descriptor: self.descriptor.as_fd(), writable: false, doorbell: true }
    }

    fn arm(&self, state: &mut State) -> bool {
        state.engine.arm()
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// A link that ended, until UCX has given everything back.
#[derive(Debug)]
struct Retired {
    state: State,
    /// Until it has given up.
    session: Option<Session>,
    why: Error,
}

impl Retired {
    /// Whether nothing is with UCX; otherwise lets it move.
    fn is_quiet(&mut self) -> bool {
        let Self { state, session: Some(session), .. } = self else { return true };
        state.engine.progress();
        let mut happened = std::mem::take(&mut state.happened);
        state.engine.happened(&mut happened);
        // It has failed already.
        let _ = state.land(&mut happened, session);
        for came in happened.came.drain(..) {
            if let Came::Packet(arrival) = came {
                state.engine.release(arrival);
            }
        }
        state.happened = happened;
        state.engine.is_quiet()
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        let Self { state, session, why } = self;
        let Some(mut session) = session.take() else { return };
        state.engine.destroy(|cargo| match cargo {
            Cargo::Packet(packet) => session.packet_lost(packet),
            Cargo::PacketDestination(destination) => session.packet_failed(destination),
            Cargo::Hello | Cargo::Records(_) | Cargo::End => {}
        });
        if state.engine.is_quiet() {
            session.give_up(why);
        } else {
            // The process ends, and UCX keeps what it has: nobody is given that memory back.
            std::mem::forget(session);
        }
    }
}

fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
