//! A data stream: whatever arrives, however it is cut, the session obeys or ends, and gives all memory back.

use std::time::Duration;

use towline::backend::{Announced, Arrival, Delivery};
use towline::internals::{Arena, Destination, Sending, Stream, decoded_and_encoded};
use towline::{Buffer, BufferMut, Error, ErrorKind, Message};

use crate::HeapMax;
use crate::script::Script;
use crate::wire::{LENT_LEN, HostilePeer};

const HEARTBEAT: Duration = Duration::from_secs(3);
/// What one input does at most.
const STEPS_MAX: usize = 100;
/// Credit for messages, and for the bytes of headers, tables and eager payload.
const WINDOW_MESSAGES: usize = 1024;
/// Streams beside the main one, where there are several.
const LANES: usize = 3;
/// Leases that are out at once at most, where frames are lent.
const LEASES_MAX: usize = 3;
/// Room for what an end bounce copies.
const BOUNCE_ARENA_BYTES: usize = 1 << 20;
/// Loans that a liar may make.
const LENT_FRAMES: usize = 8;
/// What it accepts at most, beyond the pool.
const ACCEPTED_LEN_MAX: usize = 8 << 20;
/// What streams ahead, twice, since the pool hands out powers of two; the window; what this target sends and accepts.
const HEAP_MAX: HeapMax = (2 * 4 + 8 + 16) << 20;
/// Every kind of record, and those that lead somewhere more than once.
const KINDS: [u8; 20] = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 1];

/// What the ends of an input have.
#[derive(Clone, Copy)]
struct Way {
    checked: bool,
    lanes: usize,
    lends: bool,
}

/// The first byte says how.
pub fn run(input: &[u8]) -> HeapMax {
    let Some((which, rest)) = input.split_first() else { return HEAP_MAX };
    let lanes = if which & 8 == 0 { 0 } else { LANES };
    let way = Way { checked: which & 1 == 1, lanes, lends: which & 16 != 0 };
    match which >> 1 & 3 {
        0 => records(rest),
        1 => raw(rest, way),
        2 => lies(rest, way),
        _ => damage(rest, way),
    }
    HEAP_MAX
}

/// What can be decoded is what we would have written.
fn records(bytes: &[u8]) {
    if let Ok(again) = decoded_and_encoded(bytes) {
        // A refusal's reason is cleaned, and then stays as it is.
        assert!(again == bytes || decoded_and_encoded(&again).expect("we wrote it") == again);
    }
}

/// The input as it is, in pieces.
fn raw(input: &[u8], way: Way) {
    let arenas = [Arena::default(), Arena::default()];
    let mut end = End::new(way, &arenas[0], &arenas[1]);
    let mut script = Script(input);
    end.stream.expect(script.byte() % 2 == 0);
    let piece = 1 + script.below(600);
    let mut result = Ok(());
    while result.is_ok() && !script.is_over() {
        let stream = end.one_of_its_streams(&mut script);
        result = end.stream.arrive(stream, script.take(piece)).map(|()| end.take(&mut Script(&[])));
        end.leave();
    }
    end.finish(result);
    arenas.iter().for_each(Arena::check);
}

