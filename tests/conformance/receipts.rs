//! The sender receives each message's outcome, and an undecided message blocks no other.

use std::time::Duration;

use towline::{BufferMut, Caps, Connection, ErrorKind, Message};

use crate::backends::Row;
use crate::content::{assert_message, bytes, message};
use crate::polls::{all, in_time, pending, within};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        a_dropped_incoming_is_rejected_and_the_connection_stays,
        a_receipt_waits_until_the_message_is_taken,
        receipts_resolve_in_any_order,
        a_dropped_receipt_loses_no_message,
        an_undecided_incoming_blocks_no_other_message,
        #[core] an_undecided_incoming_costs_no_more_with_time;
    ONE_SIDED:
        gets_and_puts_pass_an_undecided_incoming;
}

const LENS: [usize; 3] = [0, 1000, 100_000];

async fn a_dropped_incoming_is_rejected_and_the_connection_stays(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let take = async {
            drop(pair.b.incoming().await.unwrap());
            pair.b.incoming().await.unwrap().reject();
            pair.b.recv().await.unwrap()
        };
        let sending = all((0..3).map(|number| pair.a.deliver(message(number, &[len]))));
        let (sent, taken) = in_time("two of three rejected", async { tokio::join!(sending, take) }).await;
        let kinds: Vec<_> = sent.into_iter().map(|sent| sent.map_err(|error| error.kind())).collect();
        assert_eq!(kinds, [Err(ErrorKind::Rejected), Err(ErrorKind::Rejected), Ok(())]);
        assert_message(&taken, 2, &[len]);
    }
}

/// Sends in the background. The future returns the receipt's outcome.
fn receipt(from: &Connection, message: Message) -> impl Future<Output = towline::Result<()>> + use<> {
    let from = from.clone();
    let sent = tokio::spawn(async move { from.send(message).await?.delivered().await });
    async { sent.await.unwrap() }
}

async fn a_receipt_waits_until_the_message_is_taken(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let mut delivered = std::pin::pin!(receipt(&pair.a, message(7, &[len])));
        pending("the receipt of a message without a receive", delivered.as_mut()).await;
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        pending("the receipt of an undecided message", delivered.as_mut()).await;
        let taken = in_time("accept", incoming.accept()).await.unwrap();
        // Without other traffic, and long before a heartbeat.
        within(Duration::from_secs(1), "the receipt", delivered).await.unwrap();
        assert_message(&taken, 7, &[len]);
    }
}

async fn receipts_resolve_in_any_order(row: &'static Row) {
    let pair = row.pair().await;
    let lens = [10, 50_000, 20, 60_000, 0];
    let mut receipts: Vec<_> = Vec::new();
    let mut waiting = Vec::new();
    for (number, len) in lens.into_iter().enumerate() {
        receipts.push(receipt(&pair.a, message(number, &[len])));
        waiting.push(in_time("incoming", pair.b.incoming()).await.unwrap());
    }
    for number in (0..lens.len()).rev() {
        let (Some(incoming), Some(receipt)) = (waiting.pop(), receipts.pop()) else { unreachable!() };
        let outcome = if number % 2 == 0 {
            assert_message(&in_time("accept", incoming.accept()).await.unwrap(), number, &[lens[number]]);
            Ok(())
        } else {
            incoming.reject();
            Err(ErrorKind::Rejected)
        };
        assert_eq!(in_time("the receipt", receipt).await.map_err(|error| error.kind()), outcome);
    }
}

async fn a_dropped_receipt_loses_no_message(row: &'static Row) {
    let pair = row.pair().await;
    let a = pair.a.clone();
    let sending = tokio::spawn(async move {
        for number in 0..100 {
            drop(a.send(message(number, &[LENS[number % 3]])).await.unwrap());
        }
    });
    for number in 0..100 {
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        if number % 5 != 0 {
            assert_message(&in_time("accept", incoming.accept()).await.unwrap(), number, &[LENS[number % 3]]);
        }
    }
    sending.await.unwrap();
}

async fn an_undecided_incoming_blocks_no_other_message(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let mut first = std::pin::pin!(receipt(&pair.a, message(0, &[len])));
        let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();
        for number in 1..20 {
            let lengths = [LENS[number % 3]];
            let later = async { tokio::join!(pair.a.deliver(message(number, &lengths)), pair.b.recv()) };
            let (sent, taken) = in_time("a message after an undecided one", later).await;
            sent.unwrap();
            assert_message(&taken.unwrap(), number, &lengths);
        }
        let back = async { tokio::join!(pair.b.deliver(message(99, &[len])), pair.a.recv()) };
        let (sent, taken) = in_time("a message the other way", back).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 99, &[len]);

        pending("the receipt of the undecided one", first.as_mut()).await;
        assert_message(&in_time("accept", undecided.accept()).await.unwrap(), 0, &[len]);
        in_time("the receipt", first).await.unwrap();
    }
}

async fn an_undecided_incoming_costs_no_more_with_time(row: &'static Row) {
    const COUNT: usize = 20_000;
    let pair = row.pair().await;
    let first = receipt(&pair.a, message(0, &[10]));
    let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();
    let traffic = async |count| {
        let a = pair.a.clone();
        let sending = tokio::spawn(async move {
            let one = message(1, &[10]);
            for _ in 0..count {
                drop(a.send(one.clone()).await.unwrap());
            }
        });
        for _ in 0..count {
            in_time("recv", pair.b.recv()).await.unwrap();
        }
        sending.await.unwrap();
    };
    let resident = || {
        usage::trim();
        usage::resident()
    };
    // As many messages as follow, so that memory for the most in flight exists.
    traffic(COUNT).await;
    let before = resident();
    traffic(COUNT).await;
    let growth = resident().saturating_sub(before);
    assert!(growth < 3 << 20, "{growth} bytes for {COUNT} messages after an undecided one");
    assert_message(&in_time("accept", undecided.accept()).await.unwrap(), 0, &[10]);
    in_time("its receipt", first).await.unwrap();
}

async fn gets_and_puts_pass_an_undecided_incoming(row: &'static Row) {
    let pair = row.pair().await;
    assert!(pair.b.caps().contains(Caps::ONE_SIDED));
    let lifetime = Duration::from_secs(60);
    let readable = pair.b.expose(bytes(1, 100_000).into(), lifetime).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(100_000), lifetime).unwrap();
    let mut first = std::pin::pin!(receipt(&pair.a, message(0, &[200_000])));
    let undecided = in_time("incoming", pair.b.incoming()).await.unwrap();

    let got = in_time("get", pair.a.get(&readable.remote(), 0, BufferMut::with_capacity(100_000))).await;
    assert!(got.unwrap().as_slice().unwrap() == bytes(1, 100_000));
    in_time("put", pair.a.put(&writable.remote(), 0, bytes(2, 100_000).into())).await.unwrap();
    assert!(writable.revoke().await.as_slice().unwrap() == bytes(2, 100_000));

    pending("the receipt", first.as_mut()).await;
    undecided.reject();
    assert_eq!(in_time("the receipt", first).await.unwrap_err().kind(), ErrorKind::Rejected);
}
