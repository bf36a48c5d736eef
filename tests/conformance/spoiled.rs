//! A peer that shares memory and then writes what it likes there: it costs its own connection, and nothing else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use towline::{Connection, Endpoint, Error, ErrorKind, Listener};

use crate::attach::assert_talk;
use crate::backends::Row;
use crate::content::message;
use crate::mixed::{Dice, seeds};
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{CLOSE, EAGER, STREAMS, announcement, packet, record};
use crate::sharing::{ASLEEP, CONSUMED, Hello, PRODUCED, RING_LEN, SEGMENT_LEN, Sharer, friend, listening};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_PROCESS - CROSS_HOST:
        an_invalid_ring_counter_ends_its_own_connection_only,
        an_unusual_doorbell_blocks_no_peer,
        flipped_bits_in_a_segment_end_their_own_connection_only,
        messages_before_a_death_are_received_and_then_the_peer_is_lost;
}

/// How long our end may take to see through a lie.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

fn small(number: u64) -> Vec<u8> {
    packet(&announcement(number, EAGER, b"hi", 5, b"hello"), 0, &[])
}

/// How a connection ends, whatever comes before.
pub(crate) async fn end_of(connection: &Connection) -> Error {
    loop {
        if let Err(end) = connection.recv().await {
            return end;
        }
    }
}

/// An honest peer has said one message, which was taken; what it says next is a lie.
async fn scene(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Sharer, Connection) {
    let (mut sharer, connection) = Sharer::connected(endpoint, listener, nonce).await;
    sharer.write(&small(0));
    in_time("recv", connection.recv()).await.unwrap();
    eventually("it was told so", || sharer.heard(CONSUMED) == sharer.told(PRODUCED)).await;
    // Everything of its own is taken, and it asks for more than there is room for.
    sharer.swallow();
    (sharer, connection)
}

/// What a peer does to the memory that it shares.
type Violation = fn(&mut Sharer);

const VIOLATIONS: &[(&str, Violation)] = &[
    ("more was written than the ring has", |sharer| {
        sharer.tell(PRODUCED, sharer.told(PRODUCED) + RING_LEN as u64 + 1);
    }),
    ("what was written is taken back", |sharer| sharer.tell(PRODUCED, sharer.told(PRODUCED) - 1)),
    ("nothing was ever written", |sharer| sharer.tell(PRODUCED, 0)),
    ("all was written", |sharer| sharer.tell(PRODUCED, u64::MAX)),
    ("half of all was written", |sharer| sharer.tell(PRODUCED, 1 << 63)),
    ("more was taken than there was", |sharer| sharer.tell(CONSUMED, sharer.heard(PRODUCED) + (16 << 20))),
    ("all was taken", |sharer| sharer.tell(CONSUMED, u64::MAX)),
    ("bytes beyond all limits", |sharer| sharer.write(&[0xff; 1000])),
    ("bytes of another ring", |sharer| {
        sharer.leave(&[0x5a; RING_LEN]);
        sharer.tell(PRODUCED, sharer.told(PRODUCED) + 1000);
    }),
    ("a message that is half old bytes", |sharer| {
        sharer.write(&small(1)[..20]);
        sharer.tell(PRODUCED, sharer.told(PRODUCED) + 35);
    }),
];

async fn an_invalid_ring_counter_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    for (number, (what, violation)) in VIOLATIONS.iter().enumerate() {
        let (mut sharer, connection) = scene(&endpoint, &listener, number as u8).await;
        // Whoever sends more than the ring has looks at what was taken.
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
        let ringful = || sharer.heard(PRODUCED) >= 256 << 10;
        eventually("the other ring is full", ringful).await;
        let began = Instant::now();
        violation(&mut sharer);
        let end = within(LIMIT, what, end_of(&connection)).await;
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        let end = within(LIMIT, what, sending).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        assert!(began.elapsed() < LIMIT, "{what}: seen through after {:?}", began.elapsed());
        assert_talk(&pair, number).await;
    }
    eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
}

/// Where a doorbell is heard, and its doorbell pipe.
type Doorbell = fn() -> [OwnedFd; 2];

