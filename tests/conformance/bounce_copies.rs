//! Large frames outside arenas, between ends that trust each other. They are copied once in all, or twice
//! without room or trust.

use towline::{Arena, Caps, Connection, ErrorKind, Message, Place};

use crate::backends::{Pair, Row, connect_pair};
use crate::content::{assert_frame, assert_message, bytes, message};
use crate::peer::{ECHO, IGNORE, Peer};
use crate::polls::{TIMEOUT, eventually, in_time, polled, within};
use crate::suite::cases;

cases! {
    LENDS:
        large_frames_are_copied_once,
        another_process_copies_nothing,
        many_frames_and_arena_frames_share_a_message,
        messages_both_ways_stay_in_order,
        frames_beyond_the_bounce_arena_use_the_receivers_memory,
        without_room_or_trust_each_end_copies,
        a_message_dropped_by_its_sender_arrives,
        bounce_copies_return_when_the_receiver_is_killed,
        received_frames_outlive_a_killed_sender;
}

/// The smallest frame that is bounced.
const BOUNCED_MIN: usize = 32 << 10;
/// The most that one poll copies.
const PART: usize = 256 << 10;
/// The most that announcements and acknowledgements copy through the ring.
const PROTOCOL_BYTES: u64 = 4096;

async fn sent(from: &Connection, to: &Connection, message: Message) -> Message {
    let both = async { tokio::join!(from.deliver(message), to.recv()) };
    let (delivered, received) = in_time("a message", both).await;
    delivered.unwrap();
    received.unwrap()
}

/// Sends until the receiver has granted bounce copies of `len` bytes.
async fn warm_up(from: &Connection, to: &Connection, len: usize) {
    let warm = async { while !is_bounced(from, to, len).await {} };
    within(TIMEOUT, "bounce copies", warm).await;
}

async fn is_bounced(from: &Connection, to: &Connection, len: usize) -> bool {
    let before = from.stats().bytes_bounced;
    assert_message(&sent(from, to, message(7, &[len])).await, 7, &[len]);
    let bounced = from.stats().bytes_bounced - before;
    assert!(bounced == 0 || bounced == len as u64, "{bounced} of {len} bytes");
    bounced > 0
}

/// Asserts how often the sender copies each byte, the receiver does, and how often in a bounce copy.
async fn assert_copies(from: &Connection, to: &Connection, len: usize, expected: (u64, u64, u64)) {
    let (near, far) = (from.stats(), to.stats());
    let received = sent(from, to, message(len, &[len])).await;
    assert_message(&received, len, &[len]);
    assert_eq!(received.frames()[0].place(), Place::Host);
    let len = len as u64;
    let as_expected = || {
        let copied = (
            from.stats().bytes_copied - near.bytes_copied,
            to.stats().bytes_copied - far.bytes_copied,
            from.stats().bytes_bounced - near.bytes_bounced,
        );
        let is = |copied: u64, times: u64| (times * len..times * len + PROTOCOL_BYTES).contains(&copied);
        is(copied.0, expected.0) && is(copied.1, expected.1) && is(copied.2, expected.2)
    };
    // Another thread may still count its last bytes.
    eventually(&format!("{expected:?} copies of {len} bytes"), as_expected).await;
}

async fn large_frames_are_copied_once(row: &'static Row) {
    let pair = row.pair().await;
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        warm_up(from, to, 64 << 20).await;
        let once = (1, 0, 1);
        let twice = (1, 1, 0);
        for (len, expected) in [
            (BOUNCED_MIN - 1, twice),
            (BOUNCED_MIN, once),
            (PART - 1, once),
            (PART, once),
            (PART + 1, once),
            (3 * PART + 5, once),
            (64 << 20, once),
        ] {
            assert_copies(from, to, len, expected).await;
        }
    }
    let received = sent(&pair.a, &pair.b, message(1, &[BOUNCED_MIN])).await;
    let [frame] = &received.into_parts().1[..] else { panic!("one frame") };
    assert!(frame.clone().try_into_mut().is_err(), "what the sender has is not written here");
}

