//! One simulated connection: two sessions, the bytes between them, and a model of what each end may observe.

use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::super::{AcceptResult, End, HEARTBEAT, Seed};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::memory::{Buffer, BufferMut, Pool};
use crate::platform::environment::{Environment, Task};
use crate::transfer::message::{Announced, Arrival, Delivery, EAGER_LEN_MAX, Message};
use crate::transfer::operation::{Completion, Done, Operation};
use crate::transfer::region::{Region, Regions};
use crate::wire::lending::Lender;
use crate::wire::lending::model::ModelArena;
use crate::wire::session::Session;

/// The most operations of each kind that one end begins.
const MESSAGES_MAX: usize = 8;
const ACCESSES_MAX: usize = 8;
/// The length of a put; each has its own range.
const SLOT: usize = 17_000;
/// The length of a frame with a bounce copy. Of two in a row, one poll copies a part of the second.
const LARGE: usize = 140_000;

/// Gives every region a different key.
#[derive(Debug)]
struct UniqueKeys(AtomicU8);

impl Environment for UniqueKeys {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, _: Duration) -> Task {
        Box::pin(std::future::pending())
    }

    fn random(&self, out: &mut [u8]) {
        out.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }

    fn spawn(&self, _: Task) {}
}

/// Two sessions and the bytes between them. The first end reads and writes regions of the second.
pub(super) struct SimulatedLink {
    ends: [SimulatedEnd; 2],
    readable: Region<Buffer>,
    writable: Region<BufferMut>,
    gets: Vec<(usize, Ended<BufferMut, BufferMut>)>,
    puts: Vec<Ended<(), Buffer>>,
    /// The arena that each end lends from.
    arenas: [ModelArena; 2],
    /// No byte arrives any more.
    silent: bool,
    /// The time by which each end must have detected the loss.
    lost_by: Option<Duration>,
}

type Ended<T, M> = Awaited<Result<T, Failed<M>>>;
type Sending = (Ended<(), Message>, Awaited<Result<Delivery>>);

/// A pending completion, or its result.
struct Awaited<V>(Completion<V>, Option<V>);

impl<V> Awaited<V> {
    fn on(completion: Completion<V>) -> Self {
        Self(completion, None)
    }

    fn has_ended(&mut self) -> bool {
        self.1 = self.1.take().or_else(|| self.0.try_take());
        self.1.is_some()
    }

    fn result(mut self) -> V {
        assert!(self.has_ended(), "something never ended");
        self.1.take().expect("it has ended")
    }
}

struct SimulatedEnd {
    end: End,
    pool: Pool,
    /// Bytes in flight to this end on each stream, each piece with its time of arrival.
    in_flight: Vec<VecDeque<(Duration, Vec<u8>)>>,
    stopped_until: Duration,
    ticked: Duration,
    ended: Option<Error>,
    sent: Vec<Message>,
    sending: Vec<Sending>,
    /// The acknowledgements that this end sent, in order.
    acks_sent: Vec<Delivery>,
    receiving: Vec<(usize, Awaited<AcceptResult>)>,
    closed: Option<Awaited<Result<()>>>,
}

impl SimulatedEnd {
    fn new(checked: bool, lanes: usize, lender: Option<Box<dyn Lender>>) -> Self {
        let regions = Regions::new(Arc::new(UniqueKeys(AtomicU8::new(1))));
        let pool = Pool::new(1 << 20);
        let session = Session::new(pool.clone(), regions.clone(), HEARTBEAT, Duration::ZERO, checked);
        let mut session = session.striped(lanes);
        if let Some(lender) = lender {
            session = session.lending(lender);
        }
        let wires = vec![VecDeque::new(); lanes];
        let end = End { session, regions, wire: VecDeque::new(), lanes: wires, announced: VecDeque::new() };
        Self {
            end,
            pool,
            in_flight: vec![VecDeque::new(); 1 + lanes],
            stopped_until: Duration::ZERO,
            ticked: Duration::ZERO,
            ended: None,
            sent: Vec::new(),
            sending: Vec::new(),
            acks_sent: Vec::new(),
            receiving: Vec::new(),
            closed: None,
        }
    }

    fn finish(&mut self, why: Error) {
        if self.ended.is_none() {
            self.end.session.give_up(&why);
            self.ended = Some(why);
        }
    }

