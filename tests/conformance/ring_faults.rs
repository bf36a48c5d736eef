//! A peer that shares memory and writes invalid content there ends its own connection only.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use towline::{Connection, Endpoint, Error, ErrorKind, Listener};

use crate::attach::assert_exchange;
use crate::backends::Row;
use crate::content::message;
use crate::mixed::{Random, seeds};
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{CLOSE, EAGER, STREAMS, announcement, packet, record};
use crate::sharing::{
    ASLEEP, CONSUMED, Hello, PRODUCED, RING_LEN, SEGMENT_LEN, ShmPeer, connect_by_shm, listening,
};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_PROCESS - CROSS_HOST:
        an_invalid_ring_counter_ends_its_own_connection_only,
        an_unusual_doorbell_blocks_no_peer,
        flipped_bits_in_a_segment_end_their_own_connection_only,
        messages_before_a_death_are_received_and_then_the_peer_is_lost;
}

/// Time limit until our end detects a violation.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

fn small(number: u64) -> Vec<u8> {
    packet(&announcement(number, EAGER, b"hi", 5, b"hello"), 0, &[])
}

/// Receives until the connection ends. Returns the error.
pub(crate) async fn end_of(connection: &Connection) -> Error {
    loop {
        if let Err(end) = connection.recv().await {
            return end;
        }
    }
}

/// Attaches a valid peer, and receives its first message.
async fn scene(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (ShmPeer, Connection) {
    let (mut shm_peer, connection) = ShmPeer::connected(endpoint, listener, nonce).await;
    shm_peer.write(&small(0));
    in_time("recv", connection.recv()).await.unwrap();
    eventually("it is acknowledged", || shm_peer.peer_word(CONSUMED) == shm_peer.own_word(PRODUCED)).await;
    // The peer has consumed everything, and this end sends more than the ring holds.
    shm_peer.consume_all();
    (shm_peer, connection)
}

/// What a peer writes to its shared memory.
type Violation = fn(&mut ShmPeer);

const VIOLATIONS: &[(&str, Violation)] = &[
    ("more bytes are written than the ring holds", |shm_peer| {
        shm_peer.set_word(PRODUCED, shm_peer.own_word(PRODUCED) + RING_LEN as u64 + 1);
    }),
    ("fewer bytes are written", |shm_peer| shm_peer.set_word(PRODUCED, shm_peer.own_word(PRODUCED) - 1)),
    ("no bytes are written", |shm_peer| shm_peer.set_word(PRODUCED, 0)),
    ("the highest count is written", |shm_peer| shm_peer.set_word(PRODUCED, u64::MAX)),
    ("half of the highest count is written", |shm_peer| shm_peer.set_word(PRODUCED, 1 << 63)),
    ("more bytes are consumed than written", |shm_peer| {
        shm_peer.set_word(CONSUMED, shm_peer.peer_word(PRODUCED) + (16 << 20))
    }),
    ("the highest count is consumed", |shm_peer| shm_peer.set_word(CONSUMED, u64::MAX)),
    ("bytes beyond all limits", |shm_peer| shm_peer.write(&[0xff; 1000])),
    ("bytes of another ring", |shm_peer| {
        shm_peer.write_unannounced(&[0x5a; RING_LEN]);
        shm_peer.set_word(PRODUCED, shm_peer.own_word(PRODUCED) + 1000);
    }),
    ("a message that is half old bytes", |shm_peer| {
        shm_peer.write(&small(1)[..20]);
        shm_peer.set_word(PRODUCED, shm_peer.own_word(PRODUCED) + 35);
    }),
];

async fn an_invalid_ring_counter_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    for (number, (what, violation)) in VIOLATIONS.iter().enumerate() {
        let (mut shm_peer, connection) = scene(&endpoint, &listener, number as u8).await;
        // A sender that fills the ring reads the peer's consumed counter.
        let sending = {
            let connection = connection.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(failed) = connection.send(message(1, &[10_000])).await {
                        return failed.error;
                    }
                }
            })
        };
        let ringful = || shm_peer.peer_word(PRODUCED) >= shm_peer.their_ring_len as u64;
        eventually("the other ring is full", ringful).await;
        let began = Instant::now();
        violation(&mut shm_peer);
        let end = within(LIMIT, what, end_of(&connection)).await;
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        let end = within(LIMIT, what, sending).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        assert!(began.elapsed() < LIMIT, "{what}: detected after {:?}", began.elapsed());
        assert_exchange(&pair, number).await;
    }
    eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
}

/// Returns the read end and the write end of a doorbell.
type Doorbell = fn() -> [OwnedFd; 2];

