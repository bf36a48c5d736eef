//! Messages arrive: every size, every number of frames, in order.

use std::sync::Arc;

use bytes::Bytes;
use towline::{Buffer, BufferMut, Connection, Destination, ErrorKind, FRAMES_MAX, HEADER_LEN_MAX, Message};

use crate::backends::{Pair, Row};
use crate::content::{assert_bytes, assert_frame, assert_message, bytes, message, number};
use crate::polls::{all, eventually, in_time};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        #[core] sizes_around_every_threshold,
        #[core] sizes_around_every_threshold_into_one_buffer,
        #[core] sizes_around_every_threshold_accepted,
        #[core] sizes_around_every_threshold_accepted_into_named_buffers,
        #[core] a_message_beyond_4_gib_of_one_warm_buffer,
        frames_of_every_number,
        the_most_frames_pass_and_one_more_is_too_large,
        the_longest_header_passes_and_one_more_byte_is_too_large,
        ten_thousand_messages_arrive_in_order,
        many_sends_in_flight_arrive_in_order,
        #[core] both_directions_at_once,
        frames_of_every_origin_arrive,
        frames_whose_owner_panics_on_drop_are_harmless,
        stats_count_sent_and_received_bytes,
        metrics_keep_the_sums_of_ended_connections;
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Each threshold, one byte less, and one more.
const SIZES: [usize; 15] = [
    0,
    1,
    16 * KIB - 1,
    16 * KIB,
    16 * KIB + 1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    MIB - 1,
    MIB,
    MIB + 1,
    4 * MIB - 1,
    4 * MIB,
    4 * MIB + 1,
    24 * MIB,
];

/// Sends messages of every size, alone and among small frames. `take` receives each.
async fn sizes<F>(row: &Row, take: impl Fn(Arc<Pair>, Vec<usize>) -> F)
where
    F: Future<Output = Message>,
{
    let pair = Arc::new(row.pair().await);
    for (number, size) in SIZES.into_iter().enumerate() {
        for lengths in [vec![size], vec![3, size, 0, 300]] {
            let what = format!("a message of {lengths:?}");
            let sending = pair.a.deliver(message(number, &lengths));
            let (sent, taken) =
                in_time(&what, async { tokio::join!(sending, take(pair.clone(), lengths.clone())) }).await;
            sent.unwrap();
            assert_message(&taken, number, &lengths);
        }
    }
}

async fn sizes_around_every_threshold(row: &'static Row) {
    sizes(row, |pair, _| async move { pair.b.recv().await.unwrap() }).await;
}

async fn sizes_around_every_threshold_into_one_buffer(row: &'static Row) {
    sizes(row, |pair, lengths| async move {
        let buffer = BufferMut::with_capacity(lengths.iter().sum());
        let mut end = buffer.as_ptr();
        let message = pair.b.recv_into(buffer).await.unwrap();
        for frame in message.frames().iter().filter(|frame| !frame.is_empty()) {
            assert_eq!(frame.as_ptr(), end, "frames are contiguous");
            end = end.wrapping_add(frame.len());
        }
        message
    })
    .await;
}

async fn sizes_around_every_threshold_accepted(row: &'static Row) {
    sizes(row, |pair, lengths| async move {
        let incoming = pair.b.incoming().await.unwrap();
        let announced: Vec<_> = incoming.frames().iter().map(|frame| frame.len).collect();
        assert_eq!(announced, lengths);
        assert_eq!(incoming.payload_len(), lengths.iter().sum::<usize>() as u64);
        incoming.accept().await.unwrap()
    })
    .await;
}

async fn sizes_around_every_threshold_accepted_into_named_buffers(row: &'static Row) {
    sizes(row, |pair, lengths| async move {
        let incoming = pair.b.incoming().await.unwrap();
        // Larger than needed, and not empty: the frame replaces its content.
        let destination = |len: &usize| BufferMut::from(vec![7; len + 5]);
        let destinations: Vec<_> = lengths.iter().map(destination).collect();
        let starts: Vec<_> = destinations.iter().map(BufferMut::as_ptr).collect();
        let destinations = destinations.into_iter().map(Destination::Buffer).collect();
        let message = incoming.accept_into(destinations).await.unwrap();
        for (frame, start) in message.frames().iter().zip(starts).filter(|(frame, _)| !frame.is_empty()) {
            assert_eq!(frame.as_ptr(), start, "a frame is where its destination was");
        }
        message
    })
    .await;
}

