//! Buffers in arenas. They arrive unchanged over every backend. Ends that share memory lend them: the
//! receiver reads them in place until it drops them.

#![expect(unsafe_code, reason = "foreign blocks are written through their address")]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::time::Duration;

use rustix::process::Signal;
use towline::memory::{Access, ForeignBlock};
use towline::{Arena, Buffer, BufferMut, Caps, Connection, Destination, Message, Place, Pool, Prefetch};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_bytes, bytes};
use crate::peer::{ECHO, HEARTBEAT, HOLD, Peer};
use crate::polls::{TIMEOUT, eventually, in_time};
use crate::suite::cases;

cases! {
    ANY:
        frames_in_arenas_arrive,
        frames_land_in_an_arena,
        foreign_blocks_arrive,
        a_receiver_with_a_full_arena_blocks_its_sender;
    LENDS:
        leases_of_a_killed_peer_return,
        leases_of_a_stopped_peer_are_quarantined_and_others_get_half,
        frames_are_lent_and_not_copied,
        foreign_blocks_are_lent_as_foreign_memory,
        a_prefetched_foreign_block_is_not_copied,
        a_foreign_block_stays_foreign_when_forwarded,
        many_frames_and_slices_are_lent_both_ways,
        lent_frames_outlive_their_connection,
        a_full_arena_has_room_after_the_receiver_drops_frames,
        take_within_gets_memory_that_the_receiver_drops,
        without_trust_nothing_is_lent;
}

const SIZES: [usize; 6] = [1, 1000, 1024, 16_384, 300_000, 8 << 20];

/// Returns a frame of `len` bytes in `arena`.
fn frame(arena: &Arena, seed: usize, len: usize) -> Buffer {
    let mut buffer = arena.take(len).unwrap();
    buffer.extend_from_slice(&bytes(seed, len)).unwrap();
    buffer.freeze()
}

/// Returns a foreign block of `len` bytes in `arena`.
fn foreign(arena: &Arena, seed: usize, len: usize) -> ForeignBlock {
    let block = arena.take_foreign(len).unwrap();
    // SAFETY: the block is as long, and nobody else has its address.
    unsafe { block.base().copy_from_nonoverlapping(NonNull::from(&bytes(seed, len)[..]).cast(), len) };
    block
}

async fn sent(from: &Connection, to: &Connection, message: Message) -> Message {
    let both = async { tokio::join!(from.deliver(message), to.recv()) };
    let (delivered, received) = in_time("a message", both).await;
    delivered.unwrap();
    received.unwrap()
}

