//! Foreign frames: host memory that others may write at any time, as an interpreter's arrays. They are sent like
//! any other memory, and a write during the send affects nothing but the payload's content.

use std::time::Duration;

use towline::{Buffer, BufferMut, Caps, Connection, Destination, EAGER_LEN_MAX, ErrorKind, Message};
use towline_tests::foreign::Foreign;

use crate::backends::{Pair, Row};
use crate::content::{assert_bytes, assert_frame, assert_message, bytes, message};
use crate::polls::{eventually, in_time};
use crate::suite::cases;

cases! {
    ANY:
        foreign_frames_arrive_and_are_not_staged,
        foreign_frames_arrive_in_pool_memory,
        messages_may_mix_foreign_and_other_frames,
        a_foreign_frame_returns_from_a_rejection_and_a_lost_connection,
        a_close_waits_until_foreign_frames_have_left,
        #[core] a_write_during_sends_changes_content_only;
    CROSS_PROCESS:
        #[core] a_write_during_checked_sends_changes_content_only;
    ONE_SIDED:
        gets_and_puts_read_foreign_memory,
        #[core] a_write_during_gets_and_puts_changes_content_only;
}

const LENS: [usize; 3] = [8, 64 << 10, 4 << 20];
/// The values that are written during sends.
const WRITTEN: [u8; 2] = [0x11, 0x22];
const LIFETIME: Duration = Duration::from_secs(600);

/// Delivers one frame into named memory. Returns the bytes that the sender and the receiver copied for it, in
/// whole KiB: rings count records as well.
async fn deliver(pair: &Pair, frame: Buffer) -> [u64; 2] {
    let copied = || [&pair.a, &pair.b].map(|end| end.stats().bytes_copied);
    let (before, len) = (copied(), frame.len());
    let take = async {
        let incoming = pair.b.incoming().await.unwrap();
        incoming.accept_into(vec![Destination::Buffer(BufferMut::with_capacity(len))]).await.unwrap()
    };
    let sending = pair.a.deliver(Message::new("").with_frame(frame));
    let (sent, taken) = in_time("a frame", async { tokio::join!(sending, take) }).await;
    sent.unwrap();
    assert_frame(&taken.frames()[0], 1, len);
    let after = copied();
    [0, 1].map(|end| (after[end] - before[end]) >> 10 << 10)
}

async fn foreign_frames_arrive_and_are_not_staged(row: &'static Row) {
    // One pair for both: whether a link reads the peer's memory is decided when it opens.
    let pair = row.pair().await;
    let checked = pair.a.path().integrity() == "crc32c";
    for len in LENS {
        let should_be = deliver(&pair, bytes(1, len).into()).await;
        let is = deliver(&pair, Foreign::filled(&bytes(1, len))).await;
        let len = len as u64;
        if checked && len >= EAGER_LEN_MAX {
            assert_eq!(is, [should_be[0] + len, should_be[1]], "{len} bytes are read once, for the checksum");
        } else if len >= EAGER_LEN_MAX && row.caps.contains(Caps::MOVES_OWNERSHIP) {
            assert_eq!(is, [0, len], "{len} bytes are copied into the destination");
        } else {
            assert_eq!(is, should_be, "{len} bytes");
        }
    }
}

async fn foreign_frames_arrive_in_pool_memory(row: &'static Row) {
    let pair = row.pair().await;
    // The first messages wait for an accept; later ones may use pre-granted credit.
    for _ in 0..4 {
        for len in LENS {
            let frame = Foreign::filled(&bytes(1, len));
            let start = frame.as_ptr();
            let sending = pair.a.deliver(Message::new("").with_frame(frame));
            let (sent, taken) = in_time("a frame", async { tokio::join!(sending, pair.b.recv()) }).await;
            sent.unwrap();
            let taken = &taken.unwrap().into_parts().1[0];
            assert!(taken.as_slice().is_some() && taken.as_ptr() != start, "the receiver has its own memory");
            assert_frame(taken, 1, len);
        }
    }
    eventually("the sender's pool has its memory back", || pair.near.pool().stats().in_use_bytes == 0).await;
}

