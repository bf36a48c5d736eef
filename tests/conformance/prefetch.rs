//! A connection that prefetches receives ahead of its callers: in order, within bounds, in writable memory.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use towline::{Arena, BufferMut, Connection, ErrorKind, Message, Pool, Prefetch};
use towline_tests::scarce::Scarce;

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::polls::{eventually, in_time};
use crate::suite::cases;

cases! {
    ANY:
        prefetched_messages_keep_their_order,
        the_driver_receives_while_no_caller_waits,
        a_prefetching_connection_bounds_its_messages,
        a_prefetching_connection_bounds_its_bytes,
        a_waiting_caller_gets_a_message_beyond_the_bounds,
        a_caller_is_woken_once_for_each_message,
        prefetched_frames_are_writable,
        a_sender_keeps_what_it_still_holds,
        a_cancelled_receive_loses_no_prefetched_message,
        only_recv_receives_on_a_prefetching_connection,
        prefetched_messages_outlive_the_peers_close,
        an_abort_ends_prefetching,
        dropping_a_prefetching_connection_closes_it,
        #[core] a_served_caller_lets_nothing_beyond_the_bounds_in,
        prefetching_begins_behind_a_pending_receive;
    MOVES_OWNERSHIP:
        a_message_stays_while_there_is_no_memory_for_its_copy;
    LENDS:
        writable_frames_are_copied_out_of_an_arena;
}

/// Eager, streamed and fetched payload.
const LENS: [usize; 4] = [0, 700, 20_000, 400_000];

async fn prefetched_messages_keep_their_order(row: &'static Row) {
    let pair = row.pair().await;
    for (end, writable) in [(&pair.a, false), (&pair.b, true)] {
        end.prefetch(Prefetch::default().messages(3).writable(writable)).unwrap();
    }
    let send = async |from: &Connection| {
        for number in 0..60 {
            from.send(message(number, &[LENS[number % 4], LENS[number / 4 % 4]])).await.unwrap();
        }
    };
    let receive = async |to: &Connection| {
        for number in 0..60 {
            let received = to.recv().await.unwrap();
            assert_message(&received, number, &[LENS[number % 4], LENS[number / 4 % 4]]);
        }
    };
    let both = async { tokio::join!(send(&pair.a), send(&pair.b), receive(&pair.a), receive(&pair.b)) };
    in_time("60 messages each way", both).await;
}

async fn the_driver_receives_while_no_caller_waits(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default()).unwrap();
    assert!(pair.b.try_recv().unwrap().is_none());
    for len in LENS {
        // `deliver` ends once the receiver has the payload, and no caller of the receiver waits.
        in_time("delivery", pair.a.deliver(message(len, &[len]))).await.unwrap();
        let mut received = None;
        eventually("the message is queued", || {
            received = pair.b.try_recv().unwrap();
            received.is_some()
        })
        .await;
        assert_message(&received.unwrap(), len, &[len]);
    }
}

async fn a_prefetching_connection_bounds_its_messages(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().messages(2)).unwrap();
    let mut receipts = Vec::new();
    for number in 0..5 {
        receipts.push(in_time("send", pair.a.send(message(number, &[100]))).await.unwrap());
    }
    for receipt in receipts.drain(..2) {
        in_time("receipts of the first two", receipt.delivered()).await.unwrap();
    }
    let mut third = pin!(receipts.remove(0).delivered());
    let early = tokio::time::timeout(Duration::from_millis(200), third.as_mut()).await;
    assert!(early.is_err(), "the third message is received ahead, beyond the bound: {early:?}");
    for number in 0..5 {
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), number, &[100]);
    }
    in_time("receipt of the third", third).await.unwrap();
}

async fn a_prefetching_connection_bounds_its_bytes(row: &'static Row) {
    const LEN: usize = 300_000;
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().messages(10).bytes(2 * LEN as u64)).unwrap();
    let far = pair.b.clone();
    let deliver = async |number| pair.a.deliver(message(number, &[LEN])).await;
    for number in 0..2 {
        in_time("delivery within the bound", deliver(number)).await.unwrap();
    }
    let mut third = pin!(deliver(2));
    let early = tokio::time::timeout(Duration::from_millis(200), third.as_mut()).await;
    assert!(early.is_err(), "600,000 bytes are ahead, and the third message is received: {early:?}");
    let receive = async {
        for number in 0..3 {
            assert_message(&far.recv().await.unwrap(), number, &[LEN]);
        }
    };
    let (sent, ()) = in_time("the third message", async { tokio::join!(third, receive) }).await;
    sent.unwrap();
}