/// A peer that knows the protocol.
fn lies(input: &[u8], way: Way) {
    let mut script = Script(input);
    let arenas = [Arena::default(), Arena::default()];
    let mut end = End::new(way, &arenas[0], &arenas[1]);
    let Way { checked, lanes, lends } = way;
    let lend = |_| arenas[1].lend(&arenas[1].block(vec![0x33; LENT_LEN as usize]), &arenas[0]);
    let lent_frames = (0..if lends { LENT_FRAMES } else { 0 }).filter_map(lend).collect();
    let mut hostile_peer = HostilePeer { checked, lanes, lent_frames, ..HostilePeer::default() };
    let mut result = Ok(());
    for _ in 0..STEPS_MAX {
        if result.is_err() || script.is_over() {
            break;
        }
        match script.byte() {
            0..30 => end.act(&mut script),
            30..60 => end.leave(),
            60..110 => end.take(&mut script),
            110..118 => result = end.stream.pass(HEARTBEAT / 4),
            118..121 => {
                let stream = end.one_of_its_streams(&mut script);
                if !end.stream.end(stream) {
                    result = Err(Error::new(ErrorKind::PeerLost, "the stream ended"));
                }
            }
            _ => {
                let (stream, packet) = hostile_peer.packet(&mut script, &KINDS);
                let cut = script.below(packet.len() + 1);
                let (first, second) = packet.split_at(if script.byte() % 2 == 0 { 0 } else { cut });
                result = end.stream.arrive(stream, first).and_then(|()| end.stream.arrive(stream, second));
            }
        }
    }
    end.finish(result);
    arenas.iter().for_each(Arena::check);
}

/// Two good ends, with damage between them.
fn damage(input: &[u8], way: Way) {
    let mut script = Script(input);
    let arenas = [BOUNCE_ARENA_BYTES, BOUNCE_ARENA_BYTES].map(Arena::with_bounce_arena);
    let mut ends = [End::new(way, &arenas[0], &arenas[1]), End::new(way, &arenas[1], &arenas[0])];
    let mut result = Ok(());
    for _ in 0..STEPS_MAX {
        if result.is_err() || script.is_over() {
            break;
        }
        let choice = script.byte();
        let [first, second] = &mut ends;
        let (from, to) = if choice % 2 == 0 { (first, second) } else { (second, first) };
        match choice / 2 {
            0..50 => from.act(&mut script),
            50..80 => from.take(&mut script),
            _ => {
                let mut bytes = Vec::new();
                let stream = from.one_of_its_streams(&mut script);
                from.stream.leave(stream, &mut bytes);
                if choice >= 240 && !bytes.is_empty() {
                    let at = script.below(bytes.len().min(200));
                    bytes[at] ^= 1 << (script.byte() % 8);
                }
                result = to.stream.arrive(stream, &bytes);
            }
        }
    }
    let [first, second] = ends;
    first.finish(Ok(()));
    second.finish(result);
    arenas.iter().for_each(Arena::check);
}

/// One end, and what it began.
struct End {
    stream: Stream,
    lanes: usize,
    /// What it lends from, if it lends.
    arena: Option<Arena>,
    announced: Vec<Announced>,
    /// The number of the next message to come.
    next: u64,
    sending: Vec<Sending>,
    destination: Vec<(Vec<usize>, Destination)>,
    /// What it accepted beyond the pool.
    accepted_len: usize,
    closed: bool,
}

impl End {
    fn new(way: Way, ours: &Arena, theirs: &Arena) -> Self {
        let Way { checked, lanes, lends } = way;
        let stream = Stream::new(HEARTBEAT, checked, lanes);
        Self {
            // As over shared memory between ends that trust each other.
            stream: if lends { stream.lending(ours, theirs, LEASES_MAX).fetching() } else { stream },
            lanes,
            arena: lends.then(|| ours.clone()),
            announced: Vec::new(),
            next: 0,
            sending: Vec::new(),
            destination: Vec::new(),
            accepted_len: 0,
            closed: false,
        }
    }

    /// Sends, closes, or makes room.
    fn act(&mut self, script: &mut Script<'_>) {
        match script.byte() {
            0..190 if !self.closed => {
                let len = script.one_of(&[0, 8, 300, 0x3fff, 0x4000, 70_000]);
                // What is not, and large, is deposited where the other end takes what comes.
                let in_arena = script.byte() < 170;
                let frame = |_| match &self.arena {
                    Some(arena) if len > 0 && in_arena => arena.block(vec![0x22; len]),
                    _ => Buffer::from(vec![0x22; len]),
                };
                let frames = (0..script.byte() % 3).map(frame).collect();
                let message = Message::from_parts("x", frames);
                self.sending.push(self.stream.send(
                    message,
                    script.byte().is_multiple_of(2),
                    script.byte().is_multiple_of(2),
                ));
            }
            190..250 => self.stream.expect(!script.byte().is_multiple_of(3)),
            250.. if !self.closed => {
                self.closed = true;
                drop(self.stream.close());
            }
            _ => {}
        }
    }

