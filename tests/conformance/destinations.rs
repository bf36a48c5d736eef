//! A message arrives in the destinations that its receiver names, and stays receivable after invalid ones.

use std::time::Duration;

use towline::{BufferMut, Destination, ErrorKind, Place, Pool};
use towline_tests::scarce::Scarce;

use crate::backends::Row;
use crate::content::{assert_frame, assert_message, bytes, message};
use crate::polls::{eventually, in_time};
use crate::suite::cases;

cases! {
    ANY:
        each_frame_arrives_in_its_destination,
        frames_may_be_discarded,
        invalid_destinations_are_returned,
        a_place_without_a_pool_is_unsupported,
        a_message_stays_after_a_buffer_too_small_for_it,
        a_message_without_memory_is_rejected_or_stays,
        pool_memory_returns_with_the_last_frame,
        idle_pool_memory_is_freed_after_a_time,
        a_message_larger_than_the_pool_arrives;
}

/// Below and above the threshold of messages that wait for an accept.
const LENS: [usize; 2] = [700, 70_000];

async fn each_frame_arrives_in_its_destination(row: &'static Row) {
    let pair = row.pair().await;
    let own = Pool::new(1 << 20);
    for len in LENS {
        let lengths = [len; 4];
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let named = BufferMut::with_capacity(len);
            let start = named.as_ptr();
            let destinations = vec![
                Destination::Buffer(named),
                Destination::Pool(own.clone()),
                Destination::Place(Place::Host),
                Destination::Discard,
            ];
            (start, incoming.accept_into(destinations).await.unwrap())
        };
        let (sent, (start, taken)) =
            in_time("destination", async { tokio::join!(pair.a.deliver(message(1, &lengths)), take) }).await;
        sent.unwrap();
        for (at, frame) in taken.frames()[..3].iter().enumerate() {
            assert_frame(frame, 1 + at, len);
        }
        assert_eq!(taken.frames()[0].as_ptr(), start);
        assert!(own.stats().in_use_bytes >= len, "the second frame is in the pool that was named");
        assert!(taken.frames()[3].is_empty());
    }
    assert_eq!(own.stats().in_use_bytes, 0, "and returns when it drops");
}

async fn frames_may_be_discarded(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        for kept in [None, Some(0), Some(2)] {
            let take = async {
                let incoming = pair.b.incoming().await.unwrap();
                let destination = |at| match kept {
                    Some(kept) if kept == at => Destination::Buffer(BufferMut::with_capacity(len)),
                    _ => Destination::Discard,
                };
                incoming.accept_into((0..3).map(destination).collect()).await.unwrap()
            };
            let sending = pair.a.deliver(message(1, &[len; 3]));
            let (sent, taken) = in_time("discarding", async { tokio::join!(sending, take) }).await;
            sent.expect("a message whose frames were discarded was not rejected");
            for (at, frame) in taken.frames().iter().enumerate() {
                match kept {
                    Some(kept) if kept == at => assert_frame(frame, 1 + at, len),
                    _ => assert!(frame.is_empty()),
                }
            }
        }
    }
}

async fn invalid_destinations_are_returned(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let buffer = |capacity| BufferMut::with_capacity(capacity);
        for wrong in [
            vec![],
            vec![buffer(len)],
            vec![buffer(len), buffer(len - 1)],
            vec![buffer(len), buffer(len), buffer(len)],
        ] {
            let starts: Vec<_> = wrong.iter().map(BufferMut::as_ptr).collect();
            let take = async {
                let incoming = pair.b.incoming().await.unwrap();
                incoming.accept_into(wrong.into_iter().map(Destination::Buffer).collect()).await.unwrap_err()
            };
            let sending = pair.a.deliver(message(1, &[len, len]));
            let (sent, failed) = in_time("a wrong destination", async { tokio::join!(sending, take) }).await;
            assert_eq!(sent.unwrap_err().kind(), ErrorKind::Rejected);
            assert_eq!(failed.error.kind(), ErrorKind::Invalid, "{}", failed.error);
            let returned = failed.returned.iter().map(|destination| match destination {
                Destination::Buffer(buffer) => buffer.as_ptr(),
                other => panic!("{other:?} returned"),
            });
            assert_eq!(returned.collect::<Vec<_>>(), starts);
        }
        let (sent, taken) = tokio::join!(pair.a.deliver(message(2, &[len])), pair.b.recv());
        sent.unwrap();
        assert_message(&taken.unwrap(), 2, &[len]);
    }
}

async fn a_place_without_a_pool_is_unsupported(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let destinations = vec![
                Destination::Buffer(BufferMut::with_capacity(len)),
                Destination::Place(Place::Cuda(7)),
                Destination::Discard,
            ];
            incoming.accept_into(destinations).await.unwrap_err()
        };
        let sending = pair.a.deliver(message(1, &[len; 3]));
        let (sent, failed) = in_time("a place without a pool", async { tokio::join!(sending, take) }).await;
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Rejected);
        assert_eq!(failed.error.kind(), ErrorKind::Unsupported, "{}", failed.error);
        assert!(failed.error.to_string().contains("cuda:7"), "{}", failed.error);
        assert_eq!(failed.returned.len(), 3);
        assert!(matches!(failed.returned[0], Destination::Buffer(_)));
    }
}

