//! A data stream: whatever bytes arrive, however they are split, the session follows the protocol or ends,
//! and returns all memory.

use std::time::Duration;

use towline::backend::{Announced, Arrival, Delivery};
use towline::internals::{FuzzArena, PendingAccept, PendingSend, Stream, decoded_and_encoded};
use towline::{Buffer, BufferMut, Error, ErrorKind, Message};

use crate::HeapMax;
use crate::script::Script;
use crate::wire::{HostilePeer, LENT_LEN};

const HEARTBEAT: Duration = Duration::from_secs(3);
/// Upper bound on the steps of one input.
const STEPS_MAX: usize = 100;
/// Credit for messages, and for the bytes of headers, tables and eager payload.
const WINDOW_MESSAGES: usize = 1024;
/// Additional lanes, for inputs with several streams.
const LANES: usize = 3;
/// Upper bound on outstanding leases, for inputs that lend frames.
const LEASES_MAX: usize = 3;
/// Size of each end's bounce arena.
const BOUNCE_ARENA_BYTES: usize = 1 << 20;
/// Number of leases that a hostile peer can offer.
const LENT_FRAMES: usize = 8;
/// Upper bound on the bytes that an end accepts outside the pool.
const ACCEPTED_LEN_MAX: usize = 8 << 20;
/// Pre-granted payload, twice, since the pool rounds lengths up; the window; and the frames that this target
/// sends and accepts.
const HEAP_MAX: HeapMax = (2 * 4 + 8 + 16) << 20;
/// Every kind of record. Those with several variants occur more often.
const KINDS: [u8; 20] = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 1];

/// The options of an input's ends.
#[derive(Clone, Copy)]
struct Options {
    checked: bool,
    lanes: usize,
    lends: bool,
}

/// The first byte selects the options and the test.
pub fn run(input: &[u8]) -> HeapMax {
    let Some((which, rest)) = input.split_first() else { return HEAP_MAX };
    let lanes = if which & 8 == 0 { 0 } else { LANES };
    let options = Options { checked: which & 1 == 1, lanes, lends: which & 16 != 0 };
    match which >> 1 & 3 {
        0 => records(rest),
        1 => raw(rest, options),
        2 => hostile_packets(rest, options),
        _ => damage(rest, options),
    }
    HEAP_MAX
}

/// Bytes that decode as records encode to the same bytes.
fn records(bytes: &[u8]) {
    if let Ok(again) = decoded_and_encoded(bytes) {
        // Decoding cleans the reason of a refusal; a second round trip leaves it unchanged.
        assert!(again == bytes || decoded_and_encoded(&again).expect("we wrote it") == again);
    }
}

/// Feeds the input unchanged, in pieces.
fn raw(input: &[u8], options: Options) {
    let arenas = [FuzzArena::default(), FuzzArena::default()];
    let mut end = StreamEnd::new(options, &arenas[0], &arenas[1]);
    let mut script = Script(input);
    end.stream.expect(script.byte() % 2 == 0);
    let piece = 1 + script.below(600);
    let mut result = Ok(());
    while result.is_ok() && !script.is_over() {
        let stream = end.any_stream(&mut script);
        result = end.stream.arrive(stream, script.take(piece)).map(|()| end.take(&mut Script(&[])));
        end.leave();
    }
    end.finish(result);
    arenas.iter().for_each(FuzzArena::check);
}

/// Feeds packets of a hostile peer that knows the protocol.
fn hostile_packets(input: &[u8], options: Options) {
    let mut script = Script(input);
    let arenas = [FuzzArena::default(), FuzzArena::default()];
    let mut end = StreamEnd::new(options, &arenas[0], &arenas[1]);
    let Options { checked, lanes, lends } = options;
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
                let stream = end.any_stream(&mut script);
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
    arenas.iter().for_each(FuzzArena::check);
}