async fn another_process_copies_nothing(row: &'static Row) {
    let (_peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let there_and_back = async |len: usize| {
        let before = connection.stats();
        let message = Message::new(ECHO).with_frame(bytes(len, len));
        let both = async { tokio::join!(connection.deliver(message), connection.recv()) };
        let (delivered, back) = in_time("an echo", both).await;
        delivered.unwrap();
        assert_frame(&back.unwrap().frames()[0], len, len);
        let after = connection.stats();
        (after.bytes_bounced - before.bytes_bounced, after.bytes_copied - before.bytes_copied)
    };
    for len in [BOUNCED_MIN, 1 << 20, 16 << 20] {
        let copied_once = async {
            loop {
                let (bounced, copied) = there_and_back(len).await;
                // The peer's own bounce arena is warm too.
                if bounced == len as u64 && copied < bounced + PROTOCOL_BYTES {
                    return;
                }
            }
        };
        within(TIMEOUT, "one copy each way", copied_once).await;
    }
}

async fn many_frames_and_arena_frames_share_a_message(row: &'static Row) {
    let pair = row.pair().await;
    warm_up(&pair.a, &pair.b, 16 << 20).await;
    let lengths: Vec<_> = (0..200).map(|at| 4096 + 97 * at).chain([0, 1, 4095]).collect();
    let before = [pair.a.stats(), pair.b.stats()];
    let arena = Arena::new(16 << 20).unwrap();
    let mut lent = arena.take(1 << 20).unwrap();
    lent.extend_from_slice(&bytes(900, 1 << 20)).unwrap();
    let received = sent(&pair.a, &pair.b, message(3, &lengths).with_frame(lent.freeze())).await;
    let (header, mut frames) = received.into_parts();
    let last = frames.pop().unwrap();
    assert_eq!(last.place(), Place::Arena);
    assert_frame(&last, 900, 1 << 20);
    assert_message(&Message::from_parts(header, frames), 3, &lengths);
    drop(last);
    let large: usize = lengths.iter().filter(|len| **len >= 4096).sum();
    let after = [pair.a.stats(), pair.b.stats()];
    assert_eq!(after[0].bytes_bounced - before[0].bytes_bounced, large as u64);
    let far = after[1].bytes_copied - before[1].bytes_copied;
    // The leases, the frame table, and frames below the bounce limit.
    assert!(far < 20_000, "{far} bytes copied by the receiver");
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn messages_both_ways_stay_in_order(row: &'static Row) {
    let pair = row.pair().await;
    let lengths = |at: usize| [[5, 1000, BOUNCED_MIN, 20_000, PART + 3, 3 << 20][at * 7 % 6], 3000];
    let send_all = async |from: &Connection| {
        let mut receipts = Vec::new();
        for at in 0..120 {
            receipts.push(from.send(message(at, &lengths(at))).await.unwrap());
        }
        for receipt in receipts {
            receipt.delivered().await.unwrap();
        }
    };
    let take = async |to: &Connection| {
        for at in 0..120 {
            assert_message(&to.recv().await.unwrap(), at, &lengths(at));
        }
    };
    let all = async { tokio::join!(send_all(&pair.a), take(&pair.b), send_all(&pair.b), take(&pair.a)) };
    in_time("all messages", all).await;
    assert!(pair.a.stats().bytes_bounced > 0 && pair.b.stats().bytes_bounced > 0);
}

async fn frames_beyond_the_bounce_arena_use_the_receivers_memory(row: &'static Row) {
    const LEN: usize = 1 << 20;
    let pair = row.pair_with(|builder| builder.bounce_arena(8 << 20)).await;
    warm_up(&pair.a, &pair.b, LEN).await;
    let before = pair.a.stats().bytes_bounced;
    let send_all = async {
        for at in 0..40 {
            drop(pair.a.send(message(at, &[LEN])).await.unwrap());
        }
    };
    let keep = async {
        let mut kept = Vec::new();
        for at in 0..40 {
            kept.push(pair.b.recv().await.unwrap());
            assert_message(&kept[at], at, &[LEN]);
        }
        kept
    };
    let ((), kept) = in_time("all messages", async { tokio::join!(send_all, keep) }).await;
    let bounced = (pair.a.stats().bytes_bounced - before) / LEN as u64;
    assert!((5..=8).contains(&bounced), "{bounced} MiB of 8");
    for (at, message) in kept.iter().enumerate() {
        assert_message(message, at, &[LEN]);
    }
    assert!(!is_bounced(&pair.a, &pair.b, LEN).await, "it is full");
    drop(kept);
    assert!(is_bounced(&pair.a, &pair.b, LEN).await, "and has room again");
}

async fn without_room_or_trust_each_end_copies(row: &'static Row) {
    let Pair { a, b, far, listener, near } = row.pair_with(|builder| builder.bounce_arena(0)).await;
    let untrusting = row.builder().trust_user(false).build().unwrap();
    let (c, d) = connect_pair(&untrusting, &listener).await;
    assert!(a.caps().contains(Caps::LENDS) && !c.caps().contains(Caps::LENDS));
    for (from, to) in [(&a, &b), (&b, &a), (&c, &d), (&d, &c)] {
        for _ in 0..4 {
            assert_copies(from, to, 1 << 20, (1, 1, 0)).await;
        }
    }
    drop((near, far));
}

async fn a_message_dropped_by_its_sender_arrives(row: &'static Row) {
    const LEN: usize = 8 << 20;
    let pair = row.pair().await;
    warm_up(&pair.a, &pair.b, LEN).await;
    for number in 0..5 {
        // One poll submits the message.
        let mut sending = Box::pin(pair.a.send(message(number, &[LEN])));
        drop(polled(sending.as_mut(), 1).await);
        drop(sending);
        assert_message(&in_time("a message", pair.b.recv()).await.unwrap(), number, &[LEN]);
    }
}

async fn bounce_copies_return_when_the_receiver_is_killed(row: &'static Row) {
    const LEN: usize = 3 << 20;
    let near = row.builder().bounce_arena(8 << 20).build().unwrap();
    for round in 0..8 {
        // The receiver holds some frames; others are in flight or half copied.
        let (mut peer, address) = Peer::serving(row).await;
        let connection = near.connect(&address).await.unwrap();
        let there = async {
            // Memory of earlier peers is back, or nothing would be bounced.
            while connection.stats().bytes_bounced < 3 * LEN as u64 {
                let message = Message::new(ECHO).with_frame(bytes(round, LEN));
                let (sent, back) = tokio::join!(connection.deliver(message), connection.recv());
                sent.unwrap();
                assert_frame(&back.unwrap().frames()[0], round, LEN);
            }
        };
        within(TIMEOUT, "bounce copies", there).await;
        drop(
            in_time("a send", connection.send(Message::new(IGNORE).with_frame(bytes(0, LEN)))).await.unwrap(),
        );
        let sending = tokio::spawn({
            let connection = connection.clone();
            async move {
                loop {
                    if let Err(failed) = connection.send(message(5, &[LEN])).await {
                        return failed;
                    }
                }
            }
        });
        tokio::time::sleep(std::time::Duration::from_micros(300 * round as u64)).await;
        peer.kill();
        let failed = in_time("the end", sending).await.unwrap();
        assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{}", failed.error);
        assert_message(&failed.returned, 5, &[LEN]);
    }
}

async fn received_frames_outlive_a_killed_sender(row: &'static Row) {
    let (mut peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let mut kept = Vec::new();
    for seed in 0..12 {
        let message = Message::new(ECHO).with_frame(bytes(seed, 1 << 20));
        let both = async { tokio::join!(connection.deliver(message), connection.recv()) };
        let (sent, back) = in_time("an echo", both).await;
        sent.unwrap();
        kept.push(back.unwrap());
    }
    for seed in 12..20 {
        drop(
            in_time("a send", connection.send(Message::new(ECHO).with_frame(bytes(seed, 1 << 20))))
                .await
                .unwrap(),
        );
    }
    peer.kill();
    let end = loop {
        match in_time("the end", connection.recv()).await {
            Ok(more) => kept.push(more),
            Err(end) => break end,
        }
    };
    assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
    drop(connection);
    for (seed, message) in kept.iter().enumerate() {
        assert_frame(&message.frames()[0], seed, 1 << 20);
    }
}
