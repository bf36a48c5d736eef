//! A trusted peer that violates the protocol of leases: those of its own frames, and those of ours. It ends
//! its own connection only.

use std::fs;
use std::os::fd::OwnedFd;

use towline::{Arena, Buffer, Caps, Connection, Endpoint, ErrorKind, Listener, Message, Place};

use crate::attach::{ALL, assert_exchange};
use crate::backends::Row;
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{LENT, packet, record};
use crate::ring_faults::{LIMIT, end_of};
use crate::sharing::{
    Hello, SEGMENT_LEN, Segment, ShmPeer, TABLE_AT, connect_by_shm, listening, send_with_descriptors,
};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        an_invalid_lease_ends_its_own_connection_only,
        an_invalid_lease_return_ends_its_own_connection_only,
        an_untrusted_peer_cannot_lend;
}

const ARENA: u64 = 2;
/// The number of the peer's segment.
const SEGMENT: u32 = 7;
/// Others may write the frame.
const FOREIGN: u32 = 1 << 31;
const LEN: usize = 5000;
const LENT_FRAMES_MAX: usize = 16_384;

/// The place of a frame, and its lease: a slot and its generation.
#[derive(Clone, Copy)]
struct LentFrame {
    segment: u32,
    offset: u64,
    slot: u64,
    generation: u64,
}

/// A valid lease, in an unused slot.
const GOOD: LentFrame = LentFrame { segment: SEGMENT, offset: 100, slot: 5, generation: 1 };

/// A trusted raw peer, which lends frames of a segment of its own.
struct Lender {
    shm_peer: ShmPeer,
    arena: Segment,
    messages: u64,
}

impl Lender {
    /// Connects, and lends two valid frames: the first is held, the second returned.
    async fn new(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection, Buffer) {
        let (shm_peer, connection) = ShmPeer::trusted(endpoint, listener, nonce).await;
        assert!(connection.caps().contains(Caps::LENDS));
        let arena = Segment::open(SEGMENT_LEN);
        arena.store(0, &[9; SEGMENT_LEN]);
        arena.seal(ALL);
        let mut lender = Self { shm_peer, arena, messages: 0 };
        lender.export(SEGMENT, lender.arena.memfd.try_clone().unwrap());
        lender.lend(LEN, &[LentFrame { slot: 0, ..GOOD }]);
        let held = in_time("a lent frame", connection.recv()).await.unwrap().into_parts().1.remove(0);
        assert_eq!((held.place(), held.as_slice()), (Place::Arena, Some(&[9; LEN][..])));
        lender.lend(LEN, &[LentFrame { slot: 1, offset: (SEGMENT_LEN - LEN) as u64, ..GOOD }]);
        drop(in_time("another", connection.recv()).await.unwrap());
        let back = |slot: usize| lender.shm_peer.returned(slot);
        assert_eq!((back(0), back(1)), (0, 1));
        (lender, connection, held)
    }

    fn export(&self, segment: u32, descriptor: OwnedFd) {
        send_with_descriptors(&self.shm_peer.attach, &segment.to_le_bytes(), &[descriptor]);
    }

    /// Sends a message of frames of `len` bytes in an arena, with these leases.
    fn lend(&mut self, len: usize, lent_frames: &[LentFrame]) {
        self.announce(LENT, &vec![len as u64 | ARENA << 48; lent_frames.len()], lent_frames);
    }

    fn announce(&mut self, flags: u8, frames: &[u64], lent_frames: &[LentFrame]) {
        let mut body = [0_u32, frames.len() as u32].map(u32::to_le_bytes).concat();
        body.extend(frames.iter().flat_map(|frame| frame.to_le_bytes()));
        for LentFrame { segment, offset, slot, generation } in lent_frames {
            body.extend(segment.to_le_bytes());
            body.extend(offset.to_le_bytes());
            body.extend((slot | generation << 12).to_le_bytes());
        }
        self.shm_peer.write_in_parts(&packet(&record(1, flags, self.messages, &body), 0, &[]));
        self.messages += 1;
    }

    /// Writes one of its words about our leases.
    fn return_lease(&self, slot: usize, generation: u64) {
        self.shm_peer.set_word(TABLE_AT + 8 * slot, generation);
    }
}

type Violation = fn(&mut Lender);

