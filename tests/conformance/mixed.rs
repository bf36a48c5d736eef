//! All operations at once, in an order set by a seed: each message arrives whole, in order, and with the
//! right outcome.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinHandle;
use towline::{Buffer, BufferMut, Caps, Connection, Destination, ErrorKind, Message, Pool};

use crate::backends::Row;
use crate::content::{assert_bytes, assert_frame, bytes, message, number};
use crate::polls::{eventually, polled, within};
use crate::suite::cases;

cases! {
    ANY:
        #[core] mixed_traffic_arrives_whole,
        #[core] mixed_traffic_of_one_thread_arrives_whole;
}

const COUNT: usize = 400;
const TIME: Duration = Duration::from_secs(60);

/// A sequence of pseudo-random numbers.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: usize, number: usize) -> Self {
        let mixed = (seed + 1).wrapping_mul(0x9e37_79b9) ^ (number + 1).wrapping_mul(0x85eb_ca6b);
        let mut random = Self(mixed as u64 | 1);
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// Returns the frame lengths of a message. The receiver knows them too.
pub(crate) fn lengths(seed: usize, number: usize) -> Vec<usize> {
    let mut random = Random::new(seed, number);
    let frames = random.choose(&[0, 1, 1, 1, 2, 3, 40]);
    let sizes =
        random.choose(&[&[0, 1, 63, 64, 200][..], &[0, 5000, 16_383], &[16_384, 70_000, 0], &[300_000, 1]]);
    (0..frames).map(|_| random.choose(sizes)).collect()
}

/// Each message's outcome, as one end sees it: true if it was delivered.
type Outcomes = BTreeMap<usize, bool>;

/// Sends, up to a dozen at a time. Returns the outcomes.
async fn send_all(from: Connection, seed: usize) -> Outcomes {
    let mut random = Random::new(seed, usize::MAX / 2);
    let mut pending: Vec<JoinHandle<(usize, bool)>> = Vec::new();
    let mut outcomes = Outcomes::new();
    for at in 0..COUNT {
        let (from, message) = (from.clone(), message(at, &lengths(seed, at)));
        let ack_now = random.below(2) == 0;
        let mut sending = Box::pin(async move {
            let sent = if ack_now {
                from.deliver(message).await
            } else {
                from.send(message).await.unwrap().delivered().await
            };
            match sent {
                Ok(()) => (at, true),
                Err(error) if error.kind() == ErrorKind::Rejected => (at, false),
                Err(error) => panic!("message {at}: {error}"),
            }
        });
        // The first poll submits it, in order.
        match polled(sending.as_mut(), 1).await {
            Some(outcome) => outcomes.extend([outcome]),
            None => pending.push(tokio::spawn(sending)),
        }
        if pending.len() > random.below(12) {
            let outcome = pending.swap_remove(random.below(pending.len())).await;
            outcomes.extend([outcome.unwrap()]);
        }
    }
    for outcome in pending {
        outcomes.extend([outcome.await.unwrap()]);
    }
    outcomes
}

/// Receives everything, each message by a random call, with futures dropped in between. Returns the outcomes.
async fn take_all(to: Connection, seed: usize, pool: Pool) -> Outcomes {
    let mut random = Random::new(seed, usize::MAX / 3);
    let mut outcomes = Outcomes::new();
    // A dropped `recv` may have begun the next message. It can no longer be rejected.
    let mut begun = false;
    while outcomes.len() < COUNT {
        let polls = random.choose(&[1, 2, 5, 1_000_000]);
        let call = if begun { 0 } else { random.below(10) };
        let taken = match call {
            0..3 => polled(pin!(to.recv()), polls).await.transpose().unwrap(),
            3 => {
                let buffer = BufferMut::with_capacity(20 << 20);
                polled(pin!(to.recv_into(buffer)), polls).await.transpose().unwrap()
            }
            _ => {
                if let Some(incoming) = polled(pin!(to.incoming()), polls).await.transpose().unwrap() {
                    outcomes.extend([decide(incoming, seed, &mut random, &pool).await]);
                }
                continue;
            }
        };
        begun = taken.is_none();
        outcomes.extend(taken.map(|taken| (assert_whole(&taken, seed, None), true)));
    }
    outcomes
}