    /// Reads everything that has arrived, in pieces.
    fn read(&mut self, now: Duration, seed: &mut Seed) -> Result<()> {
        for (stream, in_flight) in self.in_flight.iter_mut().enumerate() {
            let wire = if stream == 0 { &mut self.end.wire } else { &mut self.end.lanes[stream - 1] };
            while in_flight.front().is_some_and(|(at, _)| *at <= now) {
                wire.extend(in_flight.pop_front().map(|(_, bytes)| bytes).unwrap_or_default());
            }
        }
        for stream in 0..self.in_flight.len() {
            while self.end.read_from(stream, 1 + seed.below(30_000))? {
                self.end.session.record_activity(now);
            }
        }
        if self.end.session.is_over() {
            return Err(Error::new(ErrorKind::Closed, "the connection was closed"));
        }
        Ok(())
    }

    /// Decides on the next message; `original` is what the peer sent.
    fn take(&mut self, peer: &[Message], seed: &mut Seed) {
        let Some(announced) = self.end.announced.pop_front() else { return };
        let Announced { id, header, frames, arrival, ack_now } = announced;
        let number = self.acks_sent.len();
        assert_eq!(header, number.to_string(), "a message was repeated, reordered or lost");
        let original = &peer[number];
        if seed.below(5) == 0 {
            self.acks_sent.push(Delivery::Rejected);
            return self.end.session.ack(id, Delivery::Rejected, ack_now);
        }
        match arrival {
            Arrival::Complete(buffers) => same(&buffers, original),
            Arrival::InProgress(landed) => match landed.try_take() {
                Some(buffers) => same(&buffers.expect("the connection lives"), original),
                None => {
                    let arrival = Arrival::InProgress(landed);
                    return self.end.announced.push_front(Announced { id, header, frames, arrival, ack_now });
                }
            },
            Arrival::AtSender => {
                self.acks_sent.push(Delivery::Delivered);
                let buffers = frames.iter().map(|frame| Some(BufferMut::with_capacity(frame.len))).collect();
                let (destinations, landed) = Operation::new(buffers);
                self.end.session.accept(id, destinations);
                return self.receiving.push((number, Awaited::on(landed)));
            }
        }
        self.acks_sent.push(Delivery::Delivered);
        self.end.session.ack(id, Delivery::Delivered, ack_now);
    }
}

/// Frames of lengths around the thresholds, filled with the message's number.
fn message(number: usize, arena: &ModelArena, seed: &mut Seed) -> Message {
    let eager = EAGER_LEN_MAX as usize;
    let lens = [0, 1, 100, 1000, eager - 1, eager, SLOT];
    // Few are large: an answer must not be queued behind so many that its end is considered lost.
    let large = (2..6).contains(&number) && seed.below(3) > 0;
    let frames = (0..seed.below(4)).map(|index| {
        let len = if large && index == 0 { LARGE } else { lens[seed.below(lens.len())] };
        let bytes = vec![number as u8; len];
        if len == 0 || seed.below(2) == 0 { Buffer::from(bytes) } else { arena.block(bytes) }
    });
    Message::from_parts(number.to_string(), frames.collect())
}

fn same(buffers: &[Buffer], original: &Message) {
    assert_eq!(buffers.len(), original.frames().len());
    for (is, should_be) in buffers.iter().zip(original.frames()) {
        assert!(is.as_slice() == should_be.as_slice(), "the bytes of message {:?}", original.header());
    }
}

impl SimulatedLink {
    pub(super) fn new(seed: &mut Seed) -> Self {
        let checked = seed.below(2) == 0;
        let lanes = [0, 0, 1, 3][seed.below(4)];
        let bounce_arena = |bytes: usize| {
            if bytes > 0 { ModelArena::with_bounce_arena(bytes) } else { ModelArena::default() }
        };
        let arenas = [0, 1].map(|_| bounce_arena([0, LARGE + 100_000, 4 << 20][seed.below(3)]));
        let leases_max = [0, 1, 3, 100][seed.below(4)];
        let lender = |me: usize| (leases_max > 0).then(|| arenas[me].lender(&arenas[1 - me], leases_max));
        let mut ends =
            [SimulatedEnd::new(checked, lanes, lender(0)), SimulatedEnd::new(checked, lanes, lender(1))];
        for side in &mut ends {
            if seed.below(2) == 0 {
                side.end.session.expect(true);
            }
        }
        let content: Vec<u8> = (0..SLOT).map(|at| at as u8).collect();
        let readable = ends[1].end.regions.expose(content.into(), Duration::MAX);
        let writable = ends[1].end.regions.expose_mut(BufferMut::zeroed(ACCESSES_MAX * SLOT), Duration::MAX);
        let (gets, puts) = (Vec::new(), Vec::new());
        Self { ends, readable, writable, gets, puts, arenas, silent: false, lost_by: None }
    }