const VIOLATIONS: &[(&str, Violation)] = &[
    ("a segment that was not exported", |it| it.lend(LEN, &[LentFrame { segment: 8, ..GOOD }])),
    ("foreign memory of a segment that was not exported", |it| {
        it.lend(LEN, &[LentFrame { segment: 8 | FOREIGN, ..GOOD }]);
    }),
    ("foreign memory beyond the segment", |it| {
        it.lend(
            LEN,
            &[LentFrame { segment: SEGMENT | FOREIGN, offset: (SEGMENT_LEN - LEN + 1) as u64, ..GOOD }],
        );
    }),
    ("beyond the segment", |it| {
        it.lend(LEN, &[LentFrame { offset: (SEGMENT_LEN - LEN + 1) as u64, ..GOOD }]);
    }),
    ("longer than the segment", |it| it.lend(SEGMENT_LEN + 1, &[LentFrame { offset: 0, ..GOOD }])),
    ("beyond all memory", |it| it.lend(LEN, &[LentFrame { offset: u64::MAX - 10, ..GOOD }])),
    ("the longest frame there is", |it| it.lend((1 << 48) - 1, &[GOOD])),
    ("a lease that is out", |it| it.lend(LEN, &[LentFrame { slot: 0, ..GOOD }])),
    ("its next generation", |it| it.lend(LEN, &[LentFrame { slot: 0, generation: 2, ..GOOD }])),
    ("an earlier generation", |it| it.lend(LEN, &[LentFrame { slot: 1, ..GOOD }])),
    ("generation 0", |it| it.lend(LEN, &[LentFrame { generation: 0, ..GOOD }])),
    ("the generation after the next", |it| it.lend(LEN, &[LentFrame { generation: 2, ..GOOD }])),
    ("the last generation", |it| {
        it.lend(LEN, &[LentFrame { slot: 4095, generation: u64::MAX >> 12, ..GOOD }])
    }),
    ("a lease twice in a message", |it| it.lend(LEN, &[GOOD; 2])),
    ("frames of no bytes", |it| it.lend(0, &[GOOD])),
    ("a lease too few", |it| it.announce(LENT, &[LEN as u64 | ARENA << 48; 2], &[GOOD])),
    ("a lease too many", |it| {
        it.announce(LENT, &[LEN as u64 | ARENA << 48], &[GOOD, LentFrame { slot: 6, ..GOOD }]);
    }),
    ("a lease of a host frame", |it| it.announce(LENT, &[LEN as u64], &[GOOD])),
    ("lent and eager", |it| it.announce(LENT | 4, &[LEN as u64 | ARENA << 48], &[GOOD])),
    ("more leases than a message may hold", |it| {
        let lent_frame = |slot| LentFrame { slot: slot as u64, ..GOOD };
        it.lend(1, &(0..=LENT_FRAMES_MAX).map(lent_frame).collect::<Vec<_>>());
    }),
    ("more leases than slots", |it| {
        let lent_frame = |slot| LentFrame { slot: slot as u64, ..GOOD };
        it.lend(1, &(2..=4097).map(lent_frame).collect::<Vec<_>>());
    }),
];

/// Returns the number of the peer's segments that this process has mapped.
fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().matches("/memfd:by-hand").count()
}

async fn an_invalid_lease_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    assert_exchange(&pair, 0).await;
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
        // Frames lent before the violation stay readable.
        assert_eq!(held.as_slice(), Some(&[9; LEN][..]), "{what}");
        drop((lender, connection));
        assert_eq!(held.as_slice(), Some(&[9; LEN][..]), "{what}");
        drop(held);
        assert_exchange(&pair, number).await;
    }
    eventually("every descriptor is closed", || usage::descriptors() <= before.0).await;
    eventually("no segment of the peer is mapped", || mappings() <= before.1).await;
    assert_eq!(endpoint.pool().stats().in_use_bytes, 0);
}

type LeaseReturn = fn(&Lender);

/// Returns of our leases: slot 0 is lent in its first generation, and slot 1 was returned.
const RETURNS: &[(&str, LeaseReturn)] = &[
    ("a later generation", |it| it.return_lease(0, 2)),
    ("the highest generation", |it| it.return_lease(0, u64::MAX)),
    ("half of the highest generation", |it| it.return_lease(0, 1 << 63)),
    ("a returned lease is not returned", |it| it.return_lease(1, 0)),
    ("a returned lease returns again", |it| it.return_lease(1, 2)),
    ("an unused slot is returned", |it| it.return_lease(2, 1)),
    ("an unused slot is returned in the highest generation", |it| it.return_lease(2, u64::MAX)),
];

async fn an_invalid_lease_return_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    let arena = Arena::new(64 << 20).unwrap();
    let frame = || {
        let mut buffer = arena.take(LEN).unwrap();
        buffer.extend_from_slice(&[3; LEN]).unwrap();
        Message::new("").with_frame(buffer.freeze())
    };
    drop(frame());
    let before = usage::descriptors();
    for (number, (what, violation)) in RETURNS.iter().enumerate() {
        let (lender, connection, held) = Lender::new(&endpoint, &listener, number as u8).await;
        for _ in 0..2 {
            drop(in_time("a send", connection.send(frame())).await.unwrap());
            lender.shm_peer.consume_all();
        }
        lender.return_lease(1, 1);
        assert_eq!(arena.stats().leases, 1, "{what}: one of two is back");
        violation(&lender);
        // Two more, in slots that are free, if any.
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
        assert!(stats.quarantined_leases > 0, "{what}: leases are in quarantine: {stats:?}");
        drop((lender, connection));
        eventually("all of the arena is back", || arena.stats().in_use_bytes == 0).await;
        drop(held);
        assert_exchange(&pair, number).await;
    }
    eventually("every descriptor is closed", || usage::descriptors() <= before).await;
}

async fn an_untrusted_peer_cannot_lend(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let (shm_peer, connection) = ShmPeer::connected(&endpoint, &listener, 1).await;
    assert!(!connection.caps().contains(Caps::LENDS));
    let arena = Segment::sealed();
    let mut lender = Lender { shm_peer, arena, messages: 0 };
    lender.export(SEGMENT, lender.arena.memfd.try_clone().unwrap());
    lender.lend(LEN, &[GOOD]);
    let end = within(LIMIT, "the end", end_of(&connection)).await;
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    // An unknown flag does not grant trust either.
    let violation = |hello: &mut Hello| hello.words[10] = 3;
    assert!(ShmPeer::connected_with(&endpoint, &listener, 2, violation).await.is_err());
}
