//! Frames in memory that the CPU cannot access are sent and received like host frames.

use std::time::{Duration, Instant};

use towline::{Buffer, BufferMut, Caps, Destination, ErrorKind, Message, Place};
use towline_tests::guarded::Guarded;

use crate::backends::{Pair, Row};
use crate::content::{assert_bytes, assert_frame, bytes};
use crate::polls::{eventually, in_time};
use crate::suite::cases;

cases! {
    ANY:
        frames_from_guarded_to_host_arrive,
        frames_from_host_to_guarded_arrive,
        frames_from_guarded_to_guarded_arrive,
        messages_may_mix_places,
        a_frame_arrives_in_its_named_guarded_buffer,
        slices_of_guarded_memory_arrive,
        bytes_behind_a_fence_are_not_sent_early,
        staging_returns_its_memory;
    ONE_SIDED:
        gets_and_puts_refuse_guarded_memory;
}

/// Around the threshold of messages that wait for an accept, and beyond one piece of a staging copy.
const LENS: [usize; 7] = [0, 1, 700, (16 << 10) - 1, 16 << 10, 70_000, (3 << 20) + 5];

fn frame(place: Place, seed: usize, len: usize) -> Buffer {
    match place {
        Place::Guarded => Guarded::filled(&bytes(seed, len)).unwrap(),
        _ => bytes(seed, len).into(),
    }
}

async fn guarded_pair(row: &Row) -> Pair {
    row.pair_with(|builder| builder.pool(Guarded::pool())).await
}

/// Sends one frame of every length, from and to these places.
async fn travel(row: &Row, from: Place, to: Place) {
    let pair = guarded_pair(row).await;
    for (seed, len) in LENS.into_iter().enumerate() {
        let message = Message::new("").with_frame(frame(from, seed, len));
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            assert_eq!(incoming.frames()[0].len, len);
            assert_eq!(incoming.frames()[0].place, from, "the table tells where the sender has it");
            incoming.accept_into(vec![Destination::Place(to)]).await.unwrap()
        };
        let (sent, taken) = in_time("a frame", async { tokio::join!(pair.a.deliver(message), take) }).await;
        sent.unwrap();
        assert_eq!(taken.frames()[0].place(), to);
        assert_frame(&taken.frames()[0], seed, len);
        assert_eq!(taken.frames()[0].as_slice().is_some(), to == Place::Host);
    }
}

async fn frames_from_guarded_to_host_arrive(row: &'static Row) {
    travel(row, Place::Guarded, Place::Host).await;
    // A receiver that names no place.
    let pair = guarded_pair(row).await;
    for (seed, len) in LENS.into_iter().enumerate() {
        let message = Message::new("").with_frame(frame(Place::Guarded, seed, len));
        let (sent, taken) =
            in_time("a frame", async { tokio::join!(pair.a.deliver(message), pair.b.recv()) }).await;
        sent.unwrap();
        let taken = taken.unwrap();
        assert_frame(&taken.frames()[0], seed, len);
        if len > 0 && !row.caps.contains(Caps::MOVES_OWNERSHIP) {
            assert_eq!(taken.frames()[0].place(), Place::Host);
        }
    }
}

async fn frames_from_host_to_guarded_arrive(row: &'static Row) {
    travel(row, Place::Host, Place::Guarded).await;
}

async fn frames_from_guarded_to_guarded_arrive(row: &'static Row) {
    travel(row, Place::Guarded, Place::Guarded).await;
}

async fn messages_may_mix_places(row: &'static Row) {
    let pair = guarded_pair(row).await;
    for len in LENS {
        for turn in 0..3 {
            let place = |at: usize| if at % 3 == turn { Place::Guarded } else { Place::Host };
            let frames = (0..6).map(|at| frame(place(at), at, len)).collect();
            let destination = |at: usize| match (at + turn) % 4 {
                0 => Destination::Place(Place::Guarded),
                1 => Destination::Place(Place::Host),
                2 => Destination::Buffer(Guarded::buffer(len).unwrap()),
                _ => Destination::Discard,
            };
            let take = async {
                let incoming = pair.b.incoming().await.unwrap();
                incoming.accept_into((0..6).map(destination).collect()).await.unwrap()
            };
            let sending = pair.a.deliver(Message::from_parts("", frames));
            let (sent, taken) = in_time("a mixed message", async { tokio::join!(sending, take) }).await;
            sent.unwrap();
            for (at, frame) in taken.frames().iter().enumerate() {
                match (at + turn) % 4 {
                    3 => assert!(frame.is_empty()),
                    _ => assert_frame(frame, at, len),
                }
            }
        }
    }
}