async fn a_message_beyond_4_gib_of_one_warm_buffer(row: &'static Row) {
    const LEN: usize = 64 * MIB;
    const FRAMES: usize = 66;
    let pair = row.pair().await;
    let warm = Buffer::from(bytes(1, LEN));
    let mut frames = vec![warm.clone(); FRAMES - 1];
    frames.push(warm.slice(1..));
    let message = Message::from_parts("large", frames);
    assert!(message.payload_len() > 1 << 32);
    usage::trim();
    usage::reset_peak();
    let before = usage::peak();

    let take = async {
        let incoming = pair.b.incoming().await?;
        let mut destinations = vec![Destination::Buffer(BufferMut::with_capacity(LEN))];
        destinations.extend((2..FRAMES).map(|_| Destination::Discard));
        destinations.push(Destination::Buffer(BufferMut::with_capacity(LEN)));
        Ok::<_, towline::Error>(incoming.accept_into(destinations).await?)
    };
    let (sent, taken) = tokio::join!(pair.a.deliver(message), take);
    sent.unwrap();
    let frames = taken.unwrap().into_parts().1;
    assert_eq!(frames.len(), FRAMES);
    assert_frame(&frames[0], 1, LEN);
    assert!(frames[1..FRAMES - 1].iter().all(Buffer::is_empty), "discarded frames are empty");
    let last = &frames[FRAMES - 1];
    assert_eq!(last.len(), LEN - 1);
    assert_bytes(last.as_slice().unwrap(), 1, 1);
    let growth = usage::peak().saturating_sub(before);
    assert!(growth < (2 * LEN + 32 * MIB) as u64, "{growth} bytes for two destinations of {LEN}");
}

async fn frames_of_every_number(row: &'static Row) {
    let pair = row.pair().await;
    let small: Vec<_> = (0..1000).map(|at| at * 7919 % 300).collect();
    let mixed: Vec<_> = (0..1000).map(|at| [0, 1, 100, 5000, 40_000][at % 5]).collect();
    let empty = vec![0; 1000];
    for (number, lengths) in [vec![], vec![0], vec![9], small, mixed, empty].into_iter().enumerate() {
        let (sent, taken) = in_time("a message", async {
            tokio::join!(pair.a.deliver(message(number, &lengths)), pair.b.recv())
        })
        .await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &lengths);
    }
}

async fn the_most_frames_pass_and_one_more_is_too_large(row: &'static Row) {
    let pair = row.pair().await;
    let whole = Buffer::from(bytes(3, FRAMES_MAX + 1));
    let frames: Vec<_> = (0..FRAMES_MAX + 1).map(|at| whole.slice(at..at + 1)).collect();

    let failed = pair.a.send(Message::from_parts("x", frames.clone())).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::TooLarge, "{}", failed.error);
    assert!(failed.error.to_string().contains("65536"), "names the limit: {}", failed.error);
    assert_eq!(failed.returned.frames().len(), FRAMES_MAX + 1);
    assert_eq!(failed.returned.frames()[9].as_ptr(), frames[9].as_ptr());

    let header = bytes(4, HEADER_LEN_MAX);
    let one_byte_each = Message::from_parts(header.clone(), frames[..FRAMES_MAX].to_vec());
    let empty = Message::from_parts(header.clone(), vec![Buffer::new(); FRAMES_MAX]);
    for message in [one_byte_each, empty] {
        let (sent, taken) =
            in_time("65,536 frames", async { tokio::join!(pair.a.deliver(message.clone()), pair.b.recv()) })
                .await;
        sent.unwrap();
        let taken = taken.unwrap();
        assert_eq!((taken.header().len(), taken.frames().len()), (header.len(), FRAMES_MAX));
        assert!(taken.header()[..] == header[..]);
        for (is, should) in taken.frames().iter().zip(message.frames()) {
            assert!(is.as_slice() == should.as_slice(), "the frames in their order");
        }
    }
}

