//! Two sessions over a simulated wire and clock. A seed decides how the bytes are split and interleaved.

mod bounce_copy;
mod fetching;
mod integrity;
mod lanes;
mod lending;
mod packets;
mod simulated;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ErrorKind, Failed, Result};
use crate::memory::{Buffer, BufferMut, Place, Pool, RawBytes};
use crate::platform::environment::{Environment, Task};
use crate::transfer::message::{Announced, Arrival, Delivery, EAGER_LEN_MAX, FrameInfo, Message};
use crate::transfer::operation::{Completion, Done, Operation};
use crate::transfer::region::Regions;
use crate::wire::credit::{PREGRANT, WINDOW};
use crate::wire::record::{self, Head, Payload, Record, Transfer};
use crate::wire::sends::COALESCED_LEN;
use crate::wire::session::{DataTarget, Session, Urgency};

const HEARTBEAT: Duration = Duration::from_secs(3);

/// A stopped clock and constant random bytes.
#[derive(Debug)]
struct FixedEnvironment;

impl Environment for FixedEnvironment {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, _: Duration) -> Task {
        Box::pin(std::future::pending())
    }

    fn random(&self, out: &mut [u8]) {
        out.fill(7);
    }

    fn spawn(&self, _: Task) {}
}

/// splitmix64.
struct Seed(u64);

impl Seed {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

struct End {
    session: Session,
    regions: Arc<Regions>,
    /// Bytes in flight to this end.
    wire: VecDeque<u8>,
    /// Bytes in flight to this end on the lanes.
    lanes: Vec<VecDeque<u8>>,
    announced: VecDeque<Announced>,
}

impl End {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(checked: bool) -> Self {
        let regions = Regions::new(Arc::new(FixedEnvironment));
        let session = Session::new(Pool::new(1 << 20), regions.clone(), HEARTBEAT, Duration::ZERO, checked);
        Self { session, regions, wire: VecDeque::new(), lanes: Vec::new(), announced: VecDeque::new() }
    }

    fn striped(checked: bool, lanes: usize) -> Self {
        let mut end = Self::with(checked);
        end.session = end.session.striped(lanes);
        end.lanes = vec![VecDeque::new(); lanes];
        end
    }

    fn send(&mut self, message: Message) -> (Sent, Completion<Result<Delivery>>) {
        self.send_with(message, false)
    }

    /// With `more`, the message is coalesced if it is small.
    fn send_with(&mut self, message: Message, more: bool) -> (Sent, Completion<Result<Delivery>>) {
        let (message, sent) = Operation::new(message);
        let (receipt, acked) = Done::new();
        self.session.send(message, receipt, false, more);
        (sent, acked)
    }

    /// Writes at most `len_max` bytes to `to`'s wire. An idle end sends its acknowledgements too.
    fn write(&mut self, to: &mut VecDeque<u8>, len_max: usize) -> bool {
        self.session.choose_stream(!1);
        self.session.begin_poll();
        if !self.session.is_due(Urgency::Ack) {
            return false;
        }
        let mut pieces: Vec<RawBytes<'_>> = Vec::new();
        self.session.gather(&mut pieces, 64);
        let mut bytes = Vec::new();
        for piece in pieces {
            piece.split_at(piece.len().min(len_max - bytes.len())).0.append_to(&mut bytes);
        }
        self.session.wrote(bytes.len());
        to.extend(&bytes);
        true
    }

    /// Writes at most `len_max` bytes to `to`, the peer's end of a lane.
    fn write_lane(&mut self, stream: usize, to: &mut VecDeque<u8>, len_max: usize) -> bool {
        // As if every other stream were full, so that any may carry any chunk.
        self.session.choose_stream(!(1 << stream));
        if !self.session.lane_is_due(stream) {
            return false;
        }
        let mut pieces: Vec<RawBytes<'_>> = Vec::new();
        self.session.lane_gather(stream, &mut pieces, 64);
        let mut bytes = Vec::new();
        pieces.iter().for_each(|piece| piece.append_to(&mut bytes));
        bytes.truncate(len_max);
        self.session.lane_wrote(stream, bytes.len());
        to.extend(&bytes);
        true
    }

    /// Reads at most `len_max` bytes to where the session wants them.
    fn read(&mut self, len_max: usize) -> Result<bool> {
        self.read_from(0, len_max)
    }