async fn a_frame_arrives_in_its_named_guarded_buffer(row: &'static Row) {
    let pair = guarded_pair(row).await;
    for len in [700, 70_000] {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let destination = Guarded::buffer(len + 3).unwrap();
            let start = destination.as_ptr();
            let taken = incoming.accept_into(vec![Destination::Buffer(destination)]).await.unwrap();
            assert_eq!(taken.frames()[0].as_ptr(), start);
            taken
        };
        let message = Message::new("").with_frame(bytes(1, len));
        let (sent, taken) = in_time("a frame", async { tokio::join!(pair.a.deliver(message), take) }).await;
        sent.unwrap();
        assert_frame(&taken.frames()[0], 1, len);

        let into = Guarded::buffer(2 * len).unwrap();
        let start = into.as_ptr();
        let message = Message::new("").with_frame(bytes(2, len)).with_frame(bytes(3, len));
        let both = async { tokio::join!(pair.a.deliver(message), pair.b.recv_into(into)) };
        let (sent, taken) = in_time("recv_into", both).await;
        sent.unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.frames()[0].as_ptr(), start);
        assert_frame(&taken.frames()[0], 2, len);
        assert_frame(&taken.frames()[1], 3, len);
    }
}

async fn slices_of_guarded_memory_arrive(row: &'static Row) {
    let pair = guarded_pair(row).await;
    let whole = Guarded::filled(&bytes(1, 200_000)).unwrap();
    let frames = vec![whole.slice(..10), whole.slice(100..40_000), whole.slice(199_999..), whole.clone()];
    let (sent, taken) = tokio::join!(pair.a.deliver(Message::from_parts("", frames)), pair.b.recv());
    sent.unwrap();
    let frames = taken.unwrap().into_parts().1;
    for (frame, (offset, len)) in frames.iter().zip([(0, 10), (100, 39_900), (199_999, 1), (0, 200_000)]) {
        assert_eq!(frame.len(), len);
        assert_bytes(&frame.to_vec().unwrap(), 1, offset);
    }
}

async fn bytes_behind_a_fence_are_not_sent_early(row: &'static Row) {
    let pair = guarded_pair(row).await;
    for len in [700, 70_000, 3 << 20] {
        for to in [Place::Host, Place::Guarded] {
            let began = Instant::now();
            let frame = Guarded::produced(bytes(1, len), Duration::from_millis(150)).unwrap();
            let message = Message::new("").with_frame(frame).with_frame(bytes(2, len));
            let take = async {
                let incoming = pair.b.incoming().await.unwrap();
                let taken =
                    incoming.accept_into(vec![Destination::Place(to), Destination::Place(to)]).await.unwrap();
                assert_frame(&taken.frames()[0], 1, len);
                assert_frame(&taken.frames()[1], 2, len);
            };
            let (sent, ()) = in_time("a frame", async { tokio::join!(pair.a.deliver(message), take) }).await;
            sent.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(150), "the bytes were not there before");
        }
    }
}

async fn staging_returns_its_memory(row: &'static Row) {
    let pair = guarded_pair(row).await;
    for len in [700, 70_000] {
        let message = || Message::new("").with_frame(frame(Place::Guarded, 1, len));
        // Delivered, rejected, and lost with the connection.
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            drop(incoming.accept_into(vec![Destination::Place(Place::Guarded)]).await.unwrap());
            drop(pair.b.incoming().await.unwrap());
        };
        let sending = async {
            pair.a.deliver(message()).await.unwrap();
            assert_eq!(pair.a.deliver(message()).await.unwrap_err().kind(), ErrorKind::Rejected);
        };
        in_time("two messages", async { tokio::join!(sending, take) }).await;
    }
    let a = pair.a.clone();
    let original = frame(Place::Guarded, 1, 200_000);
    let start = original.as_ptr();
    let lost = tokio::spawn(async move { a.send(Message::new("").with_frame(original)).await });
    let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();
    pair.a.abort();
    match in_time("the send", lost).await.unwrap() {
        Ok(receipt) => assert!(receipt.delivered().await.is_err()),
        Err(failed) => assert_eq!(failed.returned.frames()[0].as_ptr(), start, "the frame itself comes back"),
    }
    drop(undecided);
    let in_use = || [&pair.near, &pair.far].map(|end| end.pool().stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0]).await;
}

async fn gets_and_puts_refuse_guarded_memory(row: &'static Row) {
    let pair = guarded_pair(row).await;
    let lifetime = Duration::from_secs(60);
    let failed = pair.b.expose(frame(Place::Guarded, 1, 100), lifetime).unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Unsupported, 100));
    let failed = pair.b.expose_mut(Guarded::buffer(100).unwrap(), lifetime).unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.capacity()), (ErrorKind::Unsupported, 100));

    let readable = pair.b.expose(bytes(1, 100).into(), lifetime).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(100), lifetime).unwrap();
    let into = Guarded::buffer(100).unwrap();
    let failed = in_time("get", pair.a.get(&readable.remote(), 0, into)).await.unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.capacity()), (ErrorKind::Unsupported, 100));
    let from = frame(Place::Guarded, 1, 100);
    let failed = in_time("put", pair.a.put(&writable.remote(), 0, from)).await.unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::Unsupported, 100));
}
