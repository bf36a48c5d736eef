//! Peers that are killed amid loans both ways: what is held is read on, and everything comes back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towline::{Address, Arena, Buffer, Connection, Endpoint, Error, ErrorKind, Message, Place};

use crate::backends::Row;
use crate::content::{assert_bytes, bytes, message, number};
use crate::mixed::{Dice, seeds};
use crate::peer::{Home, Peer};
use crate::polls::{TIMEOUT, eventually, in_time, within};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        #[core] peers_killed_while_lending_leak_nothing;
}

const DEATHS: usize = 120;
/// What 99 of 100 deaths are noticed in, on a busy machine.
const NOTICE_TIME: Duration = Duration::from_millis(200);
const ARENA_LEN: usize = 16 << 20;
const LENS: [usize; 5] = [1024, 5000, 16_384, 100_000, 1 << 20];
/// How many messages either end holds at once.
const HELD_MAX: usize = 12;

/// Lends what a seed says, for as long as the peer lives. The same memory twice, at times.
async fn pour(connection: &Connection, arena: &Arena, seed: usize) -> Error {
    let mut dice = Dice::new(seed, 5);
    for at in 0.. {
        let len = LENS[dice.below(LENS.len())];
        let mut buffer = arena.take_within(len, TIMEOUT).await.unwrap();
        buffer.extend_from_slice(&bytes(at, len)).unwrap();
        let (frame, header) = (buffer.freeze(), (at as u64).to_le_bytes().to_vec());
        let frames = (0..1 + dice.below(3)).map(|_| frame.clone()).collect();
        if let Err(failed) = connection.send(Message::from_parts(header, frames)).await {
            return failed.error;
        }
    }
    unreachable!("nobody pours for ever")
}

/// Takes what comes and holds some of it, by a seed: the frames that are held at the end, by their numbers, and the end.
async fn hold(connection: &Connection, seed: usize) -> (VecDeque<(usize, Vec<Buffer>)>, Error) {
    let (mut held, mut dice) = (VecDeque::new(), Dice::new(seed, 6));
    loop {
        match connection.recv().await {
            Ok(taken) => held.push_back((number(taken.header()), taken.into_parts().1)),
            Err(end) => return (held, end),
        }
        while held.len() > HELD_MAX || (dice.below(3) == 0 && !held.is_empty()) {
            let (at, frames) = held.swap_remove_back(dice.below(held.len())).unwrap();
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

/// The peer: lends and holds until it is killed.
pub(crate) async fn lend(endpoint: &Endpoint, address: &Address) {
    let connection = endpoint.connect(address).await.unwrap();
    let seed = number(connection.recv().await.unwrap().header());
    let arena = Arena::new(ARENA_LEN).unwrap();
    tokio::join!(pour(&connection, &arena, seed), hold(&connection, seed));
}

async fn peers_killed_while_lending_leak_nothing(row: &'static Row) {
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    let arena = Arena::new(ARENA_LEN).unwrap();
    let (mut times, mut before, mut lent, mut came) = (Vec::new(), None, 0, 0);
    for seed in seeds(0..DEATHS) {
        let mut peer = Peer::start("lend", row, Home::Here, &listener.address().to_string());
        let connection = in_time("the peer", listener.accept()).await.unwrap();
        in_time("the seed", connection.deliver(message(seed, &[]))).await.unwrap();
        let holding = {
            let connection = connection.clone();
            tokio::spawn(async move { (hold(&connection, seed).await, Instant::now()) })
        };
        let pouring = {
            let (connection, arena) = (connection.clone(), arena.clone());
            tokio::spawn(async move { pour(&connection, &arena, seed + 1).await })
        };
        if seed % 2 == 0 {
            eventually("the first loan", || arena.stats().leases > 0).await;
        }
        tokio::time::sleep(Duration::from_micros(Dice::new(seed, 7).below(15_000) as u64)).await;
        lent += arena.stats().leases;
        let gone = peer.kill();
        let ((held, end), noticed) = within(Duration::from_secs(2), "the end", holding).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        let end = within(Duration::from_secs(2), "the end", pouring).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        times.push(noticed.saturating_duration_since(gone));
        drop(connection);

        // What the dead one had is back, and what it lent is there as long as it is held.
        let used = || arena.stats().in_use_bytes;
        eventually("the arena has its memory back", || used() == 0).await;
        came += held.len();
        held.iter().for_each(|(number, frames)| assert_whole(*number, frames));
        drop(held);
        let before = before.get_or_insert_with(usage::descriptors);
        eventually("as many descriptors as before", || usage::descriptors() <= *before + 1).await;
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100 - usize::from(times.len() > 1)];
    println!(
        "{} deaths noticed: p50 {:?}, p99 {p99:?}; {lent} leases were out, {came} messages held",
        times.len(),
        times[times.len() / 2]
    );
    assert!(lent > 0 && came > 0, "they were killed amid loans");
    assert!(p99 < NOTICE_TIME, "p99 is {p99:?}");
}
