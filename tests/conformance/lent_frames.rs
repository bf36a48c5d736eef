//! A trusted peer that lies about loans: of what it lends, and of what it was lent. It costs its own connection, and nothing else.

use std::fs;
use std::os::fd::OwnedFd;

use towline::{Arena, Buffer, Caps, Connection, Endpoint, ErrorKind, Listener, Message, Place};

use crate::attach::{ALL, assert_talk};
use crate::backends::Row;
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{LENT, packet, record};
use crate::sharing::{
    Hello, SEGMENT_LEN, Segment, Sharer, TABLE_AT, THEIR_TABLE_AT, friend, listening, show,
};
use crate::spoiled::{LIMIT, end_of};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        an_invalid_lease_ends_its_own_connection_only,
        an_invalid_lease_return_ends_its_own_connection_only,
        an_untrusted_peer_cannot_lend;
}

const ARENA: u64 = 2;
/// The number of its segment.
const SEGMENT: u32 = 7;
const LEN: usize = 5000;
const LENT_FRAMES_MAX: usize = 16_384;

/// Where a frame is, and under which lease: a slot and its turn.
#[derive(Clone, Copy)]
struct LentFrame {
    segment: u32,
    offset: u64,
    slot: u64,
    generation: u64,
}

/// What nobody has a reason to doubt, in a slot that nothing was lent in.
const GOOD: LentFrame = LentFrame { segment: SEGMENT, offset: 100, slot: 5, generation: 1 };

/// A trusted peer by hand, which lends out of a segment of its own.
struct Lender {
    sharer: Sharer,
    arena: Segment,
    messages: u64,
}

impl Lender {
    /// It has lent two frames as it should: the first is held, the second given back.
    async fn new(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection, Buffer) {
        let (sharer, connection) = Sharer::trusted(endpoint, listener, nonce).await;
        assert!(connection.caps().contains(Caps::LENDS));
        let arena = Segment::open(SEGMENT_LEN);
        arena.store(0, &[9; SEGMENT_LEN]);
        arena.seal(ALL);
        let mut lender = Self { sharer, arena, messages: 0 };
        lender.show(SEGMENT, lender.arena.memfd.try_clone().unwrap());
        lender.lend(LEN, &[LentFrame { slot: 0, ..GOOD }]);
        let held = in_time("a loan", connection.recv()).await.unwrap().into_parts().1.remove(0);
        assert_eq!((held.place(), held.as_slice()), (Place::Arena, Some(&[9; LEN][..])));
        lender.lend(LEN, &[LentFrame { slot: 1, offset: (SEGMENT_LEN - LEN) as u64, ..GOOD }]);
        drop(in_time("another", connection.recv()).await.unwrap());
        let back = |slot: usize| lender.sharer.heard(THEIR_TABLE_AT + 8 * slot);
        assert_eq!((back(0), back(1)), (0, 1));
        (lender, connection, held)
    }

    fn show(&self, segment: u32, descriptor: OwnedFd) {
        show(&self.sharer.attach, &segment.to_le_bytes(), &[descriptor]);
    }

    /// A message of frames in an arena, each of `len` bytes, with these loans.
    fn lend(&mut self, len: usize, lent_frames: &[LentFrame]) {
        self.say(LENT, &vec![len as u64 | ARENA << 48; lent_frames.len()], lent_frames);
    }

    fn say(&mut self, flags: u8, frames: &[u64], lent_frames: &[LentFrame]) {
        let mut body = [0_u32, frames.len() as u32].map(u32::to_le_bytes).concat();
        body.extend(frames.iter().flat_map(|frame| frame.to_le_bytes()));
        for LentFrame { segment, offset, slot, generation } in lent_frames {
            body.extend(segment.to_le_bytes());
            body.extend(offset.to_le_bytes());
            body.extend((slot | generation << 12).to_le_bytes());
        }
        self.sharer.pour(&packet(&record(1, flags, self.messages, &body), 0, &[]));
        self.messages += 1;
    }

    /// What one of its words says of our loans.
    fn tell(&self, slot: usize, generation: u64) {
        self.sharer.tell(TABLE_AT + 8 * slot, generation);
    }
}

type Violation = fn(&mut Lender);

