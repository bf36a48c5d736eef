//! Everything at once, in an order that a seed decides: whatever comes, comes whole, in order, and with the right word.

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

/// A sequence that its seed decides.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: usize, number: usize) -> Self {
        let mixed = (seed + 1).wrapping_mul(0x9e37_79b9) ^ (number + 1).wrapping_mul(0x85eb_ca6b);
        let mut dice = Self(mixed as u64 | 1);
        for _ in 0..8 {
            dice.below(2);
        }
        dice
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// The frames of a message: the receiver knows them too.
pub(crate) fn lengths(seed: usize, number: usize) -> Vec<usize> {
    let mut dice = Dice::new(seed, number);
    let frames = dice.of(&[0, 1, 1, 1, 2, 3, 40]);
    let sizes = dice.of(&[&[0, 1, 63, 64, 200][..], &[0, 5000, 16_383], &[16_384, 70_000, 0], &[300_000, 1]]);
    (0..frames).map(|_| dice.of(sizes)).collect()
}

/// What became of each message, as one end sees it: true if it was delivered.
type Words = BTreeMap<usize, bool>;

/// Sends, up to a dozen at a time; tells the words that came back.
async fn send_all(from: Connection, seed: usize) -> Words {
    let mut dice = Dice::new(seed, usize::MAX / 2);
    let mut pending: Vec<JoinHandle<(usize, bool)>> = Vec::new();
    let mut words = Words::new();
    for at in 0..COUNT {
        let (from, message) = (from.clone(), message(at, &lengths(seed, at)));
        let ack_now = dice.below(2) == 0;
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
            Some(word) => words.extend([word]),
            None => pending.push(tokio::spawn(sending)),
        }
        if pending.len() > dice.below(12) {
            let word = pending.swap_remove(dice.below(pending.len())).await;
            words.extend([word.unwrap()]);
        }
    }
    for word in pending {
        words.extend([word.await.unwrap()]);
    }
    words
}

/// Takes everything, each message in a way of its own, with futures dropped in between; tells the words it said.
async fn take_all(to: Connection, seed: usize, pool: Pool) -> Words {
    let mut dice = Dice::new(seed, usize::MAX / 3);
    let mut words = Words::new();
    // A dropped `recv` may have begun to take the next message: then it is too late to reject it.
    let mut begun = false;
    while words.len() < COUNT {
        let polls = dice.of(&[1, 2, 5, 1_000_000]);
        let way = if begun { 0 } else { dice.below(10) };
        let taken = match way {
            0..3 => polled(pin!(to.recv()), polls).await.transpose().unwrap(),
            3 => {
                let buffer = BufferMut::with_capacity(20 << 20);
                polled(pin!(to.recv_into(buffer)), polls).await.transpose().unwrap()
            }
            _ => {
                if let Some(incoming) = polled(pin!(to.incoming()), polls).await.transpose().unwrap() {
                    words.extend([decide(incoming, seed, &mut dice, &pool).await]);
                }
                continue;
            }
        };
        begun = taken.is_none();
        words.extend(taken.map(|taken| (assert_whole(&taken, seed, None), true)));
    }
    words
}

async fn decide(incoming: towline::Incoming, seed: usize, dice: &mut Dice, pool: &Pool) -> (usize, bool) {
    let at = number(incoming.header());
    if dice.below(3) == 0 {
        tokio::time::sleep(Duration::from_micros(dice.below(2000) as u64)).await;
    }
    match dice.below(5) {
        0 => {
            incoming.reject();
            return (at, false);
        }
        1 | 2 => drop(assert_whole(&incoming.accept().await.unwrap(), seed, None)),
        _ => {
            let discarded: Vec<_> = incoming.frames().iter().map(|_| dice.below(4) == 0).collect();
            let destination =
                |(frame, discarded): (&towline::FrameInfo, &bool)| match (*discarded, dice.below(2)) {
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

/// The message's number, if it is what was sent.
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

/// Gets and puts of a region at the other end.
async fn access(user: Connection, owner: Connection, seed: usize) {
    const LEN: usize = 1 << 20;
    let mut dice = Dice::new(seed, usize::MAX / 5);
    let readable = owner.expose(bytes(seed, LEN).into(), TIME).unwrap();
    let writable = owner.expose_mut(BufferMut::zeroed(LEN), TIME).unwrap();
    let mut expected = vec![0; LEN];
    for turn in 0..COUNT / 2 {
        let len = dice.of(&[0, 1, 500, 16_384, 200_000]);
        let offset = dice.below(LEN - len + 1);
        if dice.below(2) == 0 {
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
        .map(|(way, (from, to))| {
            let seed = seed * 2 + way;
            let sending = tokio::spawn(send_all(from.clone(), seed));
            let taking = tokio::spawn(take_all(to.clone(), seed, pool.clone()));
            let accesses = one_sided.then(|| tokio::spawn(access(from.clone(), to.clone(), seed)));
            (sending, taking, accesses)
        })
        .collect();
    for (sending, taking, accesses) in tasks {
        let what = format!("traffic of seed {seed}");
        let words = within(TIME, &what, async {
            if let Some(accesses) = accesses {
                accesses.await.unwrap();
            }
            (sending.await.unwrap(), taking.await.unwrap())
        });
        let (heard, said) = words.await;
        let wrong: Vec<_> = said.iter().filter(|(at, word)| heard.get(at) != Some(word)).collect();
        assert!(wrong.is_empty(), "said, and not heard by the sender (seed {seed}): {wrong:?}");
    }
    let in_use = || [pair.near.pool(), pair.far.pool(), &pool].map(|pool| pool.stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0, 0]).await;
    pair.a.close().await.unwrap();
}

/// These, or the one that `TOWLINE_SEED` asks for.
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