async fn frames_in_arenas_arrive(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(64 << 20).unwrap();
    for (seed, len) in SIZES.into_iter().enumerate() {
        let message = Message::new("beside others").with_frame(frame(&arena, seed, len)).with_frame("host");
        let received = sent(&pair.a, &pair.b, message).await;
        assert_bytes(received.frames()[0].as_slice().unwrap(), seed, 0);
        assert_eq!((received.frames()[0].len(), received.frames()[1].as_slice()), (len, Some(&b"host"[..])));
    }
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn frames_land_in_an_arena(row: &'static Row) {
    let near = Arena::new(64 << 20).unwrap();
    let pool = Pool::with_source(std::sync::Arc::new(near), 0);
    let pair = row.pair_with(|builder| builder.pool(pool.clone())).await;
    for (seed, len) in SIZES.into_iter().enumerate() {
        let message = Message::new("receive").with_frame(bytes(seed, len));
        let taking = async {
            pair.b
                .incoming()
                .await
                .unwrap()
                .accept_into(vec![Destination::Place(Place::Arena)])
                .await
                .unwrap()
        };
        let (delivered, taken) =
            in_time("a message", async { tokio::join!(pair.a.deliver(message), taking) }).await;
        delivered.unwrap();
        assert_eq!(taken.frames()[0].place(), Place::Arena);
        assert_bytes(taken.frames()[0].as_slice().unwrap(), seed, 0);
    }
}

async fn frames_are_lent_and_not_copied(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(128 << 20).unwrap();
    let before = [pair.a.stats().bytes_copied, pair.b.stats().bytes_copied];
    for (seed, len) in [1024, 300_000, 64 << 20].into_iter().enumerate() {
        let received = sent(&pair.a, &pair.b, Message::new("").with_frame(frame(&arena, seed, len))).await;
        let [held] = received.frames() else { panic!("one frame") };
        assert_eq!((held.place(), held.len()), (Place::Arena, len));
        assert_bytes(held.as_slice().unwrap(), seed, 0);
        assert!(arena.stats().in_use_bytes >= len, "the receiver holds it");
        let copy = held.clone().try_into_mut();
        assert!(copy.is_err(), "a lent frame is read-only");
        drop((received, copy));
        eventually("the lease returns", || arena.stats().in_use_bytes == 0).await;
    }
    let copied = [pair.a.stats().bytes_copied, pair.b.stats().bytes_copied];
    // Announcements and acknowledgements are copied through the ring.
    assert!(copied[0] - before[0] < 4096 && copied[1] - before[1] < 4096, "{before:?} {copied:?}");
}

async fn foreign_blocks_arrive(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(64 << 20).unwrap();
    for (seed, len) in SIZES.into_iter().enumerate() {
        let block = foreign(&arena, seed, len);
        let message = Message::new("").with_frame(block.buffer()).with_frame("host");
        let received = sent(&pair.a, &pair.b, message).await;
        assert_eq!(received.frames()[0].to_vec().unwrap(), bytes(seed, len));
        assert_eq!(received.frames()[1].as_slice(), Some(&b"host"[..]));
        let slice = block.buffer().slice(len / 3..len);
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            incoming.accept_into(vec![Destination::Buffer(BufferMut::with_capacity(len))]).await.unwrap()
        };
        let sending = pair.a.deliver(Message::new("").with_frame(slice));
        let (delivered, taken) = in_time("a slice", async { tokio::join!(sending, take) }).await;
        delivered.unwrap();
        assert_bytes(taken.frames()[0].as_slice().unwrap(), seed, len / 3);
    }
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn foreign_blocks_are_lent_as_foreign_memory(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(128 << 20).unwrap();
    let before = [pair.a.stats().bytes_copied, pair.b.stats().bytes_copied];
    for (seed, len) in [1024, 300_000, 64 << 20].into_iter().enumerate() {
        let block = foreign(&arena, seed, len);
        let received = sent(&pair.a, &pair.b, Message::new("").with_frame(block.buffer())).await;
        let held = received.into_parts().1.remove(0);
        assert_eq!((held.place(), held.access(), held.len()), (Place::Arena, Access::Foreign, len));
        assert!(held.as_slice().is_none(), "others may write it");
        assert_eq!(held.slice(len - 9..).to_vec().unwrap(), bytes(seed, len)[len - 9..]);
        // SAFETY: the block is longer, and Rust reads it by copies of foreign memory alone.
        unsafe { block.base().write_volatile(!bytes(seed, 1)[0]) };
        assert_eq!(held.slice(..1).to_vec().unwrap(), [!bytes(seed, 1)[0]], "it is the same memory");
        let held = held.try_into_mut().expect_err("a lent frame is read-only");
        drop(block);
        assert_eq!(arena.stats().leases, 1, "the receiver holds it");
        assert_eq!(held.slice(1..9).to_vec().unwrap(), bytes(seed, len)[1..9]);
        drop(held);
        eventually("the lease returns", || arena.stats().in_use_bytes == 0).await;
    }
    let copied = [pair.a.stats().bytes_copied, pair.b.stats().bytes_copied];
    // Announcements and acknowledgements are copied through the ring.
    assert!(copied[0] - before[0] < 4096 && copied[1] - before[1] < 4096, "{before:?} {copied:?}");
}

async fn a_prefetched_foreign_block_is_not_copied(row: &'static Row) {
    const LEN: usize = 1 << 20;
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().writable(true)).unwrap();
    let arena = Arena::new(64 << 20).unwrap();
    let block = foreign(&arena, 3, LEN);
    let message = Message::new("").with_frame(block.buffer()).with_frame(frame(&arena, 4, LEN));
    let mut frames = sent(&pair.a, &pair.b, message).await.into_parts().1;
    let (owned, lent) = (frames.remove(1), frames.remove(0));
    assert_eq!((lent.place(), lent.access()), (Place::Arena, Access::Foreign));
    assert_eq!(lent.to_vec().unwrap(), bytes(3, LEN));
    assert_bytes(owned.try_into_mut().unwrap().as_slice().unwrap(), 4, 0);
    assert_eq!(arena.stats().leases, 1, "the other frame was copied");
    drop((block, lent));
    eventually("the lease returns", || arena.stats().in_use_bytes == 0).await;
}

async fn a_foreign_block_stays_foreign_when_forwarded(row: &'static Row) {
    let (first, second) = (row.pair().await, row.pair().await);
    let arena = Arena::new(64 << 20).unwrap();
    let block = foreign(&arena, 5, 300_000);
    let received = sent(&first.a, &first.b, Message::new("").with_frame(block.buffer())).await;
    let forwarded = sent(&second.a, &second.b, received).await;
    let held = &forwarded.frames()[0];
    assert_eq!((held.place(), held.access()), (Place::Arena, Access::Foreign));
    // SAFETY: the block is longer, and Rust reads it by copies of foreign memory alone.
    unsafe { block.base().write_volatile(!bytes(5, 1)[0]) };
    assert_eq!(held.slice(..1).to_vec().unwrap(), [!bytes(5, 1)[0]], "it is the same memory");
    drop((block, forwarded));
    eventually("every lease returns", || arena.stats().in_use_bytes == 0).await;
}