    /// The main stream or a lane.
    fn one_of_its_streams(&self, script: &mut Script<'_>) -> usize {
        if self.lanes == 0 { 0 } else { usize::from(script.byte()) % (self.lanes + 1) }
    }

    /// Writes what is due into the void.
    fn leave(&mut self) {
        let mut void = Vec::new();
        for stream in 0..=self.lanes {
            for _ in 0..4 {
                if !self.stream.leave(stream, &mut void) {
                    break;
                }
            }
        }
    }

    /// Looks at what came, and decides on it.
    fn take(&mut self, script: &mut Script<'_>) {
        for announced in self.stream.announced() {
            assert_eq!(announced.id, self.next, "a message out of order");
            self.next += 1;
            assert!(announced.header.len() <= 64 << 10 && announced.frames.len() <= 65_536);
            self.announced.push(announced);
        }
        assert!(self.announced.len() <= WINDOW_MESSAGES, "more messages than credit was given for");
        while !script.byte().is_multiple_of(4) && !self.announced.is_empty() {
            let at = script.below(self.announced.len());
            self.decide(at, script);
        }
    }

    fn decide(&mut self, at: usize, script: &mut Script<'_>) {
        let Announced { id, frames, arrival, .. } = self.announced.swap_remove(at);
        let lens: Vec<usize> = frames.iter().map(|frame| frame.len).collect();
        let total = lens.iter().fold(0_usize, |sum, len| sum.saturating_add(*len));
        match arrival {
            Arrival::Here(buffers) => assert_lens(&buffers, &lens),
            Arrival::Coming(landed) => {
                if let Some(Ok(buffers)) = landed.try_take() {
                    assert_lens(&buffers, &lens);
                }
            }
            Arrival::Waiting
                if total <= 100_000
                    && self.accepted_len + total <= ACCEPTED_LEN_MAX
                    && script.byte() < 200 =>
            {
                self.accepted_len += total;
                let destinations =
                    lens.iter().map(|len| (script.byte() < 200).then(|| BufferMut::with_capacity(*len)));
                let destinations = destinations.collect();
                self.destination.push((lens, self.stream.accept(id, destinations)));
                return;
            }
            Arrival::Waiting => {}
        }
        let delivery = if script.byte().is_multiple_of(4) { Delivery::Rejected } else { Delivery::Delivered };
        self.stream.ack(id, delivery, script.byte().is_multiple_of(2));
    }

    /// What must be true at the end, however it came.
    fn finish(mut self, result: Result<(), Error>) {
        if let Err(error) = &result {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::PeerLost), "{error}");
        }
        let why = result.err().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the input is over"));
        self.stream.give_up(&why);
        for (sent, acked) in self.sending {
            assert!(sent.try_take().is_some() && acked.try_take().is_some(), "a send never ended");
        }
        for (lens, landed) in self.destination {
            match landed.try_take().expect("an accept ends") {
                Ok(buffers) => {
                    for (buffer, len) in buffers.iter().zip(lens) {
                        assert!(buffer.is_empty() || buffer.len() == len, "half a frame");
                    }
                }
                Err(failed) => assert_eq!(failed.returned.len(), lens.len()),
            }
        }
        let pool = self.stream.pool().clone();
        drop((self.stream, self.announced));
        assert_eq!(pool.stats().in_use_bytes, 0, "memory is missing");
    }
}

fn assert_lens(buffers: &[Buffer], lens: &[usize]) {
    assert!(buffers.iter().map(Buffer::len).eq(lens.iter().copied()), "frames of other lengths");
}