    /// Lets one event happen at one end, unless it is suspended.
    pub(super) fn step(&mut self, now: Duration, seed: &mut Seed, trace: &mut impl std::hash::Hasher) {
        let (me, what) = (seed.below(2), seed.below(10));
        (me, what, now).hash(trace);
        if let Some(by) = self.lost_by {
            let waits =
                self.ends.iter().any(|side| side.ended.is_none() && side.stopped_until == Duration::ZERO);
            assert!(now <= by || !waits, "a silent peer was not lost by {by:?}");
        }
        let (first, second) = self.ends.split_at_mut(1);
        let (side, peer) =
            if me == 0 { (&mut first[0], &mut second[0]) } else { (&mut second[0], &mut first[0]) };
        if now < side.stopped_until || side.ended.is_some() {
            return;
        }
        if now >= side.ticked + HEARTBEAT / 4 {
            side.ticked = now;
            let alive = side.read(now, seed).and_then(|()| side.end.session.tick(now));
            if let Err(why) = alive {
                return side.finish(why);
            }
        }
        match what {
            0 if side.closed.is_none() && side.sent.len() < MESSAGES_MAX => {
                let message = message(side.sent.len(), &self.arenas[me], seed);
                let (operation, sent) = Operation::new(message.clone());
                let (receipt, acked) = Done::new();
                side.end.session.send(operation, receipt, seed.below(2) == 0, seed.below(2) == 0);
                side.sent.push(message);
                side.sending.push((Awaited::on(sent), Awaited::on(acked)));
            }
            1 if me == 0 && side.closed.is_none() => self.access(seed),
            2 | 3 => side.take(&peer.sent, seed),
            4..7 => {
                for (stream, in_flight) in peer.in_flight.iter_mut().enumerate() {
                    let mut bytes = VecDeque::new();
                    let room = [40_000, 2 * LARGE][seed.below(2)];
                    let len_max = 1 + seed.below(room);
                    match stream {
                        0 => side.end.write(&mut bytes, len_max),
                        // Lanes are written independently.
                        _ => seed.below(2) == 0 && side.end.write_lane(stream, &mut bytes, len_max),
                    };
                    bytes.len().hash(trace);
                    let delayed = now + Duration::from_millis([0, 0, 1, 30, 200][seed.below(5)]);
                    let at = in_flight.back().map_or(delayed, |(before, _)| delayed.max(*before));
                    if !self.silent && !bytes.is_empty() {
                        in_flight.push_back((at, bytes.into()));
                    }
                }
            }
            _ => {
                if let Err(why) = side.read(now, seed) {
                    side.finish(why);
                }
            }
        }
    }

    fn access(&mut self, seed: &mut Seed) {
        let session = &mut self.ends[0].end.session;
        let len = [0, 1, 5000, 16_384, SLOT][seed.below(5)];
        if seed.below(2) == 0 && self.gets.len() < ACCESSES_MAX {
            let at = seed.below(SLOT - len + 1);
            let (into, got) = Operation::new(BufferMut::with_capacity(len));
            session.get(self.readable.remote(), at as u64, into);
            self.gets.push((at, Awaited::on(got)));
        } else if self.puts.len() < ACCESSES_MAX {
            let number = self.puts.len();
            let (from, put) = Operation::new(Buffer::from(vec![number as u8 + 1; SLOT]));
            session.put(self.writable.remote(), (number * SLOT) as u64, from);
            self.puts.push(Awaited::on(put));
        }
    }

    pub(super) fn stop(&mut self, which: usize, until: Duration) {
        self.ends[which].stopped_until = until;
    }

    pub(super) fn cut(&mut self) {
        self.silence(Duration::MAX);
        for side in &mut self.ends {
            side.finish(Error::new(ErrorKind::PeerLost, "the connection was cut"));
        }
    }

    pub(super) fn silence(&mut self, lost_by: Duration) {
        self.silent = true;
        self.lost_by = Some(lost_by);
        for side in &mut self.ends {
            side.in_flight.iter_mut().for_each(VecDeque::clear);
            side.end.wire.clear();
            side.end.lanes.iter_mut().for_each(VecDeque::clear);
        }
    }

