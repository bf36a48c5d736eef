//! Direct transfers, whose packets arrive in any order, early and late. That must have no visible effect.

mod hostile;
mod order;

use super::*;
use crate::wire::session::{Packet, PacketArrival, PacketDestination};

const PACKET_LEN: usize = 20_000;
const LENS: [usize; 8] = [
    0,
    5,
    EAGER_LEN_MAX as usize - 1,
    EAGER_LEN_MAX as usize,
    PACKET_LEN - 1,
    PACKET_LEN,
    PACKET_LEN + 1,
    5 * PACKET_LEN + 7,
];

/// Bytes that encode their position.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at) as u8).collect()
}

/// A received message: which of its frames were kept, and their contents; `None` if it was rejected.
type ReceivedMessage = Option<(Vec<bool>, Taken)>;

/// An end, and the model of a transport that moves its packets.
struct PacketEnd {
    end: End,
    pool: Pool,
    /// Packets of this end whose memory is still read.
    leaving: Vec<Packet>,
    /// Packets in flight to this end: head and bytes.
    in_flight: Vec<(Vec<u8>, Vec<u8>)>,
    /// Packets that arrived but are not written to their destinations.
    receiving: Vec<(PacketDestination, Vec<u8>)>,
    /// How many packets overtook their announcements.
    early: usize,
    sent: Vec<(Vec<usize>, Sent, Completion<Result<Delivery>>)>,
    received: Vec<ReceivedMessage>,
}

impl PacketEnd {
    fn new(checked: bool) -> Self {
        let (pool, regions) = (Pool::new(1 << 20), Regions::new(Arc::new(FixedEnvironment)));
        let session = Session::new(pool.clone(), regions.clone(), HEARTBEAT, Duration::ZERO, checked);
        let session = session.in_packets(PACKET_LEN);
        let (wire, lanes, announced) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let end = End { session, regions, wire, lanes, announced };
        let (leaving, in_flight, receiving) = (Vec::new(), Vec::new(), Vec::new());
        Self { end, pool, leaving, in_flight, receiving, early: 0, sent: Vec::new(), received: Vec::new() }
    }

    fn pair(checked: bool) -> (Self, Self) {
        (Self::new(checked), Self::new(checked))
    }

    /// Sends frames of these lengths, in memory of its pool.
    fn send(&mut self, lens: &[usize]) {
        let frame = |len: &usize| {
            let mut buffer = self.pool.take(*len).unwrap();
            buffer.extend_from_slice(&bytes(*len)).unwrap();
            buffer.freeze()
        };
        let frames = lens.iter().map(frame).collect();
        let (sent, acked) = self.end.send(Message::from_parts(self.sent.len().to_string(), frames));
        self.sent.push((lens.to_vec(), sent, acked));
    }

    fn send_some(&mut self, count: usize, seed: &mut Seed) {
        for _ in 0..count {
            let lens: Vec<_> = (0..seed.below(4)).map(|_| LENS[seed.below(LENS.len())]).collect();
            self.send(&lens);
        }
    }

    fn close(&mut self) -> Completion<Result<()>> {
        let (done, closed) = Done::new();
        self.end.session.close(done);
        closed
    }

