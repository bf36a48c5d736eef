//! A trusted peer that exports invalid segments, or exports them wrongly, ends its own connection only.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use towline::{ErrorKind, Place};

use crate::attach::{ALL, assert_exchange, sealed_with};
use crate::backends::Row;
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{LENT, packet, record};
use crate::ring_faults::{LIMIT, end_of};
use crate::sharing::{SEGMENT_LEN, Segment, ShmPeer, connect_by_shm, listening, send_with_descriptors};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        an_invalid_segment_ends_its_own_connection_only;
}

const FRAME_LEN: u64 = 4096;
/// The most segments that one end may export.
const SEGMENTS_MAX: u32 = 256;

/// Returns a message with one lent frame, at the start of a segment.
fn lent(number: u64, segment: u32) -> Vec<u8> {
    let table = FRAME_LEN | 2 << 48;
    let lease = 1 << 12 | number;
    let words = [&[0, 0, 0, 0, 1, 0, 0, 0][..], &table.to_le_bytes()].concat();
    let lent_frame = [&segment.to_le_bytes()[..], &0_u64.to_le_bytes(), &lease.to_le_bytes()].concat();
    packet(&record(1, LENT, number, &[words, lent_frame].concat()), 0, &[])
}

fn segment() -> OwnedFd {
    Segment::sealed().memfd.try_clone().unwrap()
}

fn ends() -> [OwnedFd; 2] {
    pipe_with(PipeFlags::CLOEXEC).unwrap().into()
}

fn pipe() -> OwnedFd {
    let [_, writing] = ends();
    writing
}

fn export(shm_peer: &ShmPeer, number: u32, descriptors: impl IntoIterator<Item = OwnedFd>) {
    send_with_descriptors(
        &shm_peer.attach,
        &number.to_le_bytes(),
        &descriptors.into_iter().collect::<Vec<_>>(),
    );
}

/// What a peer exports before it lends from segment 1.
type Violation = fn(&ShmPeer);

const VIOLATIONS: &[(&str, &str, Violation)] = &[
    ("nothing", "not exported", |_| ()),
    ("another segment", "not exported", |shm_peer| export(shm_peer, 2, [segment()])),
    ("no descriptor", "retracted a segment that was not exported", |shm_peer| export(shm_peer, 1, [])),
    ("a segment retracted twice", "retracted a segment that was not exported", |shm_peer| {
        export(shm_peer, 2, [segment()]);
        export(shm_peer, 2, []);
        export(shm_peer, 2, []);
    }),
    ("a segment twice", "a segment twice", |shm_peer| {
        export(shm_peer, 2, [segment()]);
        export(shm_peer, 2, [segment()]);
    }),
    ("half a number", "not a segment", |shm_peer| {
        send_with_descriptors(&shm_peer.attach, &[1, 0], &[segment()])
    }),
    ("a pipe for a segment", "it is no memfd", |shm_peer| export(shm_peer, 1, [pipe()])),
    ("a segment that may shrink", "not sealed against shrinking", |shm_peer| {
        let open = Segment::open(8192);
        open.store(0, &[0; 8192]);
        open.seal(SealFlags::GROW | SealFlags::FUTURE_WRITE);
        export(shm_peer, 1, [open.memfd.try_clone().unwrap()]);
    }),
    ("a segment that may grow", "not sealed against growing", |shm_peer| {
        export(shm_peer, 1, [sealed_with(ALL - SealFlags::GROW, SEGMENT_LEN)]);
    }),
    ("a segment that may be written", "not sealed against future writes", |shm_peer| {
        export(shm_peer, 1, [sealed_with(ALL - SealFlags::FUTURE_WRITE, SEGMENT_LEN)]);
    }),
    ("a segment of half a page", "not whole pages", |shm_peer| export(shm_peer, 1, [sealed_with(ALL, 2048)])),
    ("a segment of no bytes", "not whole pages", |shm_peer| {
        let empty = memfd_create("by-hand", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&empty, ALL).unwrap();
        export(shm_peer, 1, [empty]);
    }),
    ("a segment with holes", "not allocated", |shm_peer| {
        let sparse = Segment::open(SEGMENT_LEN);
        sparse.seal(ALL);
        export(shm_peer, 1, [sparse.memfd.try_clone().unwrap()]);
    }),
    ("a device for a segment", "it is no memfd", |shm_peer| {
        export(shm_peer, 1, [File::open("/dev/zero").unwrap().into()]);
    }),
    ("a segment for a pipe", "not the write end of a pipe", |shm_peer| {
        export(shm_peer, 1, [segment(), segment()])
    }),
    ("a device for a pipe", "not the write end of a pipe", |shm_peer| {
        let device = File::options().write(true).open("/dev/null").unwrap();
        export(shm_peer, 1, [segment(), pipe(), device.into()]);
    }),
    ("the wrong end of a pipe", "not the write end of a pipe", |shm_peer| {
        let [reading, _] = ends();
        export(shm_peer, 1, [segment(), pipe(), pipe(), reading]);
    }),
    ("a pipe too many", "not a segment", |shm_peer| {
        export(shm_peer, 1, [segment(), pipe(), pipe(), pipe(), pipe()]);
    }),
    ("all descriptors of a message", "not a segment", |shm_peer| {
        export(shm_peer, 1, [segment()].into_iter().chain((0..7).map(|_| pipe())));
    }),
    ("too many segments", "too many segments", |shm_peer| {
        let one = segment();
        (0..SEGMENTS_MAX).for_each(|at| export(shm_peer, 10 + at, [one.try_clone().unwrap()]));
    }),
];

async fn an_invalid_segment_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    assert_exchange(&pair, 0).await;
    let before = usage::descriptors();
    for (number, (what, reason, violation)) in VIOLATIONS.iter().enumerate() {
        let (mut shm_peer, connection) = ShmPeer::trusted(&endpoint, &listener, number as u8).await;
        // A valid segment, with further pipes that are never read.
        export(&shm_peer, 7, [segment(), pipe(), pipe(), pipe()]);
        shm_peer.write(&lent(0, 7));
        let taken = in_time("recv", connection.recv()).await.unwrap();
        assert_eq!((taken.frames()[0].place(), taken.frames()[0].len()), (Place::Arena, FRAME_LEN as usize));
        violation(&shm_peer);
        shm_peer.write(&lent(1, 1));
        let end = within(LIMIT, what, end_of(&connection)).await;
        assert!(end.kind() == ErrorKind::Corrupt && end.to_string().contains(reason), "{what}: {end}");
        // A frame received before stays readable.
        assert!(taken.frames()[0].as_slice().unwrap().iter().all(|byte| *byte == 0), "{what}");
        assert_exchange(&pair, number).await;
    }
    eventually("all descriptors are closed again", || usage::descriptors() <= before + 3).await;
}