const VIOLATIONS: &[(&str, Violation)] = &[
    ("a segment that was not shown", |it| it.lend(LEN, &[LentFrame { segment: 8, ..GOOD }])),
    ("beyond the segment", |it| {
        it.lend(LEN, &[LentFrame { offset: (SEGMENT_LEN - LEN + 1) as u64, ..GOOD }]);
    }),
    ("longer than the segment", |it| it.lend(SEGMENT_LEN + 1, &[LentFrame { offset: 0, ..GOOD }])),
    ("beyond all memory", |it| it.lend(LEN, &[LentFrame { offset: u64::MAX - 10, ..GOOD }])),
    ("the longest frame there is", |it| it.lend((1 << 48) - 1, &[GOOD])),
    ("a lease that is out", |it| it.lend(LEN, &[LentFrame { slot: 0, ..GOOD }])),
    ("its next turn", |it| it.lend(LEN, &[LentFrame { slot: 0, generation: 2, ..GOOD }])),
    ("a turn that was", |it| it.lend(LEN, &[LentFrame { slot: 1, ..GOOD }])),
    ("a turn before all", |it| it.lend(LEN, &[LentFrame { generation: 0, ..GOOD }])),
    ("a turn after the next", |it| it.lend(LEN, &[LentFrame { generation: 2, ..GOOD }])),
    ("the last of all turns", |it| {
        it.lend(LEN, &[LentFrame { slot: 4095, generation: u64::MAX >> 12, ..GOOD }])
    }),
    ("a lease twice in a message", |it| it.lend(LEN, &[GOOD; 2])),
    ("frames of no bytes", |it| it.lend(0, &[GOOD])),
    ("a loan too few", |it| it.say(LENT, &[LEN as u64 | ARENA << 48; 2], &[GOOD])),
    ("a loan too many", |it| {
        it.say(LENT, &[LEN as u64 | ARENA << 48], &[GOOD, LentFrame { slot: 6, ..GOOD }]);
    }),
    ("a frame elsewhere on loan", |it| it.say(LENT, &[LEN as u64], &[GOOD])),
    ("lent and eager", |it| it.say(LENT | 4, &[LEN as u64 | ARENA << 48], &[GOOD])),
    ("more loans than a message has", |it| {
        let lent_frame = |slot| LentFrame { slot: slot as u64, ..GOOD };
        it.lend(1, &(0..=LENT_FRAMES_MAX).map(lent_frame).collect::<Vec<_>>());
    }),
    ("more loans than leases", |it| {
        let lent_frame = |slot| LentFrame { slot: slot as u64, ..GOOD };
        it.lend(1, &(2..=4097).map(lent_frame).collect::<Vec<_>>());
    }),
];

/// Segments by hand that this process has mapped.
fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().matches("/memfd:by-hand").count()
}

async fn an_invalid_lease_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    assert_talk(&pair, 0).await;
    let before = (usage::descriptors(), mappings());
    for (number, (what, violation)) in VIOLATIONS.iter().enumerate() {
        let (mut lender, connection, held) = Lender::new(&endpoint, &listener, number as u8).await;
        let ending = {
            let connection = connection.clone();
            tokio::spawn(async move { end_of(&connection).await })
        };
        violation(&mut lender);
        let end = within(LIMIT, what, ending).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        // What it lent before it lied stays, and so does what it has no more.
        assert_eq!(held.as_slice(), Some(&[9; LEN][..]), "{what}");
        drop((lender, connection));
        assert_eq!(held.as_slice(), Some(&[9; LEN][..]), "{what}");
        drop(held);
        assert_talk(&pair, number).await;
    }
    eventually("every descriptor is closed", || usage::descriptors() <= before.0).await;
    eventually("nothing of theirs is mapped", || mappings() <= before.1).await;
    assert_eq!(endpoint.pool().stats().in_use_bytes, 0);
}

type Word = fn(&Lender);

/// What it says of what it was lent: slot 0 is out in its first turn, and slot 1 was.
const WORDS: &[(&str, Word)] = &[
    ("a turn that is still to come", |it| it.tell(0, 2)),
    ("all turns", |it| it.tell(0, u64::MAX)),
    ("half of all turns", |it| it.tell(0, 1 << 63)),
    ("what came back did not", |it| it.tell(1, 0)),
    ("what came back came again", |it| it.tell(1, 2)),
    ("what was never lent is back", |it| it.tell(2, 1)),
    ("what was never lent is back for ever", |it| it.tell(2, u64::MAX)),
];

async fn an_invalid_lease_return_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    let arena = Arena::new(64 << 20).unwrap();
    let frame = || {
        let mut buffer = arena.take(LEN).unwrap();
        buffer.extend_from_slice(&[3; LEN]).unwrap();
        Message::new("").with_frame(buffer.freeze())
    };
    drop(frame());
    let before = usage::descriptors();
    for (number, (what, violation)) in WORDS.iter().enumerate() {
        let (lender, connection, held) = Lender::new(&endpoint, &listener, number as u8).await;
        for _ in 0..2 {
            drop(in_time("a send", connection.send(frame())).await.unwrap());
            lender.sharer.swallow();
        }
        lender.tell(1, 1);
        assert_eq!(arena.stats().leases, 1, "{what}: one of two is back");
        violation(&lender);
        // Two more, in the slots that are free, as far as they are.
        let mut end = None;
        for _ in 0..2 {
            end = connection.send(frame()).await.err();
        }
        let end = match end {
            Some(failed) => failed.error,
            None => within(LIMIT, what, end_of(&connection)).await,
        };
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        let stats = arena.stats();
        assert!(stats.quarantined_leases > 0, "{what}: nobody says that it has nothing: {stats:?}");
        drop((lender, connection));
        eventually("all of the arena is back", || arena.stats().in_use_bytes == 0).await;
        drop(held);
        assert_talk(&pair, number).await;
    }
    eventually("every descriptor is closed", || usage::descriptors() <= before).await;
}

async fn an_untrusted_peer_cannot_lend(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let (sharer, connection) = Sharer::connected(&endpoint, &listener, 1).await;
    assert!(!connection.caps().contains(Caps::LENDS));
    let arena = Segment::sealed();
    let mut lender = Lender { sharer, arena, messages: 0 };
    lender.show(SEGMENT, lender.arena.memfd.try_clone().unwrap());
    lender.lend(LEN, &[GOOD]);
    let end = within(LIMIT, "the end", end_of(&connection)).await;
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    // A flag that nobody knows is no trust either.
    let violation = |hello: &mut Hello| hello.words[10] = 3;
    assert!(Sharer::connected_by(&endpoint, &listener, 2, violation).await.is_err());
}