    pub(super) fn close(&mut self, which: usize) {
        let side = &mut self.ends[which];
        if side.ended.is_none() {
            let (done, closed) = Done::new();
            side.end.session.close(done);
            side.closed = Some(Awaited::on(closed));
        }
    }

    /// Returns whether every operation has ended. An end whose peer has ended detects the end of the stream.
    pub(super) fn is_over(&mut self) -> bool {
        for me in 0..2 {
            let gone = self.ends[1 - me].ended.clone();
            let side = &mut self.ends[me];
            let read = side.in_flight.iter().all(VecDeque::is_empty)
                && side.end.wire.is_empty()
                && side.end.lanes.iter().all(VecDeque::is_empty);
            if let (Some(_), true, false) = (gone, read, self.silent) {
                let kind = if side.end.session.may_end() { ErrorKind::Closed } else { ErrorKind::PeerLost };
                side.finish(Error::new(kind, "the stream ended"));
            }
        }
        if self.ends.iter().all(|side| side.ended.is_some()) {
            return true;
        }
        if self.silent || self.ends.iter().any(|side| side.closed.is_some()) {
            return false;
        }
        let taken = [0, 1].iter().all(|me| self.ends[*me].acks_sent.len() == self.ends[1 - *me].sent.len());
        let ended = self.ends.iter_mut().all(|side| {
            side.sending.iter_mut().all(|(sent, acked)| sent.has_ended() && acked.has_ended())
                && side.receiving.iter_mut().all(|(_, landed)| landed.has_ended())
        });
        let accessed = self.gets.iter_mut().all(|(_, got)| got.has_ended())
            && self.puts.iter_mut().all(Awaited::has_ended);
        taken && ended && accessed
    }

    /// Checks the final state.
    pub(super) fn check(mut self, calm: bool) {
        for side in &mut self.ends {
            assert!(!calm || side.ended.is_none(), "a calm connection ended: {:?}", side.ended);
            side.finish(Error::new(ErrorKind::Closed, "the simulation is over"));
            side.end.announced.clear();
        }
        for me in 0..2 {
            for (number, landed) in std::mem::take(&mut self.ends[me].receiving) {
                match landed.result() {
                    Ok(buffers) => same(&buffers, &self.ends[1 - me].sent[number]),
                    Err(failed) => assert!(!calm, "{:?}", failed.error),
                }
            }
            let acks_sent = std::mem::take(&mut self.ends[1 - me].acks_sent);
            let side = &mut self.ends[me];
            for (number, (original, (sent, acked))) in
                side.sent.iter().zip(side.sending.drain(..)).enumerate()
            {
                match sent.result() {
                    Ok(()) => {}
                    Err(failed) => {
                        assert!(!calm, "{:?}", failed.error);
                        same(failed.returned.frames(), original);
                    }
                }
                match acked.result() {
                    Ok(word) => {
                        assert_eq!(
                            acks_sent.get(number),
                            Some(&word),
                            "the acknowledgement of message {number}"
                        )
                    }
                    Err(error) => assert!(!calm, "{error:?}"),
                }
            }
            if let Some(closed) = self.ends[me].closed.take() {
                drop(closed.result());
            }
        }
        for (at, got) in self.gets {
            match got.result() {
                Ok(got) => assert!(
                    got.as_slice().expect("host").iter().enumerate().all(|(i, b)| *b == (at + i) as u8)
                ),
                Err(failed) => assert!(!calm && failed.returned.is_empty(), "{:?}", failed.error),
            }
        }
        let mut revoking = std::pin::pin!(self.writable.revoke());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(written) = revoking.as_mut().poll(&mut cx) else {
            panic!("an access is in flight")
        };
        for (number, put) in self.puts.into_iter().enumerate() {
            let range = &written.as_slice().expect("host")[number * SLOT..(number + 1) * SLOT];
            match put.result() {
                Ok(()) => assert!(range.iter().all(|byte| *byte == number as u8 + 1), "put {number}"),
                Err(failed) => assert!(!calm && failed.returned.len() == SLOT, "{:?}", failed.error),
            }
        }
        for side in self.ends {
            drop(side.end);
            assert_eq!(side.pool.stats().in_use_bytes, 0, "memory is missing in a pool");
        }
        for arena in self.arenas {
            if !calm {
                arena.peer_is_gone();
            }
            arena.check();
            assert_eq!((arena.leases().out, arena.leases().borrowed), (0, 0), "leases never came back");
        }
    }
}
