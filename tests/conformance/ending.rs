//! The end of a connection ends all of its operations, soon, and returns their memory.

use std::pin::pin;
use std::time::{Duration, Instant};

use towline::{BufferMut, Destination, ErrorKind, Message};

use crate::backends::{Pair, Row, connect_pair};
use crate::content::{assert_message, bytes, message};
use crate::polls::{all, eventually, in_time, pending, polled, within};
use crate::stuck::Stuck;
use crate::suite::cases;

cases! {
    ANY:
        close_flushes_everything_submitted,
        messages_before_a_close_can_be_received_after_it,
        large_messages_before_a_close_can_be_received_after_it,
        closing_twice_succeeds,
        both_ends_may_close_at_once,
        the_last_handle_dropped_closes,
        a_dropped_endpoint_leaves_its_connections_alive,
        closing_an_endpoint_closes_every_connection,
        an_undecided_incoming_ends_with_its_connection,
        operations_after_the_end_fail_with_their_memory,
        a_runtime_dropped_during_calls_leaves_the_connection_usable,
        a_dropped_listener_leaves_its_connections_alive;
    FLOW_CONTROL:
        abort_returns_all_memory_at_both_ends,
        close_gives_up_after_linger,
        two_closes_share_one_linger,
        both_ends_close_with_an_undecided_message;
}

/// Limit for an end of any kind.
const END_TIME: Duration = Duration::from_secs(3);

async fn close_flushes_everything_submitted(row: &'static Row) {
    const COUNT: usize = 60;
    let lengths = |number: usize| [[0, 500, 20_000, 3 << 20][number % 4]];
    let pair = row.pair().await;
    let mut sends: Vec<_> =
        (0..COUNT).map(|number| Box::pin(pair.a.deliver(message(number, &lengths(number))))).collect();
    for send in &mut sends {
        // Submitted, but not awaited.
        assert!(polled(send.as_mut(), 1).await.is_none_or(|sent| sent.is_ok()));
    }
    drop(sends);
    let taking = async {
        for number in 0..COUNT {
            assert_message(&pair.b.recv().await.unwrap(), number, &lengths(number));
        }
        pair.b.recv().await.unwrap_err()
    };
    let (closed, end) = in_time("a close", async { tokio::join!(pair.a.close(), taking) }).await;
    closed.unwrap();
    assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
}