    /// Reads from one of several streams.
    fn read_from(&mut self, stream: usize, len_max: usize) -> Result<bool> {
        let Self { session, wire, lanes, announced, .. } = self;
        let wire = if stream == 0 { wire } else { &mut lanes[stream - 1] };
        let len = len_max.min(wire.len());
        if len == 0 || !session.reads(stream) {
            return Ok(false);
        }
        session.record_activity(Duration::ZERO);
        let Some((target, remaining, mut sum)) = session.target(stream, 4) else {
            let len = len.min(session.bytes_wanted(stream));
            let bytes = arrived(wire, len);
            session.received(stream, &bytes)?;
            session.unpark()?;
            announced.extend(session.take_announced());
            return Ok(true);
        };
        let bytes = arrived(wire, len.min(remaining));
        let (landed, revoked) = match target {
            DataTarget::Buffers(buffers) => {
                let mut rest = &bytes[..];
                for (buffer, room) in buffers {
                    let (part, more) = rest.split_at(rest.len().min(room));
                    buffer.extend_from_slice(part)?;
                    sum.add(part);
                    rest = more;
                }
                for byte in rest.iter().rev() {
                    wire.push_front(*byte);
                }
                (bytes.len() - rest.len(), false)
            }
            DataTarget::Region(lease, at) => {
                sum.add(&bytes);
                (bytes.len(), lease.with(at, |to| to[..bytes.len()].copy_from_slice(&bytes)).is_none())
            }
        };
        session.landed(stream, landed, revoked)?;
        Ok(true)
    }

    /// Takes the next announced message, and accepts it if it waits.
    fn take(&mut self) -> Option<Taken> {
        let Announced { id, header, frames, arrival, ack_now } = self.announced.pop_front()?;
        Some(match arrival {
            Arrival::Complete(buffers) => {
                self.session.ack(id, Delivery::Delivered, false);
                Taken::Here(buffers)
            }
            Arrival::InProgress(landed) => match landed.try_take() {
                Some(buffers) => {
                    self.session.ack(id, Delivery::Delivered, false);
                    Taken::Here(buffers.expect("landed"))
                }
                None => {
                    let arrival = Arrival::InProgress(landed);
                    self.announced.push_front(Announced { id, header, frames, arrival, ack_now });
                    return None;
                }
            },
            Arrival::AtSender => {
                let destinations =
                    frames.iter().map(|frame| Some(BufferMut::with_capacity(frame.len))).collect();
                self.accept(id, destinations)
            }
        })
    }