async fn a_waiting_caller_gets_a_message_beyond_the_bounds(row: &'static Row) {
    const LEN: usize = 1 << 20;
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().bytes(1000)).unwrap();
    let mut delivery = pin!(pair.a.deliver(message(7, &[LEN])));
    let early = tokio::time::timeout(Duration::from_millis(200), delivery.as_mut()).await;
    assert!(early.is_err(), "1 MiB is received ahead of the callers: {early:?}");
    let (sent, received) = in_time("1 MiB", async { tokio::join!(delivery, pair.b.recv()) }).await;
    sent.unwrap();
    assert_message(&received.unwrap(), 7, &[LEN]);
}

/// The caller of the first message must not count for the second, which exceeds the bound.
async fn a_served_caller_lets_nothing_beyond_the_bounds_in(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().bytes(1000)).unwrap();
    for number in 0..50 {
        let mut large = Box::pin(pair.a.deliver(message(number, &[200_000])));
        let send = async {
            pair.a.send(message(number, &[900])).await.unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(2), large.as_mut()).await.is_err());
        };
        // The caller waits before the messages come.
        let (received, ()) = in_time("a small message", async { tokio::join!(pair.b.recv(), send) }).await;
        assert_message(&received.unwrap(), number, &[900]);
        let early = tokio::time::timeout(Duration::from_millis(3), large.as_mut()).await;
        assert!(early.is_err(), "round {number}: 200,000 bytes are received for no caller: {early:?}");
        let both = async { tokio::join!(large, pair.b.recv()) };
        let (sent, received) = in_time("a large message", both).await;
        sent.unwrap();
        assert_message(&received.unwrap(), number, &[200_000]);
    }
}

async fn a_message_stays_while_there_is_no_memory_for_its_copy(row: &'static Row) {
    let source = Scarce::source(1000);
    let near = row.endpoint();
    let far = row.builder().pool(Pool::with_source(source.clone(), 0)).build().unwrap();
    let listener = far.listen(&row.address()).await.unwrap();
    let (a, b) = connect_pair(&near, &listener).await;
    b.prefetch(Prefetch::default().writable(true)).unwrap();
    // The sender keeps its frame, so the receiver's is a copy.
    let kept = message(3, &[70_000]);
    let sent = Message::from_parts(kept.header().clone(), kept.frames().to_vec());
    in_time("send", a.send(sent)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(in_time("recv", b.recv()).await.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    source.set_len_max(1 << 20);
    assert_message(&in_time("recv", b.recv()).await.unwrap(), 3, &[70_000]);
}

/// Counts how often it is woken.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn a_caller_is_woken_once_for_each_message(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default()).unwrap();
    for len in LENS {
        let wakes = Arc::new(CountingWaker::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut receive = pin!(pair.b.recv());
        assert!(receive.as_mut().poll(&mut cx).is_pending());
        in_time("delivery", pair.a.deliver(message(len, &[len]))).await.unwrap();
        eventually("the caller is woken", || wakes.0.load(Ordering::SeqCst) > 0).await;
        let Poll::Ready(received) = receive.poll(&mut cx) else {
            panic!("woken before the message was here")
        };
        assert_message(&received.unwrap(), len, &[len]);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "wake-ups for {len} bytes");
    }
}

/// Returns the only frame of `message` as writable memory.
fn writable_frame(message: Message) -> BufferMut {
    let mut frames = message.into_parts().1;
    assert_eq!(frames.len(), 1);
    frames.remove(0).try_into_mut().expect("the frame is writable, and no one else has it")
}

async fn prefetched_frames_are_writable(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().writable(true)).unwrap();
    // Twice, so that credit granted in between streams the second ahead.
    for _ in 0..2 {
        for len in [16 << 10, 70_000, 400_000] {
            let (sent, received) =
                in_time("message", async { tokio::join!(pair.a.send(message(3, &[len])), pair.b.recv()) })
                    .await;
            sent.unwrap();
            let received = received.unwrap();
            assert_message(&received, 3, &[len]);
            let mut frame = writable_frame(received);
            frame.as_mut_slice().unwrap().fill(9);
            assert_eq!(frame.len(), len);
        }
    }
}