async fn messages_before_a_close_can_be_received_after_it(row: &'static Row) {
    let pair = row.pair().await;
    for number in 0..50 {
        in_time("send", pair.a.send(message(number, &[number * 100]))).await.unwrap();
    }
    in_time("close", pair.a.close()).await.unwrap();
    for number in 0..50 {
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), number, &[number * 100]);
    }
    assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn large_messages_before_a_close_can_be_received_after_it(row: &'static Row) {
    const LEN: usize = 50_000;
    let pair = row.pair().await;
    // A receiver that waits for large messages may pre-grant credit for the next ones.
    for number in 0..3 {
        let both = async { tokio::join!(pair.a.deliver(message(number, &[LEN])), pair.b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[LEN]);
    }
    // As many as are sent without an accept.
    let mut sent = 0;
    while sent < 20 {
        let next = message(sent, &[LEN]);
        match tokio::time::timeout(Duration::from_millis(500), pair.a.send(next)).await {
            Ok(done) => drop(done.unwrap()),
            Err(_) => break,
        }
        sent += 1;
    }
    if sent < 20 {
        // The last send waits. It is submitted too, and received while the close waits for it.
        sent += 1;
    }
    let taking = async {
        if sent == 20 {
            // All of them have left: the close arrives before the first is received.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for number in 0..sent {
            assert_message(&pair.b.recv().await.unwrap(), number, &[LEN]);
        }
        pair.b.recv().await.unwrap_err()
    };
    let (closed, end) = in_time("close", async { tokio::join!(pair.a.close(), taking) }).await;
    closed.unwrap();
    for _ in 0..2 {
        assert_eq!(end.kind(), ErrorKind::Closed);
        assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

async fn closing_twice_succeeds(row: &'static Row) {
    let pair = row.pair().await;
    let (first, second) =
        in_time("two at once", async { tokio::join!(pair.a.close(), pair.a.close()) }).await;
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    in_time("a third", pair.a.close()).await.unwrap();
    assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    in_time("the peer's close", pair.b.close()).await.unwrap();
}

async fn both_ends_may_close_at_once(row: &'static Row) {
    for _ in 0..20 {
        let pair = row.pair().await;
        in_time("send", pair.a.send(message(1, &[10]))).await.unwrap();
        let (a, b) = within(END_TIME, "both", async { tokio::join!(pair.a.close(), pair.b.close()) }).await;
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
    }
}

async fn the_last_handle_dropped_closes(row: &'static Row) {
    let Pair { a, b, near: _near, far: _far, .. } = row.pair().await;
    for number in 0..20 {
        in_time("send", a.send(message(number, &[1000]))).await.unwrap();
    }
    // Submitted just before the last handle is dropped.
    let last = message(20, &[1000]);
    drop(polled(pin!(a.send(last)), 1).await);
    let other = a.clone();
    drop(a);
    for number in 0..10 {
        assert_message(&in_time("recv", b.recv()).await.unwrap(), number, &[1000]);
    }
    let (sending, receiving) = other.split();
    drop(sending);
    drop(receiving);
    for number in 10..21 {
        assert_message(&in_time("recv", b.recv()).await.unwrap(), number, &[1000]);
    }
    assert_eq!(in_time("the end", b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn a_dropped_endpoint_leaves_its_connections_alive(row: &'static Row) {
    let Pair { a, b, near, far, listener } = row.pair().await;
    let began = Instant::now();
    drop((near, far, listener));
    assert!(began.elapsed() < Duration::from_millis(200), "dropping never blocks");
    for number in 0..10 {
        let lengths = [number * 20_000];
        let both = async { tokio::join!(a.deliver(message(number, &lengths)), b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &lengths);
    }
    in_time("close", a.close()).await.unwrap();
    assert_eq!(in_time("the end", b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn closing_an_endpoint_closes_every_connection(row: &'static Row) {
    let pair = row.pair().await;
    let mut ends = vec![(pair.a.clone(), pair.b.clone())];
    for _ in 0..4 {
        ends.push(connect_pair(&pair.near, &pair.listener).await);
    }
    for (a, _) in &ends {
        in_time("send", a.send(message(1, &[100]))).await.unwrap();
    }
    within(END_TIME, "closing the endpoint", pair.near.close()).await;
    for (a, b) in &ends {
        assert_message(&in_time("recv", b.recv()).await.unwrap(), 1, &[100]);
        assert_eq!(in_time("the end", b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(a.send(message(2, &[])).await.unwrap_err().error.kind(), ErrorKind::Closed);
    }
}

async fn abort_returns_all_memory_at_both_ends(row: &'static Row) {
    for sender_ends in [true, false] {
        let pair = row.pair().await;
        let stuck = Stuck::on(&pair.a).await;
        let mut other = pin!(pair.b.close());
        if sender_ends {
            pair.a.abort();
            stuck.assert_ended(END_TIME, &[ErrorKind::Closed]).await;
        } else {
            pair.b.abort();
            stuck.assert_ended(END_TIME, &[ErrorKind::PeerLost, ErrorKind::Closed]).await;
        }
        // The other end detects the abort too.
        let _ = within(END_TIME, "the other end's close", other.as_mut()).await;
        for end in [&pair.a, &pair.b] {
            let failed = within(END_TIME, "send", end.send(message(1, &[5]))).await.unwrap_err();
            assert!(matches!(failed.error.kind(), ErrorKind::Closed | ErrorKind::PeerLost), "{failed}");
        }
        let in_use = || pair.near.pool().stats().in_use_bytes;
        eventually("the sender's pool has its memory back", || in_use() == 0).await;
    }
}

async fn close_gives_up_after_linger(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.linger(Duration::from_millis(400))).await;
    let stuck = Stuck::on(&pair.a).await;
    let began = Instant::now();
    let error = within(END_TIME, "an unanswered close", pair.a.close()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(350), "it waited for {:?}", began.elapsed());
    stuck.assert_ended(END_TIME, &[ErrorKind::TimedOut, ErrorKind::Closed]).await;
}

async fn two_closes_share_one_linger(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.linger(Duration::from_millis(400))).await;
    let stuck = Stuck::on(&pair.a).await;
    let both = async { tokio::join!(pair.a.close(), pair.a.close()) };
    let (first, second) = within(END_TIME, "two unanswered closes", both).await;
    for closed in [first, second] {
        assert_eq!(closed.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    stuck.assert_ended(END_TIME, &[ErrorKind::TimedOut, ErrorKind::Closed]).await;
}

async fn both_ends_close_with_an_undecided_message(row: &'static Row) {
    for len in [100, 100_000] {
        let pair = row.pair().await;
        let message = message(1, &[len]);
        let start = message.frames()[0].as_ptr();
        let mut sending = pin!(pair.a.send(message));
        let sent = polled(sending.as_mut(), 3).await;
        let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();
        let began = Instant::now();
        let both = async { tokio::join!(pair.b.close(), pair.a.close()) };
        let (b, a) = within(END_TIME, "both closes", both).await;
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?} after {:?}", began.elapsed());
        let sent = match sent {
            Some(sent) => sent,
            None => within(END_TIME, "the send", sending).await,
        };
        match sent {
            Ok(receipt) => assert!(within(END_TIME, "its receipt", receipt.delivered()).await.is_err()),
            Err(failed) => {
                assert_eq!(failed.error.kind(), ErrorKind::Closed, "{failed}");
                assert_eq!(failed.returned.frames()[0].as_ptr(), start);
            }
        }
        drop(undecided);
    }
}

async fn an_undecided_incoming_ends_with_its_connection(row: &'static Row) {
    for len in [100, 100_000] {
        for sender_ends in [true, false] {
            let pair = row.pair().await;
            let a = pair.a.clone();
            let sending = tokio::spawn(async move { a.deliver(message(1, &[len])).await });
            let waiting = in_time("incoming", pair.b.incoming()).await.unwrap();
            if sender_ends {
                pair.a.abort()
            } else {
                pair.b.abort()
            }
            let error = within(END_TIME, "the sender", sending).await.unwrap().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::PeerLost), "{error}");

            let destination = BufferMut::with_capacity(len);
            let start = destination.as_ptr();
            let accepting = waiting.accept_into(vec![Destination::Buffer(destination)]);
            match within(END_TIME, "accept", accepting).await {
                // Its payload had already arrived.
                Ok(taken) => assert_message(&taken, 1, &[len]),
                Err(failed) => match &failed.returned[..] {
                    [Destination::Buffer(buffer)] => assert_eq!(buffer.as_ptr(), start),
                    other => panic!("{other:?} returned"),
                },
            }
        }
    }
}

async fn operations_after_the_end_fail_with_their_memory(row: &'static Row) {
    let pair = row.pair().await;
    let region = pair.b.expose(bytes(1, 100).into(), Duration::from_secs(60)).ok();
    in_time("close", pair.a.close()).await.unwrap();
    assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    for end in [&pair.a, &pair.b] {
        let message = message(1, &[50_000]);
        let start = message.frames()[0].as_ptr();
        let failed = within(END_TIME, "send", end.send(message)).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::Closed, "{failed}");
        assert_eq!(failed.returned.frames()[0].as_ptr(), start);

        let buffer = BufferMut::with_capacity(100);
        let start = buffer.as_ptr();
        let failed = within(END_TIME, "recv_into", end.recv_into(buffer)).await.unwrap_err();
        assert_eq!((failed.error.kind(), failed.returned.as_ptr()), (ErrorKind::Closed, start));
        assert_eq!(within(END_TIME, "recv", end.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(within(END_TIME, "incoming", end.incoming()).await.is_err());
        within(END_TIME, "close", end.close()).await.unwrap();

        if let Some(region) = &region {
            let into = BufferMut::with_capacity(100);
            let start = into.as_ptr();
            let failed = within(END_TIME, "get", end.get(&region.remote(), 0, into)).await.unwrap_err();
            assert_eq!((failed.error.kind(), failed.returned.as_ptr()), (ErrorKind::Closed, start));
        }
    }
    if let Some(region) = region {
        assert_eq!(in_time("revoke", region.revoke()).await.to_vec().unwrap(), bytes(1, 100));
    }
}

async fn a_runtime_dropped_during_calls_leaves_the_connection_usable(row: &'static Row) {
    let pair = row.pair().await;
    for turn in 0..10 {
        let (a, b) = (pair.a.clone(), pair.b.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.unwrap();
            // A runtime that is dropped leads the link during a send.
            runtime.spawn({
                let a = a.clone();
                async move { a.recv().await }
            });
            runtime.spawn(async move { a.send(message(turn, &[8 << 20])).await });
            runtime.spawn({
                let b = b.clone();
                async move { b.incoming().await.unwrap().accept().await.map(|_| ()) }
            });
            std::thread::sleep(Duration::from_millis(turn as u64));
            drop(runtime);
        });
        tokio::task::spawn_blocking(|| dropped.join().unwrap()).await.unwrap();

        // That message may arrive or not. Later ones arrive whole; `last` is the first of them.
        let a = pair.a.clone();
        let sending = tokio::spawn(async move { a.deliver(Message::new("last")).await });
        loop {
            let message = in_time("recv", pair.b.recv()).await.unwrap();
            if message.header().as_ref() == b"last" {
                break;
            }
            assert_message(&message, turn, &[8 << 20]);
        }
        in_time("the last message", sending).await.unwrap().unwrap();
        let back = async { tokio::join!(pair.b.deliver(message(9, &[70_000])), pair.a.recv()) };
        let (sent, taken) = in_time("a message the other way", back).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 9, &[70_000]);
    }
    let in_use = || [&pair.near, &pair.far].map(|end| end.pool().stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0]).await;
}

async fn a_dropped_listener_leaves_its_connections_alive(row: &'static Row) {
    let Pair { a, b, near, far: _far, listener } = row.pair().await;
    let address = listener.address().clone();
    drop(listener);
    // The listener closes in the background; a connect meanwhile is cut off.
    let refused = async { while near.connect(&address).await.unwrap_err().kind() != ErrorKind::Refused {} };
    within(END_TIME, "a connect without a listener", refused).await;
    let results = all((0..10).map(|number| {
        let (a, b) = (&a, &b);
        async move { tokio::join!(a.deliver(message(number, &[100])), b.recv()) }
    }));
    for (sent, taken) in in_time("messages", results).await {
        sent.unwrap();
        taken.unwrap();
    }
    pending("the next message", b.recv()).await;
}
