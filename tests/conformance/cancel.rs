//! A future may be dropped at any time: no message is lost, and the connection stays usable.
//!
//! Each future is polled `n` times and then dropped, for `n` from zero until it completes.

use std::pin::pin;
use std::time::{Duration, Instant};

use towline::{BufferMut, Connection, Destination, ErrorKind, Message};

use crate::backends::{Pair, Row, connect_pair};
use crate::content::{assert_message, bytes, message, number};
use crate::polls::{TIMEOUT, eventually, in_time, polled};
use crate::suite::cases;

cases! {
    ANY:
        a_dropped_recv_loses_no_message,
        a_dropped_incoming_future_loses_no_message,
        a_dropped_recv_into_loses_no_message,
        the_receive_call_may_change_after_a_drop,
        a_dropped_send_is_still_sent,
        a_dropped_deliver_is_still_sent,
        a_dropped_accept_accepts_or_rejects,
        a_dropped_receipt_future_has_no_effect,
        a_dropped_connect_leaves_the_listener_usable,
        a_dropped_listener_accept_loses_no_peer,
        a_dropped_close_still_closes;
    ONE_SIDED:
        a_dropped_get_ends_by_itself,
        a_dropped_put_ends_by_itself;
}

/// Past this many polls, a future is awaited.
const POLLS_MAX: usize = 40;

/// Empty, small, large.
fn lengths(number: usize) -> Vec<usize> {
    match number % 4 {
        0 => vec![],
        1 => vec![300, 0, 7],
        2 => vec![20_000],
        _ => vec![200_000, 50, 90_000],
    }
}

/// Sends numbered messages in the background.
fn send_numbered(from: &Connection, count: usize) -> tokio::task::JoinHandle<()> {
    let from = from.clone();
    tokio::spawn(async move {
        for at in 0..count {
            from.send(message(at, &lengths(at))).await.unwrap();
            // A pause now and then empties the receiver, so that its futures are dropped while they wait.
            if at % 5 == 0 {
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        }
    })
}

#[track_caller]
fn assert_numbered(message: &Message, at: usize) {
    assert_message(message, at, &lengths(at));
}

/// Asserts that both ends freed their memory and still exchange messages.
async fn assert_usable(pair: &Pair) {
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        for len in [10, 100_000] {
            let (sent, taken) = in_time("a message afterwards", async {
                tokio::join!(from.deliver(message(5, &[len])), to.recv())
            })
            .await;
            sent.unwrap();
            assert_message(&taken.unwrap(), 5, &[len]);
        }
    }
    let in_use = || [&pair.near, &pair.far].map(|end| end.pool().stats().in_use_bytes);
    eventually("the pools have their memory back", || in_use() == [0, 0]).await;
}

/// Receives `count` messages with futures that are polled a few times and then dropped.
async fn receive_with_drops<F, T>(
    row: &Row,
    attempt: impl Fn(Connection) -> F,
    message_of: impl AsyncFn(T) -> Message,
) where
    F: Future<Output = T>,
{
    const COUNT: usize = 400;
    let pair = row.pair().await;
    let sending = send_numbered(&pair.a, COUNT);
    let limit = Instant::now() + TIMEOUT;
    let (mut taken, mut dropped) = (0, 0);
    while taken < COUNT {
        for polls in 0..POLLS_MAX {
            assert!(
                Instant::now() < limit,
                "{taken} of {COUNT} messages arrived, {dropped} futures were dropped"
            );
            let mut receiving = pin!(attempt(pair.b.clone()));
            match polled(receiving.as_mut(), polls).await {
                Some(result) => {
                    assert_numbered(&message_of(result).await, taken);
                    taken += 1;
                    break;
                }
                None => dropped += 1,
            }
        }
    }
    assert!(dropped >= COUNT, "{dropped} futures were dropped before they were done");
    sending.await.unwrap();
    assert_usable(&pair).await;
}

async fn a_dropped_recv_loses_no_message(row: &'static Row) {
    receive_with_drops(row, |from| async move { from.recv().await.unwrap() }, async |message| message).await;
}