    fn accept(&mut self, id: u64, destinations: Vec<Option<BufferMut>>) -> Taken {
        let (destinations, landed) = Operation::new(destinations);
        self.session.accept(id, destinations);
        Taken::Pending(landed)
    }
}

/// Removes the next `len` bytes from a wire.
fn arrived(wire: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let rest = wire.split_off(len);
    Vec::from(std::mem::replace(wire, rest))
}

type Sent = Completion<Result<(), Failed<Message>>>;
type AcceptResult = Result<Vec<Buffer>, Failed<Vec<Option<BufferMut>>>>;

enum Taken {
    Here(Vec<Buffer>),
    Pending(Completion<AcceptResult>),
}

impl Taken {
    fn frames(self) -> Vec<Buffer> {
        match self {
            Self::Here(buffers) => buffers,
            Self::Pending(landed) => landed.try_take().expect("landed").expect("well"),
        }
    }
}

/// Moves bytes both ways in random pieces until nothing moves.
fn run(a: &mut End, b: &mut End, seed: &mut Seed) -> Result<()> {
    loop {
        let mut cut = || 1 + seed.below(100_000);
        let wrote = [a.write(&mut b.wire, cut()), b.write(&mut a.wire, cut())];
        let read = [a.read(cut())?, b.read(cut())?];
        let mut beside = false;
        for stream in 1..=a.lanes.len() {
            // Lanes lag behind at random.
            beside |= seed.below(3) == 0 || a.write_lane(stream, &mut b.lanes[stream - 1], usize::MAX);
            beside |= b.write_lane(stream, &mut a.lanes[stream - 1], 1 + seed.below(100_000));
            beside |= seed.below(3) == 0 || a.read_from(stream, 1 + seed.below(100_000))?;
            beside |= b.read_from(stream, 1 + seed.below(100_000))?;
        }
        if wrote == [false; 2] && read == [false; 2] && !beside {
            return Ok(());
        }
    }
}

/// Frames of mixed lengths around the thresholds, filled with their number.
fn message(number: usize, seed: &mut Seed) -> Message {
    let lens = [0, 1, 100, EAGER_LEN_MAX as usize - 1, EAGER_LEN_MAX as usize, 70_000];
    let frames =
        (0..seed.below(5)).map(|_| Buffer::from(vec![number as u8; lens[seed.below(lens.len())]])).collect();
    Message::from_parts(number.to_string(), frames)
}

#[test]
fn messages_arrive_complete_and_in_order_for_any_split() {
    for seed in 0..40 {
        let mut seed = Seed(seed);
        let (mut a, mut b) = (End::new(), End::new());
        if seed.below(2) == 1 {
            b.session.expect(true);
        }
        let sent: Vec<_> = (0..30).map(|number| message(number, &mut seed)).collect();
        let completions: Vec<_> = sent.iter().map(|message| a.send(message.clone())).collect();
        let mut taken = Vec::new();
        while taken.len() < sent.len() {
            run(&mut a, &mut b, &mut seed).expect("a good peer");
            let more: Vec<_> = std::iter::from_fn(|| b.take()).collect();
            assert!(!more.is_empty(), "seed {}: stuck after {} messages", seed.0, taken.len());
            taken.extend(more);
        }
        run(&mut a, &mut b, &mut seed).expect("a good peer");
        for (message, taken) in sent.iter().zip(taken) {
            let frames = taken.frames();
            let bytes =
                |frames: &[Buffer]| frames.iter().map(|frame| frame.to_vec().unwrap()).collect::<Vec<_>>();
            assert_eq!(bytes(&frames), bytes(message.frames()));
        }
        for (sent, acked) in completions {
            assert!(sent.try_take().expect("sent").is_ok());
            assert_eq!(acked.try_take().expect("acknowledged").unwrap(), Delivery::Delivered);
        }
    }
}

#[test]
fn gets_and_puts_reach_their_ranges_for_any_split() {
    for seed in 0..20 {
        let mut seed = Seed(seed);
        let (mut a, mut b) = (End::new(), End::new());
        let len = [1, 1000, 16_384, 300_000][seed.below(4)];
        let source: Vec<u8> = (0..len + 20).map(|index| index as u8).collect();
        let readable = b.regions.expose(source.clone().into(), Duration::MAX);
        let (into, got) = Operation::new(BufferMut::with_capacity(len));
        a.session.get(readable.remote(), 10, into);
        run(&mut a, &mut b, &mut seed).expect("a good peer");
        let got = got.try_take().expect("ended").expect("got");
        assert_eq!(got.as_slice().unwrap(), &source[10..10 + len]);
        drop(readable);

        let writable = b.regions.expose_mut(BufferMut::zeroed(len + 20), Duration::MAX);
        let (from, put) = Operation::new(Buffer::from(source[10..10 + len].to_vec()));
        a.session.put(writable.remote(), 10, from);
        let (outside, refused) = Operation::new(Buffer::from(vec![1; 30]));
        a.session.put(writable.remote(), len as u64, outside);
        run(&mut a, &mut b, &mut seed).expect("a good peer");
        assert!(put.try_take().expect("ended").is_ok());
        let failed = refused.try_take().expect("ended").expect_err("outside");
        assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Rejected, 30));
    }
}

#[test]
fn an_interrupted_get_returns_its_buffer_unchanged() {
    let (mut a, mut b) = (End::new(), End::new());
    let readable = b.regions.expose(vec![1; 100_000].into(), Duration::MAX);
    let mut into = BufferMut::with_capacity(100_003);
    into.extend_from_slice(b"abc").unwrap();
    let (into, got) = Operation::new(into);
    a.session.get(readable.remote(), 0, into);
    a.write(&mut b.wire, usize::MAX);
    while b.read(usize::MAX).unwrap() {}
    b.write(&mut a.wire, 50_000);
    while a.read(usize::MAX).unwrap() {}
    a.session.give_up(&crate::Error::new(ErrorKind::PeerLost, "cut"));
    let failed = got.try_take().expect("ended").expect_err("cut");
    assert_eq!(failed.returned.as_slice().unwrap(), b"abc");
}