async fn decide(incoming: towline::Incoming, seed: usize, random: &mut Random, pool: &Pool) -> (usize, bool) {
    let at = number(incoming.header());
    if random.below(3) == 0 {
        tokio::time::sleep(Duration::from_micros(random.below(2000) as u64)).await;
    }
    match random.below(5) {
        0 => {
            incoming.reject();
            return (at, false);
        }
        1 | 2 => drop(assert_whole(&incoming.accept().await.unwrap(), seed, None)),
        _ => {
            let discarded: Vec<_> = incoming.frames().iter().map(|_| random.below(4) == 0).collect();
            let destination =
                |(frame, discarded): (&towline::FrameInfo, &bool)| match (*discarded, random.below(2)) {
                    (true, _) => Destination::Discard,
                    (false, 0) => Destination::Pool(pool.clone()),
                    (false, _) => Destination::Buffer(BufferMut::with_capacity(frame.len)),
                };
            let destinations = incoming.frames().iter().zip(&discarded).map(destination).collect();
            assert_whole(&incoming.accept_into(destinations).await.unwrap(), seed, Some(&discarded));
        }
    }
    (at, true)
}

/// Asserts that this message was sent. Returns its number.
#[track_caller]
fn assert_whole(message: &Message, seed: usize, discarded: Option<&[bool]>) -> usize {
    let at = number(message.header());
    let lengths = lengths(seed, at);
    assert_eq!(message.frames().len(), lengths.len(), "frames of message {at}");
    for (index, (frame, len)) in message.frames().iter().zip(lengths).enumerate() {
        match discarded.is_some_and(|discarded| discarded[index]) {
            true => assert!(frame.is_empty()),
            false => assert_frame(frame, at + index, len),
        }
    }
    at
}

/// Gets and puts of regions at the other end.
async fn access(user: Connection, owner: Connection, seed: usize) {
    const LEN: usize = 1 << 20;
    let mut random = Random::new(seed, usize::MAX / 5);
    let readable = owner.expose(bytes(seed, LEN).into(), TIME).unwrap();
    let writable = owner.expose_mut(BufferMut::zeroed(LEN), TIME).unwrap();
    let mut expected = vec![0; LEN];
    for turn in 0..COUNT / 2 {
        let len = random.choose(&[0, 1, 500, 16_384, 200_000]);
        let offset = random.below(LEN - len + 1);
        if random.below(2) == 0 {
            let into = BufferMut::with_capacity(len);
            let got = user.get(&readable.remote(), offset as u64, into).await.unwrap();
            assert_bytes(got.as_slice().unwrap(), seed, offset);
        } else {
            let from = Buffer::from(bytes(turn, len));
            user.put(&writable.remote(), offset as u64, from).await.unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes(turn, len));
        }
    }
    assert!(writable.revoke().await.as_slice().unwrap() == expected, "what was put, in order");
}

async fn mixed(row: &Row, seed: usize) {
    let pair = row.pair().await;
    let pool = Pool::new(1 << 20);
    let one_sided = row.caps.contains(Caps::ONE_SIDED);
    let both = [(&pair.a, &pair.b), (&pair.b, &pair.a)].into_iter().enumerate();
    let tasks: Vec<_> = both
        .map(|(call, (from, to))| {
            let seed = seed * 2 + call;
            let sending = tokio::spawn(send_all(from.clone(), seed));
            let taking = tokio::spawn(take_all(to.clone(), seed, pool.clone()));
            let accesses = one_sided.then(|| tokio::spawn(access(from.clone(), to.clone(), seed)));
            (sending, taking, accesses)
        })
        .collect();
    for (sending, taking, accesses) in tasks {
        let what = format!("traffic of seed {seed}");
        let outcomes = within(TIME, &what, async {
            if let Some(accesses) = accesses {
                accesses.await.unwrap();
            }
            (sending.await.unwrap(), taking.await.unwrap())
        });
        let (sent, received) = outcomes.await;
        let wrong: Vec<_> = received.iter().filter(|(at, outcome)| sent.get(at) != Some(outcome)).collect();
        assert!(wrong.is_empty(), "received, and not sent by the sender (seed {seed}): {wrong:?}");
    }
    let in_use = || [pair.near.pool(), pair.far.pool(), &pool].map(|pool| pool.stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0, 0]).await;
    pair.a.close().await.unwrap();
}

/// Returns these seeds, or the one of `TOWLINE_SEED`.
pub(crate) fn seeds(usual: Range<usize>) -> Range<usize> {
    match std::env::var("TOWLINE_SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => usual,
    }
}

async fn mixed_traffic_arrives_whole(row: &'static Row) {
    for seed in seeds(0..4) {
        mixed(row, seed).await;
    }
}

async fn mixed_traffic_of_one_thread_arrives_whole(row: &'static Row) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for seed in seeds(100..102) {
            runtime.block_on(mixed(row, seed));
        }
    });
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
}