async fn a_dropped_incoming_future_loses_no_message(row: &'static Row) {
    let accept = async |incoming: towline::Incoming| in_time("accept", incoming.accept()).await.unwrap();
    receive_with_drops(row, |from| async move { from.incoming().await.unwrap() }, accept).await;
}

async fn a_dropped_recv_into_loses_no_message(row: &'static Row) {
    let into =
        |from: Connection| async move { from.recv_into(BufferMut::with_capacity(300_000)).await.unwrap() };
    receive_with_drops(row, into, async |message| message).await;
}

async fn the_receive_call_may_change_after_a_drop(row: &'static Row) {
    const COUNT: usize = 200;
    let pair = row.pair().await;
    let sending = send_numbered(&pair.a, COUNT);
    let limit = Instant::now() + TIMEOUT;
    let mut taken = 0;
    for turn in 0.. {
        if taken == COUNT {
            break;
        }
        assert!(Instant::now() < limit, "{taken} of {COUNT} messages arrived");
        let polls = 1 + turn % 3;
        let message = match turn % 7 {
            0..3 => polled(pin!(pair.b.recv()), polls).await.transpose().unwrap(),
            3..6 => {
                let buffer = BufferMut::with_capacity(300_000);
                polled(pin!(pair.b.recv_into(buffer)), polls).await.transpose().unwrap()
            }
            _ => match polled(pin!(pair.b.incoming()), polls).await.transpose().unwrap() {
                Some(incoming) => Some(in_time("accept", incoming.accept()).await.unwrap()),
                None => None,
            },
        };
        if let Some(message) = message {
            assert_numbered(&message, taken);
            taken += 1;
        }
    }
    sending.await.unwrap();
    assert_usable(&pair).await;
}

/// Sends with futures that are polled a few times and then dropped. Each that was polled at all is sent, in
/// order.
async fn send_with_drops<F, T>(row: &Row, attempt: impl Fn(Connection, Message) -> F)
where
    F: Future<Output = T>,
{
    let pair = row.pair().await;
    let b = pair.b.clone();
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            let message = b.recv().await.unwrap();
            if message.header().as_ref() == b"last" {
                return taken;
            }
            let at = number(message.header());
            assert_numbered(&message, at);
            taken.push(at);
        }
    });
    let mut submitted = Vec::new();
    for at in 0..400 {
        let polls = at / 4 % 8;
        drop(polled(pin!(attempt(pair.a.clone(), message(at, &lengths(at)))), polls).await);
        if polls > 0 {
            submitted.push(at);
        }
    }
    in_time("the last message", pair.a.deliver(Message::new("last"))).await.unwrap();
    assert_eq!(in_time("the receiver", taking).await.unwrap(), submitted);
    assert_usable(&pair).await;
}

async fn a_dropped_send_is_still_sent(row: &'static Row) {
    send_with_drops(row, |from, message| async move { from.send(message).await.unwrap() }).await;
}

async fn a_dropped_deliver_is_still_sent(row: &'static Row) {
    send_with_drops(row, |from, message| async move { from.deliver(message).await.unwrap() }).await;
}

async fn a_dropped_accept_accepts_or_rejects(row: &'static Row) {
    let pair = row.pair().await;
    let mut outcomes = [0, 0];
    for at in 0..200 {
        let polls = at / 8 % 6;
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            if at / 4 % 2 == 0 {
                drop(polled(pin!(incoming.accept()), polls).await);
            } else {
                let destinations = incoming.frames().iter().map(|frame| BufferMut::with_capacity(frame.len));
                let destinations = destinations.map(Destination::Buffer).collect();
                drop(polled(pin!(incoming.accept_into(destinations)), polls).await);
            }
        };
        let sending = pair.a.deliver(message(at, &lengths(at)));
        let (sent, ()) = in_time("a dropped accept", async { tokio::join!(sending, take) }).await;
        match sent {
            Ok(()) => outcomes[0] += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
                assert_eq!(polls, 0, "a polled accept does not reject");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?} were delivered and rejected");
    assert_usable(&pair).await;
}