async fn messages_may_mix_foreign_and_other_frames(row: &'static Row) {
    let pair = row.pair().await;
    for len in [0, 1, 1000, 20_000, 300_000] {
        for turn in 0..2 {
            let frame = |at: usize| match at % 2 == turn {
                true => Foreign::filled(&bytes(at, len)),
                false => bytes(at, len).into(),
            };
            let sending = pair.a.deliver(Message::from_parts("mixed", (0..5).map(frame).collect()));
            let take = async {
                let incoming = pair.b.incoming().await.unwrap();
                assert!(incoming.frames().iter().all(|frame| frame.len == len));
                let discarded = |at| at == 2;
                let destination = |at| match discarded(at) {
                    true => Destination::Discard,
                    false => Destination::Buffer(BufferMut::with_capacity(len)),
                };
                incoming.accept_into((0..5).map(destination).collect()).await.unwrap()
            };
            let (sent, taken) = in_time("a message", async { tokio::join!(sending, take) }).await;
            sent.unwrap();
            for (at, frame) in taken.frames().iter().enumerate() {
                assert_frame(frame, at, if at == 2 { 0 } else { len });
            }
        }
    }
}

async fn a_foreign_frame_returns_from_a_rejection_and_a_lost_connection(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let rejecting = async { drop(pair.b.incoming().await.unwrap()) };
        let sending = pair.a.deliver(Message::new("").with_frame(Foreign::filled(&bytes(1, len))));
        let (sent, ()) = in_time("a rejection", async { tokio::join!(sending, rejecting) }).await;
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Rejected);
    }
    let frame = Foreign::filled(&bytes(1, 300_000));
    let start = frame.as_ptr();
    let a = pair.a.clone();
    let lost = tokio::spawn(async move { a.send(Message::new("").with_frame(frame)).await });
    let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();
    pair.a.abort();
    match in_time("the send", lost).await.unwrap() {
        Ok(receipt) => assert!(receipt.delivered().await.is_err()),
        Err(failed) => assert_eq!(failed.returned.frames()[0].as_ptr(), start, "the frame itself returns"),
    }
    drop(undecided);
}

async fn a_close_waits_until_foreign_frames_have_left(row: &'static Row) {
    let pair = row.pair().await;
    let a = pair.a.clone();
    let frame = Foreign::filled(&bytes(1, 300_000));
    let sent = tokio::spawn(async move { a.send(Message::new("").with_frame(frame)).await.map(drop) });
    let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
    let accept =
        async { incoming.accept_into(vec![Destination::Buffer(BufferMut::with_capacity(300_000))]).await };
    let (closed, taken) = in_time("a close", async { tokio::join!(pair.a.close(), accept) }).await;
    closed.unwrap();
    assert_frame(&taken.unwrap().frames()[0], 1, 300_000);
    in_time("the send", sent).await.unwrap().unwrap();
}

/// Asserts that every byte has one of the values that were written.
#[track_caller]
fn assert_written(actual: &[u8], len: usize) {
    assert_eq!(actual.len(), len);
    let wrong = actual.iter().position(|byte| !WRITTEN.contains(byte));
    assert_eq!(wrong, None, "of {len} bytes, one was never written by anyone");
}

async fn a_write_during_sends_changes_content_only(row: &'static Row) {
    let pair = row.pair().await;
    send_while_written(&pair.a, &pair.b).await;
}

async fn a_write_during_checked_sends_changes_content_only(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let address = match row.address().option("integrity") {
        Some(_) => row.address(),
        None => row.address().with_option("integrity", "crc32c").unwrap(),
    };
    let listener = far.listen(&address).await.unwrap();
    let both = async { tokio::join!(near.connect(listener.address()), listener.accept()) };
    let (a, b) = in_time("the connection", both).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.path().integrity(), b.path().integrity()), ("crc32c", "crc32c"));
    send_while_written(&a, &b).await;
    put_while_written(&a, &b).await;
}