#[test]
fn small_messages_are_coalesced_and_sent_in_order() {
    let (mut a, mut b) = (End::new(), End::new());
    let small = |text: &'static str| Message::new(text).with_frame(text);
    let (sent, _) = a.send_with(small("first"), true);
    assert!(sent.try_take().is_some_and(|sent| sent.is_ok()), "its memory is free");
    assert!(!a.session.is_due(Urgency::Now) && a.session.is_due(Urgency::Coalesced));
    let large = Message::new("second").with_frame(vec![2; 2000]);
    drop(a.send_with(large, true));
    assert!(a.session.is_due(Urgency::Now), "a large message is not coalesced");
    drop(a.send_with(small("third"), true));
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    let headers: Vec<_> = b.announced.iter().map(|announced| announced.header.clone()).collect();
    assert_eq!(headers, ["first", "second", "third"]);
    assert_eq!(a.session.counts().copied(), 5, "the first was copied");
    for _ in 0..COALESCED_LEN / 100 {
        assert!(!a.session.is_due(Urgency::Now));
        drop(a.send_with(Message::new("").with_frame(vec![3; 68]), true));
    }
    drop(a.send_with(Message::new("").with_frame(vec![3; 68]), true));
    assert!(a.session.is_due(Urgency::Now), "the limit is reached");
}

#[test]
fn close_flushes_coalesced_messages() {
    let (mut a, mut b) = (End::new(), End::new());
    drop(a.send_with(Message::new("last"), true));
    let (done, _) = Done::new();
    a.session.close(done);
    assert!(a.session.is_due(Urgency::Now));
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert_eq!(b.announced[0].header, "last");
}

#[test]
fn a_get_or_put_done_too_early_is_corrupt_and_returns_its_memory() {
    let done = |id| {
        let mut records = Vec::new();
        record::put(&mut records, &Record::Done { id });
        let head = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
        [&head.encode()[..], &records].concat()
    };
    let half = Head { records_len: 0, data_len: 50, transfer: Transfer::Get(0) };
    let half = [&half.encode()[..], &[7; 50]].concat();
    let why = crate::Error::new(ErrorKind::Corrupt, "the session ends");
    let region = End::new().regions.expose(vec![1; 100_000].into(), Duration::MAX).remote();

    let mut a = End::new();
    let mut into = BufferMut::with_capacity(103);
    into.extend_from_slice(b"abc").unwrap();
    let (into, got) = Operation::new(into);
    a.session.get(region, 0, into);
    a.write(&mut VecDeque::new(), usize::MAX);
    a.wire.extend([half, done(0)].concat());
    let error = std::iter::repeat_with(|| a.read(usize::MAX))
        .find_map(Result::err)
        .expect("half of the data has not arrived");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    a.session.give_up(&why);
    let failed = got.try_take().expect("ended").expect_err("half of the data has not arrived");
    assert_eq!((failed.error.kind(), failed.returned.as_slice().unwrap()), (ErrorKind::Corrupt, &b"abc"[..]));

    let mut a = End::new();
    let (from, put) = Operation::new(Buffer::from(vec![1; 20_000]));
    a.session.put(region, 0, from);
    a.write(&mut VecDeque::new(), usize::MAX);
    a.wire.extend(done(0));
    assert_eq!(
        a.read(usize::MAX).unwrap_err().kind(),
        ErrorKind::Corrupt,
        "the owner was not ready to receive"
    );
    a.session.give_up(&why);
    let failed = put.try_take().expect("ended").expect_err("no byte was sent");
    assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Corrupt, 20_000));
}

#[test]
fn unacknowledged_messages_are_bounded_by_the_window() {
    let (mut a, mut b) = (End::new(), End::new());
    let sent: Vec<_> = (0..3 * WINDOW.messages).map(|n| a.send_with(Message::new("x"), n % 3 > 0)).collect();
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert_eq!(b.announced.len() as u64, WINDOW.messages);
    assert_eq!(sent.iter().filter(|(sent, _)| sent.try_take().is_some()).count() as u64, WINDOW.messages);
    while b.take().is_some() {}
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert_eq!(b.announced.len() as u64, WINDOW.messages);
    assert!(a.session.counts().stalls() > 0, "a stall was counted");
}