async fn a_dropped_receipt_future_has_no_effect(row: &'static Row) {
    let pair = row.pair().await;
    for at in 0..60 {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            incoming.accept().await.unwrap()
        };
        let send = async {
            let receipt = pair.a.send(message(at, &lengths(at))).await.unwrap();
            drop(polled(pin!(receipt.delivered()), at / 4).await);
        };
        let ((), taken) = in_time("a message", async { tokio::join!(send, take) }).await;
        assert_numbered(&taken, at);
    }
    assert_usable(&pair).await;
}

async fn a_dropped_connect_leaves_the_listener_usable(row: &'static Row) {
    let pair = row.pair().await;
    let (mut connected, mut polls) = (0, 0);
    while connected < 3 {
        // The handshake runs on the driver: more polls give it more time.
        if let Some(result) = polled(pin!(pair.near.connect(pair.listener.address())), polls).await {
            result.unwrap();
            connected += 1;
        }
        polls += 1 + polls / 4;
    }
    // The dropped ones may have arrived or not. Other connections are not affected.
    let far = pair.far.clone();
    let fresh = far.listen(&row.address()).await.unwrap();
    let (a, b) = in_time("another connection", connect_pair(&pair.near, &fresh)).await;
    let (sent, taken) = tokio::join!(a.deliver(message(1, &[5])), b.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[5]);
    assert_usable(&pair).await;
}

async fn a_dropped_listener_accept_loses_no_peer(row: &'static Row) {
    let pair = row.pair().await;
    for polls in 0..20 {
        let accepting = async {
            let mut polls = polls;
            loop {
                if let Some(accepted) = polled(pin!(pair.listener.accept()), polls).await {
                    return accepted.unwrap();
                }
                polls = 3;
            }
        };
        let connecting = pair.near.connect(pair.listener.address());
        let (a, b) = in_time("the peer", async { tokio::join!(connecting, accepting) }).await;
        let a = a.unwrap();
        let (sent, taken) = tokio::join!(a.deliver(message(polls, &[5])), b.recv());
        sent.unwrap();
        assert_message(&taken.unwrap(), polls, &[5]);
    }
}

async fn a_dropped_close_still_closes(row: &'static Row) {
    for polls in 0..6 {
        let pair = row.pair().await;
        let submitted = polls > 0;
        in_time("a message", pair.a.send(message(1, &[10]))).await.unwrap();
        drop(polled(pin!(pair.a.close()), polls).await);
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), 1, &[10]);
        if submitted {
            assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
        } else {
            assert_usable(&pair).await;
        }
    }
}

async fn a_dropped_get_ends_by_itself(row: &'static Row) {
    const LEN: usize = 300_000;
    let pair = row.pair().await;
    let region = pair.b.expose(bytes(3, LEN).into(), Duration::from_secs(60)).unwrap();
    for polls in (0..8).cycle().take(100) {
        let into = pair.near.pool().take(LEN).unwrap();
        if let Some(got) = polled(pin!(pair.a.get(&region.remote(), 0, into)), polls).await {
            assert!(got.unwrap().as_slice().unwrap() == bytes(3, LEN));
        }
    }
    let got = in_time("a get", pair.a.get(&region.remote(), 5, BufferMut::with_capacity(100))).await.unwrap();
    assert_eq!(got.as_slice().unwrap(), &bytes(3, LEN)[5..105]);
    let memory = in_time("revoke", region.revoke()).await;
    assert!(memory.try_into_mut().is_ok(), "no other handle holds the region's memory");
    assert_usable(&pair).await;
}

async fn a_dropped_put_ends_by_itself(row: &'static Row) {
    const LEN: usize = 300_000;
    let pair = row.pair().await;
    let region = pair.b.expose_mut(BufferMut::zeroed(LEN), Duration::from_secs(60)).unwrap();
    for polls in (0..8).cycle().take(100) {
        let mut from = pair.near.pool().take(LEN).unwrap();
        from.extend_from_slice(&bytes(4, LEN)).unwrap();
        if let Some(put) = polled(pin!(pair.a.put(&region.remote(), 0, from.freeze())), polls).await {
            put.unwrap();
        }
    }
    in_time("a put", pair.a.put(&region.remote(), 0, bytes(4, LEN).into())).await.unwrap();
    let memory = in_time("revoke", region.revoke()).await;
    assert!(memory.as_slice().unwrap() == bytes(4, LEN));
    assert_usable(&pair).await;
}