    /// Lets one event happen at an end. Returns whether it could.
    fn act(&mut self, peer: &mut Self, what: usize, seed: &mut Seed) -> Result<bool> {
        let session = &mut self.end.session;
        match what {
            // Records are slow, so that packets overtake them.
            0 => return Ok(self.end.write(&mut peer.end.wire, 1 + seed.below(3000))),
            1 => return self.end.read(1 + seed.below(3000)),
            2 => {
                let Some(packet) = session.next_packet() else { return Ok(false) };
                peer.in_flight.push(copied(&packet));
                self.leaving.push(packet);
            }
            3 if !self.leaving.is_empty() => {
                session.packet_left(self.leaving.swap_remove(seed.below(self.leaving.len())));
            }
            4 => {
                let first = seed.below(self.in_flight.len().max(1));
                self.in_flight.rotate_left(first);
                for at in 0..self.in_flight.len() {
                    let (head, bytes) = &self.in_flight[at];
                    if let PacketArrival::Accepted(destination) = session.packet_arrived(head, bytes.len())? {
                        let (_, bytes) = self.in_flight.swap_remove(at);
                        self.receiving.push((destination, bytes));
                        return Ok(true);
                    }
                    self.early += 1;
                }
                return Ok(false);
            }
            5 if !self.receiving.is_empty() => {
                let (mut destination, bytes) = self.receiving.swap_remove(seed.below(self.receiving.len()));
                fill(&mut destination, &bytes);
                session.packet_landed(destination)?;
            }
            6 => return Ok(self.take(seed)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Decides on the next message.
    fn take(&mut self, seed: &mut Seed) -> bool {
        let Some(announced) = self.end.announced.pop_front() else { return false };
        let Announced { id, frames, arrival, .. } = announced;
        let session = &mut self.end.session;
        if seed.below(6) == 0 {
            session.ack(id, Delivery::Rejected, false);
            self.received.push(None);
            return true;
        }
        let (kept, taken) = match arrival {
            Arrival::Complete(buffers) => {
                session.ack(id, Delivery::Delivered, false);
                (vec![true; frames.len()], Taken::Here(buffers))
            }
            Arrival::InProgress(landed) => {
                let Some(buffers) = landed.try_take() else {
                    let arrival = Arrival::InProgress(landed);
                    self.end.announced.push_front(Announced { id, frames, arrival, ..announced });
                    return false;
                };
                session.ack(id, Delivery::Delivered, false);
                (vec![true; frames.len()], Taken::Here(buffers.expect("landed")))
            }
            Arrival::AtSender => {
                let kept: Vec<_> = frames.iter().map(|_| seed.below(5) > 0).collect();
                let destination = |(frame, kept): (&FrameInfo, &bool)| {
                    kept.then(|| self.pool.take(frame.len + 3).expect("there is memory"))
                };
                let destinations = frames.iter().zip(&kept).map(destination).collect();
                (kept, self.end.accept(id, destinations))
            }
        };
        self.received.push(Some((kept, taken)));
        true
    }

    /// Checks the received messages and drops them.
    fn check(&mut self, peer: &Self, all: bool) {
        for ((lens, ..), received) in peer.sent.iter().zip(self.received.drain(..)) {
            let Some((kept, taken)) = received else { continue };
            let frames = match taken {
                Taken::Here(frames) => frames,
                Taken::Pending(landed) => match landed.try_take().expect("it ends") {
                    Ok(frames) => frames,
                    Err(failed) => {
                        assert!(!all, "{:?}", failed.error);
                        let lens = lens.iter().zip(&failed.returned);
                        let came_back = |(len, buffer): (&usize, &Option<BufferMut>)| {
                            let as_it_was = |buffer: &BufferMut| (buffer.len(), buffer.capacity());
                            buffer.as_ref().is_none_or(|buffer| as_it_was(buffer) == (0, len + 3))
                        };
                        assert!(lens.into_iter().all(came_back), "destinations come back as they were");
                        continue;
                    }
                },
            };
            for ((len, kept), frame) in lens.iter().zip(kept).zip(frames) {
                let should_be = if kept { bytes(*len) } else { Vec::new() };
                assert!(frame.as_slice().unwrap_or_default() == should_be, "a frame of {len}");
            }
        }
    }

    /// Ends it as a lost connection would: memory in flight is returned first.
    fn give_up(&mut self, why: ErrorKind, seed: &mut Seed) {
        for (mut destination, bytes) in self.receiving.drain(..) {
            // Some of its bytes have arrived.
            if let Some((part, len)) = destination.parts().first_mut() {
                part.extend_from_slice(&bytes[..seed.below(*len + 1)]).unwrap();
            }
            self.end.session.packet_failed(destination);
        }
        for packet in self.leaving.drain(..) {
            self.end.session.packet_lost(packet);
        }
        self.end.session.give_up(&crate::Error::new(why, "the session ends"));
        self.end.announced.clear();
    }

    /// Checks the messages that it sent: each has ended, and its memory is complete.
    fn check_sent(&mut self, all: bool) {
        for (lens, sent, acked) in self.sent.drain(..) {
            match sent.try_take().expect("it ends") {
                Ok(()) => {}
                Err(failed) => {
                    assert!(!all, "{:?}", failed.error);
                    for (len, frame) in lens.iter().zip(failed.returned.frames()) {
                        assert!(frame.as_slice().unwrap_or_default() == bytes(*len));
                    }
                }
            }
            assert!(acked.try_take().expect("it ends").is_ok() || !all);
        }
    }
}

/// The head and bytes of a packet.
fn copied(packet: &Packet) -> (Vec<u8>, Vec<u8>) {
    let bytes = packet.bytes.iter().flat_map(|buffer| buffer.as_slice().unwrap().iter().copied());
    (packet.head.clone(), bytes.collect())
}

/// Writes a packet's bytes to their destination.
fn fill(destination: &mut PacketDestination, mut bytes: &[u8]) {
    for (buffer, len) in destination.parts() {
        let (part, rest) = bytes.split_at(*len);
        buffer.extend_from_slice(part).unwrap();
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a destination takes exactly what was announced");
}

/// Lets one event happen at one end, or another event if that cannot. Returns whether any could.
fn step(a: &mut PacketEnd, b: &mut PacketEnd, seed: &mut Seed) -> Result<bool> {
    let (which, what) = (seed.below(2), seed.below(7));
    for turn in 0..14 {
        let (which, what) = ((which + turn / 7) % 2, (what + turn) % 7);
        let moved = if which == 0 { a.act(b, what, seed) } else { b.act(a, what, seed) };
        if moved? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn run_dry(a: &mut PacketEnd, b: &mut PacketEnd, seed: &mut Seed) {
    while step(a, b, seed).expect("a good peer") {}
}

#[test]
fn packets_in_any_order_arrive_and_return_all_memory() {
    let mut early = 0;
    for number in 0..60 {
        let mut seed = Seed(number);
        let (mut a, mut b) = PacketEnd::pair(number % 2 == 0);
        for post in [&mut a, &mut b] {
            if seed.below(2) == 0 {
                post.end.session.expect(true);
            }
        }
        let source = bytes(4 * PACKET_LEN + 20);
        let readable = b.end.regions.expose(source.clone().into(), Duration::MAX);
        let writable = a.end.regions.expose_mut(BufferMut::zeroed(4 * PACKET_LEN), Duration::MAX);
        let got: Vec<_> = [(20, 4 * PACKET_LEN), (7, 30), (9, 0)]
            .map(|(offset, len)| {
                let mut into = BufferMut::with_capacity(len + 3);
                into.extend_from_slice(b"abc").unwrap();
                let (into, got) = Operation::new(into);
                a.end.session.get(readable.remote(), offset as u64, into);
                (got, [b"abc", &source[offset..offset + len]].concat())
            })
            .into();
        let (from, put) = Operation::new(Buffer::from(source[..3 * PACKET_LEN + 1].to_vec()));
        b.end.session.put(writable.remote(), 5, from);
        let (outside, refused) = Operation::new(Buffer::from(vec![1; 2 * PACKET_LEN]));
        b.end.session.put(writable.remote(), 3 * PACKET_LEN as u64, outside);
        a.send_some(8, &mut seed);
        b.send_some(8, &mut seed);
        run_dry(&mut a, &mut b, &mut seed);
        for (got, should_be) in got {
            assert!(got.try_take().expect("ended").expect("got").as_slice().unwrap() == should_be);
        }
        assert!(put.try_take().expect("ended").is_ok());
        let failed = refused.try_take().expect("ended").expect_err("outside");
        assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Rejected, 2 * PACKET_LEN));
        let written = ready(writable.revoke());
        assert!(written.as_slice().unwrap()[5..][..3 * PACKET_LEN + 1] == source[..3 * PACKET_LEN + 1]);
        assert!(written.as_slice().unwrap()[5..][3 * PACKET_LEN + 1..].iter().all(|byte| *byte == 0));

        // Everything in flight arrives before both ends close.
        a.send_some(6, &mut seed);
        b.send_some(6, &mut seed);
        while a.received.len() < 14 || b.received.len() < 14 {
            assert!(step(&mut a, &mut b, &mut seed).expect("a good peer"), "seed {number}: stuck");
        }
        let closed = a.close();
        if seed.below(2) == 0 {
            drop(b.close());
        }
        run_dry(&mut a, &mut b, &mut seed);
        for post in [&mut a, &mut b] {
            assert!(post.end.session.is_over(), "seed {number}");
            assert!(post.leaving.is_empty() && post.in_flight.is_empty() && post.receiving.is_empty());
            post.give_up(ErrorKind::Closed, &mut seed);
        }
        assert!(closed.try_take().expect("closed").is_ok());
        a.check(&b, true);
        b.check(&a, true);
        for post in [&mut a, &mut b] {
            post.check_sent(true);
            assert_eq!(post.pool.stats().in_use_bytes, 0, "seed {number}");
            early += post.early;
        }
    }
    assert!(early > 100, "announcements were overtaken {early} times");
}

/// The result of a future that is ready.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("nothing is in flight"),
    }
}

#[test]
fn a_close_or_cut_at_any_time_ends_and_returns_all_memory() {
    let mut whole = 0;
    for number in 0..200 {
        let mut seed = Seed(1000 + number);
        let (mut a, mut b) = PacketEnd::pair(number % 2 == 0);
        for post in [&mut a, &mut b] {
            if seed.below(2) == 0 {
                post.end.session.expect(true);
            }
            post.send_some(6, &mut seed);
        }
        let readable = b.end.regions.expose(bytes(3 * PACKET_LEN).into(), Duration::MAX);
        let writable = a.end.regions.expose_mut(BufferMut::zeroed(3 * PACKET_LEN), Duration::MAX);
        let (into, got) = Operation::new(BufferMut::with_capacity(3 * PACKET_LEN));
        a.end.session.get(readable.remote(), 0, into);
        let (from, put) = Operation::new(Buffer::from(bytes(3 * PACKET_LEN)));
        b.end.session.put(writable.remote(), 0, from);
        let (closing, steps) = ([(1, 0), (0, 1), (1, 1), (0, 0)][seed.below(4)], seed.below(300));
        for at in 0..=steps {
            let ends = [(closing.0, &mut a), (closing.1, &mut b)];
            // They close at the same time, or one after the other.
            for (end, (closes, post)) in ends.into_iter().enumerate() {
                if closes == 1 && at + 10 * end * (steps % 2) == steps {
                    drop(post.close());
                }
            }
            if !step(&mut a, &mut b, &mut seed).expect("a good peer") {
                break;
            }
        }
        if closing != (0, 0) {
            drop(a.close());
            run_dry(&mut a, &mut b, &mut seed);
            for post in [&mut a, &mut b] {
                assert!(post.end.session.is_over(), "seed {number}: stuck while closing, {closing:?}");
                assert!(post.leaving.is_empty() && post.in_flight.is_empty() && post.receiving.is_empty());
            }
        }
        for post in [&mut a, &mut b] {
            post.give_up(ErrorKind::PeerLost, &mut seed);
        }
        match got.try_take().expect("it ends") {
            Ok(got) => assert!(got.as_slice().unwrap() == bytes(3 * PACKET_LEN)),
            Err(failed) => {
                assert_eq!((failed.returned.len(), failed.returned.capacity()), (0, 3 * PACKET_LEN));
            }
        }
        if let Err(failed) = put.try_take().expect("it ends") {
            assert!(failed.returned.as_slice().unwrap() == bytes(3 * PACKET_LEN));
        }
        a.check(&b, false);
        b.check(&a, false);
        for post in [&mut a, &mut b] {
            whole += post.sent.len();
            post.check_sent(false);
            assert_eq!(post.pool.stats().in_use_bytes, 0, "seed {number}");
        }
    }
    assert_eq!(whole, 2 * 6 * 200);
}

/// Hands out every packet of `from`, and puts it in flight.
fn post_all(from: &mut PacketEnd, to: &mut PacketEnd) -> usize {
    let mut packets = 0;
    while let Some(packet) = from.end.session.next_packet() {
        to.in_flight.push(copied(&packet));
        from.end.session.packet_left(packet);
        packets += 1;
    }
    packets
}

/// Moves all records, and no packets.
fn ack_records(a: &mut PacketEnd, b: &mut PacketEnd) {
    while a.end.write(&mut b.end.wire, usize::MAX)
        | b.end.write(&mut a.end.wire, usize::MAX)
        | a.end.read(usize::MAX).unwrap()
        | b.end.read(usize::MAX).unwrap()
    {}
}

/// Two ends, of which the first was granted a whole message.
fn granted(checked: bool, len: usize) -> (PacketEnd, PacketEnd) {
    let (mut a, mut b) = PacketEnd::pair(checked);
    a.send(&[len]);
    ack_records(&mut a, &mut b);
    let announced = b.end.announced.pop_front().expect("announced");
    let destinations = vec![Some(BufferMut::with_capacity(len + 3))];
    let taken = b.end.accept(announced.id, destinations);
    b.received.push(Some((vec![true], taken)));
    ack_records(&mut a, &mut b);
    (a, b)
}

#[test]
fn packets_in_flight_are_send() {
    fn is_send<T: Send + 'static>() {}
    is_send::<Packet>();
    is_send::<PacketDestination>();
}