/// Connects two correct ends and alters bytes between them.
fn damage(input: &[u8], options: Options) {
    let mut script = Script(input);
    let arenas = [BOUNCE_ARENA_BYTES, BOUNCE_ARENA_BYTES].map(FuzzArena::with_bounce_arena);
    let mut ends =
        [StreamEnd::new(options, &arenas[0], &arenas[1]), StreamEnd::new(options, &arenas[1], &arenas[0])];
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
                let stream = from.any_stream(&mut script);
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
    arenas.iter().for_each(FuzzArena::check);
}

/// One end, and the operations it started.
struct StreamEnd {
    stream: Stream,
    lanes: usize,
    /// The arena that frames are lent from, if this end lends.
    arena: Option<FuzzArena>,
    announced: Vec<Announced>,
    /// The id of the next message.
    next: u64,
    sending: Vec<PendingSend>,
    destination: Vec<(Vec<usize>, PendingAccept)>,
    /// Bytes accepted outside the pool.
    accepted_len: usize,
    closed: bool,
}

impl StreamEnd {
    fn new(options: Options, ours: &FuzzArena, theirs: &FuzzArena) -> Self {
        let Options { checked, lanes, lends } = options;
        let stream = Stream::new(HEARTBEAT, checked, lanes);
        Self {
            // The options of shared memory between ends that trust each other.
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

    /// Sends a message, closes, or changes whether a receive is expected.
    fn act(&mut self, script: &mut Script<'_>) {
        match script.byte() {
            0..190 if !self.closed => {
                let len = script.one_of(&[0, 8, 300, 0x3fff, 0x4000, 70_000]);
                // Large frames outside the arena become bounce copies if the peer expects a message.
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

    /// Returns the main stream or a lane.
    fn any_stream(&self, script: &mut Script<'_>) -> usize {
        if self.lanes == 0 { 0 } else { usize::from(script.byte()) % (self.lanes + 1) }
    }

    /// Encodes the pending packets and discards them.
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

    /// Takes announced messages and decides on some of them.
    fn take(&mut self, script: &mut Script<'_>) {
        for announced in self.stream.announced() {
            assert_eq!(announced.id, self.next, "a message out of order");
            self.next += 1;
            assert!(announced.header.len() <= 64 << 10 && announced.frames.len() <= 65_536);
            self.announced.push(announced);
        }
        assert!(self.announced.len() <= WINDOW_MESSAGES, "more messages than the credit permits");
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
            Arrival::Complete(buffers) => assert_lens(&buffers, &lens),
            Arrival::InProgress(landed) => {
                if let Some(Ok(buffers)) = landed.try_take() {
                    assert_lens(&buffers, &lens);
                }
            }
            Arrival::AtSender
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
            Arrival::AtSender => {}
        }
        let delivery = if script.byte().is_multiple_of(4) { Delivery::Rejected } else { Delivery::Delivered };
        self.stream.ack(id, delivery, script.byte().is_multiple_of(2));
    }

    /// Asserts what must hold at the end, for any result.
    fn finish(mut self, result: Result<(), Error>) {
        if let Err(error) = &result {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::PeerLost), "{error}");
        }
        let why = result.err().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the input is over"));
        self.stream.give_up(&why);
        for (sent, acked) in self.sending {
            assert!(sent.try_take().is_some() && acked.try_take().is_some(), "a send did not end");
        }
        for (lens, landed) in self.destination {
            match landed.try_take().expect("an accept ends") {
                Ok(buffers) => {
                    for (buffer, len) in buffers.iter().zip(lens) {
                        assert!(buffer.is_empty() || buffer.len() == len, "a partial frame");
                    }
                }
                Err(failed) => assert_eq!(failed.returned.len(), lens.len()),
            }
        }
        let pool = self.stream.pool().clone();
        drop((self.stream, self.announced));
        assert_eq!(pool.stats().in_use_bytes, 0, "memory was not returned");
    }
}

fn assert_lens(buffers: &[Buffer], lens: &[usize]) {
    assert!(buffers.iter().map(Buffer::len).eq(lens.iter().copied()), "frames of other lengths");
}