async fn a_message_stays_after_a_buffer_too_small_for_it(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let take = async {
            let small = BufferMut::with_capacity(len - 1);
            let start = small.as_ptr();
            let failed = pair.b.recv_into(small).await.unwrap_err();
            assert_eq!(failed.error.kind(), ErrorKind::TooLarge, "{}", failed.error);
            assert!(failed.error.to_string().contains(&len.to_string()), "{}", failed.error);
            assert_eq!((failed.returned.as_ptr(), failed.returned.capacity()), (start, len - 1));
            // Any receive call gets it next.
            pair.b.incoming().await.unwrap().accept().await.unwrap()
        };
        let sending = pair.a.deliver(message(4, &[len]));
        let (sent, taken) = in_time("a small buffer", async { tokio::join!(sending, take) }).await;
        sent.unwrap();
        assert_message(&taken, 4, &[len]);
    }
}

async fn a_message_without_memory_is_rejected_or_stays(row: &'static Row) {
    const LARGE: usize = 1 << 20;
    let pair = row.pair_with(|builder| builder.pool(Scarce::pool(128 << 10))).await;
    for turn in 0..20 {
        let taking = async {
            match turn % 3 {
                0 => match pair.b.recv().await {
                    // The message stays, for another destination.
                    Err(error) if error.kind() == ErrorKind::TooLarge => {
                        let incoming = pair.b.incoming().await.unwrap();
                        let destination = Destination::Buffer(BufferMut::with_capacity(LARGE));
                        Ok(incoming.accept_into(vec![destination, Destination::Discard]).await.unwrap())
                    }
                    taken => taken,
                },
                1 => pair.b.incoming().await.unwrap().accept().await,
                _ => {
                    let incoming = pair.b.incoming().await.unwrap();
                    let destinations = vec![Destination::Place(Place::Host), Destination::Discard];
                    incoming.accept_into(destinations).await.map_err(towline::Error::from)
                }
            }
        };
        let sending = pair.a.deliver(message(turn, &[LARGE, 10]));
        let (sent, taken) = in_time("the receipt", async { tokio::join!(sending, taking) }).await;
        // A backend that needs no pool memory delivers it.
        match (sent, taken) {
            (Ok(()), Ok(taken)) => assert_eq!(taken.frames().len(), 2),
            (Err(rejected), Err(error)) => {
                assert_eq!(rejected.kind(), ErrorKind::Rejected, "{rejected}");
                assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            }
            (sent, taken) => panic!("{sent:?} and {taken:?}"),
        }
        let small = async { tokio::join!(pair.a.deliver(message(turn, &[70_000])), pair.b.recv()) };
        let (sent, taken) = in_time("the next message", small).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), turn, &[70_000]);
    }
}

async fn pool_memory_returns_with_the_last_frame(row: &'static Row) {
    let pair = row.pair().await;
    let mut kept = Vec::new();
    for (number, len) in [100, 5000, 20_000, 300_000].into_iter().enumerate() {
        let (sent, taken) = tokio::join!(pair.a.deliver(message(number, &[len, len])), pair.b.recv());
        sent.unwrap();
        // The message is dropped, and the middle of one frame is kept.
        kept.push((number, len, taken.unwrap().frames()[1].slice(1..len - 1)));
    }
    for (number, len, frame) in &kept {
        assert_eq!(frame.to_vec().unwrap(), bytes(number + 1, *len)[1..len - 1]);
    }
    drop(kept);
    let in_use = || [&pair.near, &pair.far].map(|end| end.pool().stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0]).await;
}

async fn idle_pool_memory_is_freed_after_a_time(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.pool_idle_time(Duration::from_millis(50))).await;
    for len in [5000, 300_000] {
        let (sent, taken) = tokio::join!(pair.a.deliver(message(1, &[len])), pair.b.recv());
        sent.unwrap();
        assert_message(&taken.unwrap(), 1, &[len]);
        let idle = || [&pair.near, &pair.far].map(|end| end.pool().stats().idle_bytes);
        eventually("idle memory is freed", || idle() == [0, 0]).await;
    }
}

async fn a_message_larger_than_the_pool_arrives(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.pool(Pool::new(64 << 10))).await;
    let lengths = [1 << 20, 10, 3 << 20];
    let (sent, taken) = tokio::join!(pair.a.deliver(message(1, &lengths)), pair.b.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &lengths);
    assert!(pair.far.pool().stats().idle_bytes <= 64 << 10, "{:?}", pair.far.pool());
}