/// Within a process the receiver gets the sender's buffer. It must not write what the sender still reads.
async fn a_sender_keeps_what_it_still_holds(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().writable(true)).unwrap();
    let kept = message(3, &[70_000]);
    let sent = Message::from_parts(kept.header().clone(), kept.frames().to_vec());
    let (sent, received) = in_time("message", async { tokio::join!(pair.a.send(sent), pair.b.recv()) }).await;
    sent.unwrap();
    writable_frame(received.unwrap()).as_mut_slice().unwrap().fill(9);
    assert_message(&kept, 3, &[70_000]);
}

async fn writable_frames_are_copied_out_of_an_arena(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().writable(true)).unwrap();
    let arena = Arena::new(1 << 20).unwrap();
    let mut tensor = arena.take(70_000).unwrap();
    tensor.resize(70_000, 5).unwrap();
    let kept = tensor.freeze();
    let lent = Message::new("lent").with_frame(kept.clone());
    let (sent, received) = in_time("message", async { tokio::join!(pair.a.send(lent), pair.b.recv()) }).await;
    sent.unwrap();
    let mut frame = writable_frame(received.unwrap());
    assert_eq!(frame.as_slice().unwrap(), kept.as_slice().unwrap());
    frame.as_mut_slice().unwrap().fill(9);
    assert!(kept.as_slice().unwrap().iter().all(|byte| *byte == 5), "the sender's memory is unchanged");
}

async fn a_cancelled_receive_loses_no_prefetched_message(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default()).unwrap();
    for number in 0..20 {
        let mut cancelled = Box::pin(pair.b.recv());
        let mut waiting = Box::pin(pair.b.recv());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(cancelled.as_mut().poll(&mut cx).is_pending() && waiting.as_mut().poll(&mut cx).is_pending());
        in_time("delivery", pair.a.deliver(message(number, &[20_000]))).await.unwrap();
        drop(cancelled);
        assert_message(&in_time("recv", waiting).await.unwrap(), number, &[20_000]);
    }
}

async fn only_recv_receives_on_a_prefetching_connection(row: &'static Row) {
    let pair = row.pair().await;
    assert_eq!(pair.b.try_recv().unwrap_err().kind(), ErrorKind::Invalid);
    pair.b.prefetch(Prefetch::default()).unwrap();
    assert_eq!(pair.b.prefetch(Prefetch::default()).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pair.b.incoming().await.unwrap_err().kind(), ErrorKind::Invalid);
    let failed = pair.b.recv_into(BufferMut::with_capacity(10)).await.unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.capacity()), (ErrorKind::Invalid, 10));
    in_time("send", pair.a.send(message(1, &[10]))).await.unwrap();
    assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), 1, &[10]);
}

async fn prefetched_messages_outlive_the_peers_close(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().messages(4)).unwrap();
    for number in 0..3 {
        in_time("delivery", pair.a.deliver(message(number, &[20_000]))).await.unwrap();
    }
    in_time("close", pair.a.close()).await.unwrap();
    for number in 0..3 {
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), number, &[20_000]);
    }
    for _ in 0..2 {
        assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(pair.b.try_recv().unwrap_err().kind(), ErrorKind::Closed);
    }
}

async fn an_abort_ends_prefetching(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default()).unwrap();
    let mut receive = pin!(pair.b.recv());
    assert!(receive.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    pair.b.abort();
    assert_eq!(in_time("the waiting caller", receive).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(in_time("a later caller", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn dropping_a_prefetching_connection_closes_it(row: &'static Row) {
    let pair = row.pair().await;
    pair.b.prefetch(Prefetch::default().messages(1)).unwrap();
    // One message is ahead, and another one waits for room.
    for number in 0..2 {
        in_time("send", pair.a.send(message(number, &[100]))).await.unwrap();
    }
    eventually("a message is ahead", || pair.b.stats().messages_received > 0).await;
    drop(pair.b);
    let ended = in_time("the peer's end", pair.a.recv()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Closed);
}

async fn prefetching_begins_behind_a_pending_receive(row: &'static Row) {
    let pair = row.pair().await;
    let mut first = pin!(pair.b.recv());
    assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    pair.b.prefetch(Prefetch::default()).unwrap();
    let send = async {
        for number in 0..3 {
            pair.a.send(message(number, &[20_000])).await.unwrap();
        }
    };
    let receive = async {
        assert_message(&first.await.unwrap(), 0, &[20_000]);
        for number in 1..3 {
            assert_message(&pair.b.recv().await.unwrap(), number, &[20_000]);
        }
    };
    in_time("three messages", async { tokio::join!(send, receive) }).await;
}
