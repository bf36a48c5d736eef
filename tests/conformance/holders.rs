//! Peers killed while both ends lend: frames held stay readable, and all leases return.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towline::{Address, Arena, Buffer, Connection, Endpoint, Error, ErrorKind, Message, Place};

use crate::backends::Row;
use crate::content::{assert_bytes, bytes, message, number};
use crate::mixed::{Random, seeds};
use crate::peer::{Home, Peer};
use crate::polls::{TIMEOUT, eventually, in_time, within};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        #[core] peers_killed_while_lending_leak_nothing;
}

const KILLS: usize = 120;
/// Limit for 99 of 100 kills, on a busy machine.
const DETECTION_TIME: Duration = Duration::from_millis(200);
const ARENA_LEN: usize = 16 << 20;
const LENS: [usize; 5] = [1024, 5000, 16_384, 100_000, 1 << 20];
/// The most messages that either end holds at once.
const HELD_MAX: usize = 12;

/// Lends frames by a seed until the peer is lost; sometimes the same memory twice.
async fn send_until_lost(connection: &Connection, arena: &Arena, seed: usize) -> Error {
    let mut random = Random::new(seed, 5);
    for at in 0.. {
        let len = LENS[random.below(LENS.len())];
        let mut buffer = arena.take_within(len, TIMEOUT).await.unwrap();
        buffer.extend_from_slice(&bytes(at, len)).unwrap();
        let (frame, header) = (buffer.freeze(), (at as u64).to_le_bytes().to_vec());
        let frames = (0..1 + random.below(3)).map(|_| frame.clone()).collect();
        if let Err(failed) = connection.send(Message::from_parts(header, frames)).await {
            return failed.error;
        }
    }
    unreachable!("the peer is killed")
}

/// Receives messages and holds some, by a seed. Returns the frames held at the end, by their numbers, and the
/// error.
async fn hold(connection: &Connection, seed: usize) -> (VecDeque<(usize, Vec<Buffer>)>, Error) {
    let (mut held, mut random) = (VecDeque::new(), Random::new(seed, 6));
    loop {
        match connection.recv().await {
            Ok(taken) => held.push_back((number(taken.header()), taken.into_parts().1)),
            Err(end) => return (held, end),
        }
        while held.len() > HELD_MAX || (random.below(3) == 0 && !held.is_empty()) {
            let (at, frames) = held.swap_remove_back(random.below(held.len())).unwrap();
            assert_whole(at, &frames);
        }
    }
}

#[track_caller]
fn assert_whole(number: usize, frames: &[Buffer]) {
    for frame in frames {
        assert_eq!(frame.place(), Place::Arena);
        assert_bytes(frame.as_slice().unwrap(), number, 0);
    }
}

/// Role: lends and holds until it is killed.
pub(crate) async fn lend(endpoint: &Endpoint, address: &Address) {
    let connection = endpoint.connect(address).await.unwrap();
    let seed = number(connection.recv().await.unwrap().header());
    let arena = Arena::new(ARENA_LEN).unwrap();
    tokio::join!(send_until_lost(&connection, &arena, seed), hold(&connection, seed));
}

async fn peers_killed_while_lending_leak_nothing(row: &'static Row) {
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    let arena = Arena::new(ARENA_LEN).unwrap();
    let (mut times, mut before, mut lent, mut received) = (Vec::new(), None, 0, 0);
    for seed in seeds(0..KILLS) {
        let mut peer = Peer::start("lend", row, Home::Here, &listener.address().to_string());
        let connection = in_time("the peer", listener.accept()).await.unwrap();
        in_time("the seed", connection.deliver(message(seed, &[]))).await.unwrap();
        let receiving = {
            let connection = connection.clone();
            tokio::spawn(async move { (hold(&connection, seed).await, Instant::now()) })
        };
        let sending = {
            let (connection, arena) = (connection.clone(), arena.clone());
            tokio::spawn(async move { send_until_lost(&connection, &arena, seed + 1).await })
        };
        if seed % 2 == 0 {
            let lends = || arena.stats().leases > 0 && connection.stats().messages_received > 0;
            eventually("both ends lend", lends).await;
        }
        tokio::time::sleep(Duration::from_micros(Random::new(seed, 7).below(15_000) as u64)).await;
        lent += arena.stats().leases;
        let killed_at = peer.kill();
        let ((held, end), detected) = within(Duration::from_secs(2), "the end", receiving).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        let end = within(Duration::from_secs(2), "the end", sending).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        times.push(detected.saturating_duration_since(killed_at));
        drop(connection);

        // Memory lent to the dead peer is back. Its own frames stay as long as they are held.
        let used = || arena.stats().in_use_bytes;
        eventually("the arena has its memory back", || used() == 0).await;
        received += held.len();
        held.iter().for_each(|(number, frames)| assert_whole(*number, frames));
        drop(held);
        let before = before.get_or_insert_with(usage::descriptors);
        eventually("as many descriptors as before", || usage::descriptors() <= *before + 1).await;
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100 - usize::from(times.len() > 1)];
    println!(
        "{} deaths detected: p50 {:?}, p99 {p99:?}; {lent} leases were out, {received} messages held",
        times.len(),
        times[times.len() / 2]
    );
    assert!(lent > 0 && received > 0, "leases were held at the kills");
    assert!(p99 < DETECTION_TIME, "p99 is {p99:?}");
}