#[test]
fn large_messages_stream_within_the_pre_granted_credit() {
    let (mut a, mut b) = (End::new(), End::new());
    b.session.expect(true);
    let large = || Message::new("").with_frame(vec![1; 1 << 20]);
    drop(a.send(large()));
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    assert!(matches!(b.announced[0].arrival, Arrival::AtSender), "the first message waits for an accept");
    for _ in 0..6 {
        drop(a.send(large()));
    }
    run(&mut a, &mut b, &mut Seed(1)).unwrap();
    let coming =
        b.announced.iter().filter(|message| matches!(message.arrival, Arrival::InProgress(_))).count();
    assert_eq!(coming as u64, PREGRANT >> 20);
}

#[test]
fn a_silent_peer_is_pinged_and_then_lost() {
    let (mut a, mut b) = (End::new(), End::new());
    let mut now = Duration::ZERO;
    while now < Duration::from_secs(60) {
        now += HEARTBEAT / 4;
        a.session.tick(now).expect("it answers");
        while a.write(&mut b.wire, usize::MAX) {}
        while b.read(usize::MAX).unwrap() {}
        while b.write(&mut a.wire, usize::MAX) {}
        while !a.wire.is_empty() {
            a.read(usize::MAX).unwrap();
            a.session.record_activity(now);
        }
    }
    let stopped = now;
    let error = loop {
        now += HEARTBEAT / 4;
        if let Err(error) = a.session.tick(now) {
            break error;
        }
        a.write(&mut VecDeque::new(), usize::MAX);
    };
    assert_eq!(error.kind(), ErrorKind::PeerLost);
    assert!(now - stopped <= Duration::from_secs(10), "it took {:?}", now - stopped);
}

#[test]
fn close_follows_everything_submitted_before_it() {
    let (mut a, mut b) = (End::new(), End::new());
    let (sent, _) = a.send(Message::new("").with_frame(vec![1; 100_000]));
    let (done, closed) = Done::new();
    a.session.close(done);
    run(&mut a, &mut b, &mut Seed(3)).unwrap();
    assert!(!a.session.may_end() && !b.session.may_end(), "a large message waits for its accept");
    let taken = b.take().expect("announced");
    run(&mut a, &mut b, &mut Seed(3)).unwrap();
    assert_eq!(taken.frames()[0].len(), 100_000);
    assert!(sent.try_take().expect("sent").is_ok());
    assert!(a.session.is_over() && b.session.is_over());
    a.session.give_up(&crate::Error::new(ErrorKind::Closed, "over"));
    assert!(closed.try_take().expect("closed").is_ok());
}

#[test]
fn damaged_streams_fail_and_return_all_memory() {
    let mut errors = 0;
    for seed in 0..200 {
        let mut seed = Seed(seed);
        let (mut a, mut b) = (End::new(), End::new());
        b.session.expect(true);
        let readable = b.regions.expose(vec![1; 1000].into(), Duration::MAX);
        let completions: Vec<_> = (0..10).map(|number| a.send(message(number, &mut seed))).collect();
        let (into, got) = Operation::new(BufferMut::with_capacity(1000));
        a.session.get(readable.remote(), 0, into);
        let mut result = Ok(());
        for _ in 0..40 {
            a.write(&mut b.wire, usize::MAX);
            if !b.wire.is_empty() && seed.below(3) == 0 {
                let at = seed.below(b.wire.len().min(60));
                b.wire[at] ^= 1 << seed.below(8);
            }
            result = b.read(1 + seed.below(50_000)).and_then(|_| {
                while b.take().is_some() {}
                b.write(&mut a.wire, usize::MAX);
                a.read(usize::MAX).map(drop)
            });
            if result.is_err() {
                break;
            }
        }
        errors += usize::from(result.is_err());
        let why = crate::Error::new(ErrorKind::Corrupt, "given up");
        a.session.give_up(&why);
        b.session.give_up(&why);
        for (sent, acked) in completions {
            assert!(sent.try_take().is_some() && acked.try_take().is_some(), "everything ends");
        }
        assert!(got.try_take().is_some());
    }
    assert!(errors > 50, "damage was noticed {errors} times");
}