async fn many_frames_and_slices_are_lent_both_ways(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(64 << 20).unwrap();
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        let whole = frame(&arena, 5, 1 << 20);
        let frames: Vec<_> = (0..500).map(|at| whole.slice(at * 2000..at * 2000 + at)).collect();
        let received = sent(from, to, Message::from_parts("slices", frames)).await;
        for (at, held) in received.frames().iter().enumerate() {
            assert_eq!((held.len(), at == 0 || held.place() == Place::Arena), (at, true));
            assert_bytes(held.as_slice().unwrap(), 5, at * 2000);
        }
        drop(whole);
    }
    eventually("every lease returns", || arena.stats().in_use_bytes == 0).await;
}

async fn lent_frames_outlive_their_connection(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(64 << 20).unwrap();
    let received = sent(&pair.a, &pair.b, Message::new("").with_frame(frame(&arena, 3, 1 << 20))).await;
    in_time("a close", pair.a.close()).await.unwrap();
    drop(pair);
    // Other takers of the arena's memory do not get this frame.
    let others: Vec<_> = (0..40).map(|seed| frame(&arena, seed, 1 << 20)).collect();
    assert_bytes(received.frames()[0].as_slice().unwrap(), 3, 0);
    drop((received, others));
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn a_full_arena_has_room_after_the_receiver_drops_frames(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(8 << 20).unwrap();
    let mut held = Vec::new();
    for seed in 0..7 {
        let message = Message::new("").with_frame(frame(&arena, seed, 1 << 20));
        held.push(sent(&pair.a, &pair.b, message).await);
    }
    let full = arena.take(2 << 20).unwrap_err();
    assert_eq!(full.kind(), towline::ErrorKind::TooLarge, "{full}");
    held.clear();
    eventually("the arena has room", || arena.take(2 << 20).is_ok()).await;
}

async fn take_within_gets_memory_that_the_receiver_drops(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(8 << 20).unwrap();
    let sending = async {
        for seed in 0..200 {
            let mut buffer = arena.take_within(1 << 20, TIMEOUT).await.unwrap();
            buffer.extend_from_slice(&bytes(seed, 1 << 20)).unwrap();
            drop(pair.a.send(Message::new("").with_frame(buffer.freeze())).await.unwrap());
        }
    };
    let receiving = async {
        let mut held = VecDeque::new();
        for seed in 0..200 {
            held.push_back((seed, pair.b.recv().await.unwrap()));
            // The receiver holds seven of eight. No message reports what it drops.
            if held.len() > 7 {
                let (seed, taken) = held.pop_front().unwrap();
                assert_bytes(taken.frames()[0].as_slice().unwrap(), seed, 0);
            }
        }
        held
    };
    let ((), held) = in_time("all of them", async { tokio::join!(sending, receiving) }).await;
    let limit = Duration::from_millis(30);
    let error = in_time("an error", arena.take_within(2 << 20, limit)).await.unwrap_err();
    assert_eq!(error.kind(), towline::ErrorKind::TimedOut, "{error}");
    let reason = format!("peers hold {}", held.len() << 20);
    assert!(error.to_string().contains(&reason), "{error}");
    let (taken, ()) =
        in_time("room", async { tokio::join!(arena.take_within(8 << 20, TIMEOUT), async { drop(held) }) })
            .await;
    assert_eq!(taken.unwrap().capacity(), 8 << 20);
}

async fn a_receiver_with_a_full_arena_blocks_its_sender(row: &'static Row) {
    const LEN: usize = 300_000;
    let arena = Arena::new(4 << 20).unwrap();
    let pool = Pool::with_source(std::sync::Arc::new(arena.clone()), 0);
    let pair = row.pair_with(|builder| builder.pool(pool.clone())).await;
    let (sender, receipts) = tokio::sync::mpsc::unbounded_channel();
    let (mut receipts, (a, b)) = (receipts, (&pair.a, &pair.b));
    let sending = async move {
        for seed in 0..100 {
            sender.send(a.send(Message::new("").with_frame(bytes(seed, LEN))).await.unwrap()).unwrap();
        }
    };
    let acking = async {
        let mut refused = 0;
        while let Some(receipt) = receipts.recv().await {
            refused += usize::from(receipt.delivered().await.is_err());
        }
        refused
    };
    let receiving = async {
        let (mut held, mut most, mut rejected) = (VecDeque::new(), 0, 0);
        for seed in 0..100 {
            let incoming = b.incoming().await.unwrap();
            let destination = if seed % 10 == 9 {
                // An accept that does not wait fails, and the message is rejected.
                Destination::Place(Place::Arena)
            } else {
                // The other accepts wait, and so does their sender.
                let mut room = arena.take_within(LEN, Duration::from_millis(1)).await;
                if room.is_err() {
                    most = most.max(held.len());
                    held.pop_front();
                    room = arena.take_within(LEN, TIMEOUT).await;
                }
                Destination::Buffer(room.unwrap())
            };
            match incoming.accept_into(vec![destination]).await {
                Ok(taken) => {
                    assert_eq!(taken.frames()[0].place(), Place::Arena);
                    assert_bytes(taken.frames()[0].as_slice().unwrap(), seed, 0);
                    held.push_back(taken);
                }
                Err(failed) => {
                    assert_eq!(failed.error.kind(), towline::ErrorKind::TooLarge, "{}", failed.error);
                    rejected += 1;
                }
            }
        }
        (most, rejected)
    };
    let all = async { tokio::join!(sending, acking, receiving) };
    let ((), refused, (most, rejected)) = in_time("all of them", all).await;
    assert_eq!((most, refused), ((4 << 20) / LEN, rejected), "as many as the arena has room for");
    assert!(rejected > 0);
}

async fn without_trust_nothing_is_lent(row: &'static Row) {
    // Lending needs both ends' trust: each may read all of the other's arena.
    let (near, far) = (row.builder().trust_user(false).build().unwrap(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let (a, b) = connect_pair(&near, &listener).await;
    assert!(!a.caps().contains(Caps::LENDS) && !b.caps().contains(Caps::LENDS));
    let arena = Arena::new(64 << 20).unwrap();
    let received = sent(&a, &b, Message::new("").with_frame(frame(&arena, 3, 1 << 20))).await;
    assert_bytes(received.frames()[0].as_slice().unwrap(), 3, 0);
    assert_eq!(received.frames()[0].place(), Place::Host);
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn leases_of_a_killed_peer_return(row: &'static Row) {
    let (peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let arena = Arena::new(64 << 20).unwrap();
    for seed in 0..20 {
        // The peer sends them back, and holds what this end does not receive.
        let message = Message::new(ECHO).with_frame(frame(&arena, seed, 1 << 20));
        drop(in_time("a send", connection.send(message)).await.unwrap());
    }
    peer.signal(Signal::KILL);
    let end = loop {
        if let Err(end) = in_time("the end", connection.recv()).await {
            break end;
        }
    };
    assert_eq!(end.kind(), towline::ErrorKind::PeerLost, "{end}");
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}

async fn leases_of_a_stopped_peer_are_quarantined_and_others_get_half(row: &'static Row) {
    const MIB: usize = 1 << 20;
    let endpoint = row.builder().heartbeat(HEARTBEAT).build().unwrap();
    let arena = Arena::new(64 * MIB).unwrap();
    let hold = async |connection: &Connection, count: usize| {
        for seed in 0..count {
            let message = Message::new(HOLD).with_frame(frame(&arena, seed, MIB));
            in_time("a delivery", connection.deliver(message)).await.unwrap();
        }
        let stats = arena.stats();
        (stats.lent_bytes / MIB, stats.leases, stats.refused_leases)
    };
    let (_survivor, with_survivor) = Peer::serving(row).await;
    for (refused, end) in [(0, Signal::CONT), (4, Signal::KILL)] {
        let (stopped, address) = Peer::serving(row).await;
        let connection = endpoint.connect(&address).await.unwrap();
        assert_eq!(hold(&connection, 20).await, (20, 20, refused));
        assert_eq!(arena.stats().quarantined_leases, 0, "held, but not in quarantine");

        stopped.signal(Signal::STOP);
        let lost = in_time("the end", connection.recv()).await.unwrap_err();
        assert_eq!(lost.kind(), towline::ErrorKind::PeerLost, "{lost}");
        eventually("it is in quarantine", || arena.stats().quarantined_leases == 20).await;
        assert_eq!(arena.stats().quarantined_bytes, 20 * MIB);

        let survivor = endpoint.connect(&with_survivor).await.unwrap();
        assert_eq!(hold(&survivor, 15).await, (32, 32, refused + 3), "half of the arena, and no more");
        let both = async {
            let message = Message::new(ECHO).with_frame(frame(&arena, 7, 5 * MIB));
            tokio::join!(survivor.deliver(message), survivor.recv())
        };
        let (sent, back) = in_time("an echo", both).await;
        sent.unwrap();
        assert_bytes(back.unwrap().frames()[0].as_slice().unwrap(), 7, 0);
        assert_eq!(arena.stats().in_use_bytes, 32 * MIB, "what was copied is free");

        stopped.signal(end);
        eventually("nothing is in quarantine", || arena.stats().quarantined_leases == 0).await;
        let (lent, leases, more) = hold(&survivor, 1).await;
        assert_eq!((lent, leases, more), (13, 13, refused + 4), "it lends again");
        drop(survivor);
        eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
    }
}