async fn the_longest_header_passes_and_one_more_byte_is_too_large(row: &'static Row) {
    let pair = row.pair().await;
    for (payload, header_len) in [(0, HEADER_LEN_MAX), (100, HEADER_LEN_MAX), (MIB, HEADER_LEN_MAX)] {
        let message = Message::new(bytes(1, header_len)).with_frame(bytes(2, payload));
        let (sent, taken) =
            in_time("a long header", async { tokio::join!(pair.a.deliver(message), pair.b.recv()) }).await;
        sent.unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.header().len(), header_len);
        assert_bytes(taken.header(), 1, 0);
        assert_frame(&taken.frames()[0], 2, payload);
    }
    let frame = Buffer::from(bytes(4, 10));
    let start = frame.as_ptr();
    let message = Message::new(bytes(1, HEADER_LEN_MAX + 1)).with_frame(frame);
    let failed = pair.a.send(message).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::TooLarge, "{}", failed.error);
    assert_eq!(failed.returned.frames()[0].as_ptr(), start, "the message returns");
}

/// Mostly small, and sometimes large.
fn lengths(number: usize) -> Vec<usize> {
    match number {
        _ if number.is_multiple_of(1000) => vec![3 * MIB],
        _ if number.is_multiple_of(100) => vec![40_000, 0, 17],
        _ if number.is_multiple_of(7) => vec![],
        _ => vec![number % 512],
    }
}

async fn take_in_order(from: &Connection, count: usize) {
    for number in 0..count {
        let message = in_time("recv", from.recv()).await.unwrap();
        assert_message(&message, number, &lengths(number));
    }
}

async fn ten_thousand_messages_arrive_in_order(row: &'static Row) {
    const COUNT: usize = 10_000;
    let pair = row.pair().await;
    let a = pair.a.clone();
    let sending = tokio::spawn(async move {
        for number in 0..COUNT {
            a.send(message(number, &lengths(number))).await.unwrap();
        }
    });
    take_in_order(&pair.b, COUNT).await;
    sending.await.unwrap();
}

async fn many_sends_in_flight_arrive_in_order(row: &'static Row) {
    const COUNT: usize = 256;
    let pair = row.pair().await;
    let sending = all((0..COUNT).map(|number| pair.a.deliver(message(number, &lengths(number)))));
    let (delivered, ()) =
        in_time("256 messages", async { tokio::join!(sending, take_in_order(&pair.b, COUNT)) }).await;
    assert_eq!(delivered.into_iter().filter(Result::is_ok).count(), COUNT);
}

async fn both_directions_at_once(row: &'static Row) {
    const COUNT: usize = 6;
    const LEN: usize = 8 * MIB;
    let pair = row.pair().await;
    let send = |from: &Connection| {
        let from = from.clone();
        async move { all((0..COUNT).map(|number| from.deliver(message(number, &[LEN])))).await }
    };
    let take = |from: &Connection| {
        let from = from.clone();
        async move {
            for number in 0..COUNT {
                assert_message(&from.recv().await.unwrap(), number, &[LEN]);
            }
        }
    };
    let everything = async { tokio::join!(send(&pair.a), send(&pair.b), take(&pair.a), take(&pair.b)) };
    let (from_a, from_b, (), ()) = in_time("large messages both ways", everything).await;
    assert_eq!(from_a.into_iter().chain(from_b).filter(Result::is_ok).count(), 2 * COUNT);
}