/// Pipes on which a naive read of the doorbell would block.
const DOORBELLS: &[(&str, Doorbell)] = &[
    ("a doorbell that blocks", || pipe_with(PipeFlags::CLOEXEC).unwrap().into()),
    ("a doorbell that never stops", || {
        let (read_end, pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        while rustix::io::write(&pipe, &[1; 4096]).is_ok() {}
        [read_end, pipe]
    }),
];

async fn an_unusual_doorbell_blocks_no_peer(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    for (number, (what, doorbell)) in DOORBELLS.iter().enumerate() {
        let [read_end, pipe] = doorbell();
        let violation = |hello: &mut Hello| hello.descriptors[1] = read_end;
        let (mut shm_peer, connection) =
            ShmPeer::connected_with(&endpoint, &listener, number as u8, violation).await.unwrap();
        shm_peer.write(&small(0));
        let receiving = tokio::spawn(async move { end_of(&connection).await });
        // While it polls, spins, sleeps, and leaves the link to the driver.
        for at in 0..10 {
            assert_exchange(&pair, at).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let more = in_time("one more good peer", connect_by_shm(&near, &listener)).await;
        assert_exchange(&more, 99).await;
        drop((shm_peer, pipe));
        let end = within(LIMIT, what, receiving).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "{what}: {end}");
    }
}

/// One step of a mostly valid peer. The random numbers decide what it writes.
fn step(shm_peer: &mut ShmPeer, random: &mut Random, number: &mut u64) {
    match random.below(16) {
        0..5 => {
            let payload = vec![3; [0, 5, 700, 9000][random.below(4)]];
            let announced = announcement(*number, EAGER | 1, b"hi", payload.len() as u64, &payload);
            shm_peer.write(&packet(&announced, 0, &[]));
            *number += 1;
        }
        5 => {
            let announced =
                announcement(*number, if random.below(4) == 0 { STREAMS } else { 0 }, b"", 50_000, b"");
            shm_peer.write(&packet(&announced, 0, &[]));
            *number += 1;
        }
        6 => {
            let len = 1 + random.below(2000);
            shm_peer.write(&packet(&[], *number << 2, &vec![9; len]));
        }
        7 => {
            let len = 1 + random.below(300);
            let noise: Vec<_> = (0..len).map(|_| random.below(256) as u8).collect();
            shm_peer.write(&noise);
        }
        8..11 => {
            let at = [PRODUCED, CONSUMED, ASLEEP][random.below(3)];
            shm_peer.set_word(at, shm_peer.own_word(at) ^ 1 << random.below(64));
        }
        11 => {
            // Unused words, and bytes written earlier.
            let at = random.below(SEGMENT_LEN / 8) * 8;
            shm_peer.set_word(at, shm_peer.own_word(at) ^ 1 << random.below(64));
        }
        12 => shm_peer.ring(),
        13 if random.below(8) == 0 => shm_peer.write(&packet(&record(CLOSE, 0, 0, &[]), 0, &[])),
        _ => shm_peer.consume_all(),
    }
}

const SEEDS: usize = 300;
const STEPS_MAX: usize = 40;

async fn flipped_bits_in_a_segment_end_their_own_connection_only(row: &'static Row) {
    let panics = Arc::new(AtomicUsize::new(0));
    let (usual, counted) = (std::panic::take_hook(), panics.clone());
    std::panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    let before = usage::resident();
    let mut kinds = [0; 3];
    for seed in seeds(0..SEEDS) {
        let mut random = Random::new(seed, 77);
        let (mut shm_peer, connection) = ShmPeer::connected(&endpoint, &listener, seed as u8).await;
        let sending = {
            let connection = connection.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(failed) = connection.send(message(1, &[3000])).await {
                        return failed.error;
                    }
                }
            })
        };
        let receiving = tokio::spawn(async move { end_of(&connection).await });
        let mut number = 0;
        for _ in 0..random.below(STEPS_MAX) {
            step(&mut shm_peer, &mut random, &mut number);
            if random.below(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(shm_peer);
        for ending in [sending, receiving] {
            let end = within(LIMIT, "the end", ending).await.unwrap();
            let known = [ErrorKind::Corrupt, ErrorKind::PeerLost, ErrorKind::Closed];
            let kind = known.iter().position(|kind| *kind == end.kind());
            kinds[kind.unwrap_or_else(|| panic!("seed {seed}: {end}"))] += 1;
        }
        if seed % 20 == 0 {
            assert_exchange(&pair, seed).await;
        }
    }
    assert_exchange(&pair, 1).await;
    assert_eq!(panics.load(Ordering::Relaxed), 0, "no thread panicked");
    println!("{} ends Corrupt, {} PeerLost, {} Closed", kinds[0], kinds[1], kinds[2]);
    eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    let growth = usage::resident().saturating_sub(before);
    assert!(growth < 30 << 20, "{growth} bytes more are resident");
}

async fn messages_before_a_death_are_received_and_then_the_peer_is_lost(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    let whole = small(0).len();
    // At every byte of the message during which the peer dies.
    for len in 0..whole {
        let (mut shm_peer, connection) = ShmPeer::connected(&endpoint, &listener, len as u8).await;
        let count = len % 3;
        for number in 0..count as u64 {
            shm_peer.write(&small(number));
        }
        let last = small(count as u64);
        if len % 2 == 0 {
            shm_peer.write(&last[..len]);
        } else {
            shm_peer.write_unannounced(&last[..len]);
        }
        drop(shm_peer);
        if len % 4 == 0 {
            // The peer died long before the receive.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..count {
            let taken = within(LIMIT, "a message", connection.recv()).await.unwrap();
            assert_eq!((taken.header().as_ref(), taken.payload_len()), (&b"hi"[..], 5));
        }
        let end = within(LIMIT, "the end", connection.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "after {len} bytes: {end}");
    }
    assert_exchange(&pair, 1).await;
    assert_eq!(endpoint.pool().stats().in_use_bytes, 0);
}