/// Sends parts of memory that a thread writes all the time, between two frames of other memory.
async fn send_while_written(a: &Connection, b: &Connection) {
    const WHOLE: usize = 3 << 20;
    let memory = Foreign::of(WRITTEN[0], WHOLE);
    let writer = memory.write_always(WRITTEN);
    for turn in 0..6 {
        for len in [8, 1000, 20_000, 300_000, WHOLE - 1] {
            let part = memory.buffer().slice(1..=len);
            let frames = vec![bytes(2, 30).into(), part, bytes(3, 2000).into()];
            let sending = a.deliver(Message::from_parts("header", frames));
            let take = async {
                if turn % 2 == 0 {
                    return b.recv().await.unwrap();
                }
                let incoming = b.incoming().await.unwrap();
                let lens: Vec<_> = incoming.frames().iter().map(|frame| frame.len).collect();
                let destination = |len| Destination::Buffer(BufferMut::with_capacity(len));
                incoming.accept_into(lens.into_iter().map(destination).collect()).await.unwrap()
            };
            let (sent, taken) = in_time("a message", async { tokio::join!(sending, take) }).await;
            sent.unwrap();
            assert_eq!(taken.header(), "header");
            assert_frame(&taken.frames()[0], 2, 30);
            assert_written(taken.frames()[1].as_slice().unwrap(), len);
            assert_frame(&taken.frames()[2], 3, 2000);
        }
    }
    drop(writer);
    assert_usable(a, b).await;
}

/// Reads from a region of memory that a thread writes all the time, and puts parts of it.
async fn put_while_written(a: &Connection, b: &Connection) {
    const WHOLE: usize = 3 << 20;
    let memory = Foreign::of(WRITTEN[0], WHOLE);
    let writer = memory.write_always(WRITTEN);
    let readable = b.expose(memory.buffer(), LIFETIME).unwrap();
    for len in [8, 20_000, 300_000, WHOLE] {
        let got = in_time("get", a.get(&readable.remote(), 0, BufferMut::with_capacity(len))).await.unwrap();
        assert_written(got.as_slice().unwrap(), len);
        let writable = b.expose_mut(BufferMut::zeroed(len + 1), LIFETIME).unwrap();
        let part = memory.buffer().slice(..len);
        in_time("put", a.put(&writable.remote(), 1, part)).await.unwrap();
        let region = in_time("revoke", writable.revoke()).await;
        assert_written(&region.as_slice().unwrap()[1..], len);
        assert_eq!(region.as_slice().unwrap()[0], 0, "nothing is written before the range");
    }
    in_time("revoke", readable.revoke()).await;
    drop(writer);
    assert_usable(a, b).await;
}

async fn a_write_during_gets_and_puts_changes_content_only(row: &'static Row) {
    let pair = row.pair().await;
    put_while_written(&pair.a, &pair.b).await;
}

async fn gets_and_puts_read_foreign_memory(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let readable = pair.b.expose(Foreign::filled(&bytes(1, len)), LIFETIME).unwrap();
        let into = BufferMut::with_capacity(len - 3);
        let got = in_time("get", pair.a.get(&readable.remote(), 3, into)).await.unwrap();
        assert_bytes(got.as_slice().unwrap(), 1, 3);

        let writable = pair.b.expose_mut(BufferMut::zeroed(len), LIFETIME).unwrap();
        let from = Foreign::filled(&bytes(2, len));
        in_time("put", pair.a.put(&writable.remote(), 0, from)).await.unwrap();
        assert_bytes(in_time("revoke", writable.revoke()).await.as_slice().unwrap(), 2, 0);
        assert_frame(&in_time("revoke", readable.revoke()).await, 1, len);
    }
}

async fn assert_usable(a: &Connection, b: &Connection) {
    for (from, to) in [(a, b), (b, a)] {
        let both = async { tokio::join!(from.deliver(message(9, &[8, 100_000])), to.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 9, &[8, 100_000]);
    }
}