async fn frames_of_every_origin_arrive(row: &'static Row) {
    let pair = row.pair().await;
    let pooled = {
        let mut buffer = pair.near.pool().take(50_000).unwrap();
        buffer.extend_from_slice(&bytes(5, 50_000)).unwrap();
        buffer.freeze()
    };
    let frames = vec![
        Buffer::from(bytes(1, 20_000)),
        Buffer::from("static"),
        Buffer::from(String::from("string")),
        Buffer::from(bytes(4, 100)).slice(10..90),
        pooled.slice(1..),
        // A received frame is sent on.
        {
            let (sent, taken) = tokio::join!(pair.b.deliver(message(6, &[30_000])), pair.a.recv());
            sent.unwrap();
            taken.unwrap().frames()[0].clone()
        },
    ];
    let (sent, taken) = tokio::join!(pair.a.deliver(Message::from_parts("", frames)), pair.b.recv());
    sent.unwrap();
    let frames = taken.unwrap().into_parts().1;
    assert_frame(&frames[0], 1, 20_000);
    assert_eq!(frames[1].to_vec().unwrap(), b"static");
    assert_eq!(frames[2].to_vec().unwrap(), b"string");
    assert_bytes(&frames[3].to_vec().unwrap(), 4, 10);
    assert_bytes(&frames[4].to_vec().unwrap(), 5, 1);
    assert_frame(&frames[5], 6, 30_000);
}

async fn frames_whose_owner_panics_on_drop_are_harmless(row: &'static Row) {
    struct Owner(Vec<u8>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            panic!("planned");
        }
    }
    let pair = row.pair().await;
    for (seed, len) in [(1, 700), (2, 20_000), (3, 2 * MIB)] {
        let frame = Buffer::from(Bytes::from_owner(Owner(bytes(seed, len))));
        // The caller, the driver or the receiver drops its last handle.
        let sending = pair.a.send(Message::from_parts("", vec![frame]));
        let both = async { tokio::join!(sending, pair.b.recv()) };
        let (receipt, taken) = in_time("send and recv", both).await;
        let (receipt, taken) = (receipt.unwrap(), taken.unwrap());
        assert_frame(&taken.frames()[0], seed, len);
        drop(taken);
        in_time("its receipt", receipt.delivered()).await.unwrap();
    }
    for at in 0..100 {
        let (sent, taken) =
            in_time("more", async { tokio::join!(pair.a.deliver(message(at, &[700])), pair.b.recv()) }).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), at, &[700]);
    }
}

async fn stats_count_sent_and_received_bytes(row: &'static Row) {
    let pair = row.pair().await;
    for len in [0, 1000, 100_000] {
        let (sent, taken) = tokio::join!(pair.a.deliver(message(0, &[len, 5])), pair.b.recv());
        sent.unwrap();
        assert_eq!(number(taken.unwrap().header()), 0);
    }
    let (sent, received) = (pair.a.stats(), pair.b.stats());
    assert_eq!((sent.messages_sent, sent.bytes_sent), (3, 101_015));
    assert_eq!((received.messages_received, received.bytes_received), (3, 101_015));
    assert_eq!((sent.messages_received, received.messages_sent), (0, 0));
}

async fn metrics_keep_the_sums_of_ended_connections(row: &'static Row) {
    let pair = row.pair().await;
    for _ in 0..3 {
        let (sent, taken) = tokio::join!(pair.a.deliver(message(0, &[1000])), pair.b.recv());
        sent.unwrap();
        taken.unwrap();
    }
    let metrics = pair.near.metrics();
    let has_line = |line: &str| metrics.text().lines().any(|printed| printed == line);
    let sums =
        ["towline_sent_bytes_sum 3000.0", "towline_sent_bytes_count 3", "towline_deliver_seconds_count 3"];
    for line in ["towline_connections 1"].into_iter().chain(sums) {
        assert!(has_line(line), "no {line} in {}", metrics.text());
    }
    assert!(metrics.text().contains("towline_connection_sent_bytes_count{connection="));

    drop((pair.a, pair.b));
    eventually("no connection", || has_line("towline_connections 0")).await;
    for line in sums.into_iter().chain(["towline_connections_ended_total{how=\"closed\"} 1"]) {
        assert!(has_line(line), "no {line} in {}", metrics.text());
    }
    assert!(!metrics.text().contains("towline_connection_sent_bytes_count{connection="));
}