/// Doorbells that are pipes, and whoever reads them as if nobody had meddled waits.
const DOORBELLS: &[(&str, Doorbell)] = &[
    ("a doorbell that is waited for", || pipe_with(PipeFlags::CLOEXEC).unwrap().into()),
    ("a doorbell that never stops", || {
        let (heard_at, pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        while rustix::io::write(&pipe, &[1; 4096]).is_ok() {}
        [heard_at, pipe]
    }),
];

async fn an_unusual_doorbell_blocks_no_peer(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    for (number, (what, doorbell)) in DOORBELLS.iter().enumerate() {
        let [heard_at, pipe] = doorbell();
        let violation = |hello: &mut Hello| hello.shown[1] = heard_at;
        let (mut sharer, connection) =
            Sharer::connected_by(&endpoint, &listener, number as u8, violation).await.unwrap();
        sharer.write(&small(0));
        let receiving = tokio::spawn(async move { end_of(&connection).await });
        // While it polls, spins, sleeps, and is left to the driver.
        for at in 0..10 {
            assert_talk(&pair, at).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let more = in_time("one more friend", friend(&near, &listener)).await;
        assert_talk(&more, 99).await;
        drop((sharer, pipe));
        let end = within(LIMIT, what, receiving).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "{what}: {end}");
    }
}

/// One step of a peer that is mostly right, and by the seed what it spoils.
fn step(sharer: &mut Sharer, dice: &mut Dice, number: &mut u64) {
    match dice.below(16) {
        0..5 => {
            let payload = vec![3; [0, 5, 700, 9000][dice.below(4)]];
            let announced = announcement(*number, EAGER | 1, b"hi", payload.len() as u64, &payload);
            sharer.write(&packet(&announced, 0, &[]));
            *number += 1;
        }
        5 => {
            let announced =
                announcement(*number, if dice.below(4) == 0 { STREAMS } else { 0 }, b"", 50_000, b"");
            sharer.write(&packet(&announced, 0, &[]));
            *number += 1;
        }
        6 => {
            let len = 1 + dice.below(2000);
            sharer.write(&packet(&[], *number << 2, &vec![9; len]));
        }
        7 => {
            let len = 1 + dice.below(300);
            let noise: Vec<_> = (0..len).map(|_| dice.below(256) as u8).collect();
            sharer.write(&noise);
        }
        8..11 => {
            let at = [PRODUCED, CONSUMED, ASLEEP][dice.below(3)];
            sharer.tell(at, sharer.told(at) ^ 1 << dice.below(64));
        }
        11 => {
            // Words that nobody has a name for, and bytes that were written before.
            let at = dice.below(SEGMENT_LEN / 8) * 8;
            sharer.tell(at, sharer.told(at) ^ 1 << dice.below(64));
        }
        12 => sharer.ring(),
        13 if dice.below(8) == 0 => sharer.write(&packet(&record(CLOSE, 0, 0, &[]), 0, &[])),
        _ => sharer.swallow(),
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
    let pair = friend(&near, &listener).await;
    let before = usage::resident();
    let mut kinds = [0; 3];
    for seed in seeds(0..SEEDS) {
        let mut dice = Dice::new(seed, 77);
        let (mut sharer, connection) = Sharer::connected(&endpoint, &listener, seed as u8).await;
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
        for _ in 0..dice.below(STEPS_MAX) {
            step(&mut sharer, &mut dice, &mut number);
            if dice.below(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(sharer);
        for ending in [sending, receiving] {
            let end = within(LIMIT, "the end", ending).await.unwrap();
            let known = [ErrorKind::Corrupt, ErrorKind::PeerLost, ErrorKind::Closed];
            let kind = known.iter().position(|kind| *kind == end.kind());
            kinds[kind.unwrap_or_else(|| panic!("seed {seed}: {end}"))] += 1;
        }
        if seed % 20 == 0 {
            assert_talk(&pair, seed).await;
        }
    }
    assert_talk(&pair, 1).await;
    assert_eq!(panics.load(Ordering::Relaxed), 0, "nothing panicked, wherever it ran");
    println!("{} ends Corrupt, {} PeerLost, {} Closed", kinds[0], kinds[1], kinds[2]);
    eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    let growth = usage::resident().saturating_sub(before);
    assert!(growth < 30 << 20, "{growth} bytes more are resident");
}

async fn messages_before_a_death_are_received_and_then_the_peer_is_lost(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    let whole = small(0).len();
    // At every byte of the message that it dies in.
    for len in 0..whole {
        let (mut sharer, connection) = Sharer::connected(&endpoint, &listener, len as u8).await;
        let told = len % 3;
        for number in 0..told as u64 {
            sharer.write(&small(number));
        }
        let last = small(told as u64);
        if len % 2 == 0 {
            sharer.write(&last[..len]);
        } else {
            sharer.leave(&last[..len]);
        }
        drop(sharer);
        if len % 4 == 0 {
            // Long dead when somebody asks.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..told {
            let taken = within(LIMIT, "what came", connection.recv()).await.unwrap();
            assert_eq!((taken.header().as_ref(), taken.payload_len()), (&b"hi"[..], 5));
        }
        let end = within(LIMIT, "the end", connection.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "after {len} bytes: {end}");
    }
    assert_talk(&pair, 1).await;
    assert_eq!(endpoint.pool().stats().in_use_bytes, 0);
}
