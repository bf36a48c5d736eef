//! A slow, busy or absent receiver blocks its sender, and no message is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use towline::{BufferMut, Connection, HEADER_LEN_MAX, Message};

use crate::backends::Row;
use crate::content::{assert_message, bytes, message};
use crate::polls::{all, eventually, in_time, within};
use crate::suite::cases;
use crate::usage;

cases! {
    FLOW_CONTROL:
        a_receiver_that_takes_nothing_bounds_its_sender,
        a_sender_without_credit_still_receives;
    ANY:
        a_slow_receiver_gets_everything,
        long_headers_wait_for_credit,
        #[core] no_exchange_waits_for_a_timer,
        #[core] a_waiting_call_takes_over_at_once,
        #[core] a_small_message_is_not_delayed_by_large_ones_the_other_way,
        a_receiver_that_computes_is_not_lost;
    ONE_SIDED:
        #[core] gets_are_served_while_their_owner_computes;
}

/// More messages than any backend's window.
const BEYOND_MESSAGES: usize = 3000;
const HEARTBEAT: Duration = Duration::from_millis(250);
/// More than three missed heartbeats.
const COMPUTING: Duration = Duration::from_millis(2000);

async fn a_receiver_that_takes_nothing_bounds_its_sender(row: &'static Row) {
    for len in [0, 8 << 10, 40 << 10] {
        let pair = row.pair().await;
        let (sent, acked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let before = usage::resident();
        let sending = {
            let (a, sent, acked) = (pair.a.clone(), sent.clone(), acked.clone());
            // All messages share one memory, so that only the library's memory can grow.
            let one = message(0, &[len]);
            tokio::spawn(async move {
                let mut receipts = Vec::new();
                for _ in 0..BEYOND_MESSAGES {
                    let receipt = a.send(one.clone()).await.unwrap();
                    sent.fetch_add(1, Relaxed);
                    let acked = acked.clone();
                    receipts.push(tokio::spawn(async move {
                        receipt.delivered().await.unwrap();
                        acked.fetch_add(1, Relaxed);
                    }));
                }
                for receipt in receipts {
                    receipt.await.unwrap();
                }
            })
        };
        let mut so_far = usize::MAX;
        eventually("the sender blocks", || {
            std::thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut so_far, sent.load(Relaxed)) == so_far
        })
        .await;
        assert!(so_far <= 2048, "{so_far} messages of {len} bytes were sent without a receive");
        assert_eq!(acked.load(Relaxed), 0, "no receipt without a receive");
        let growth = usage::resident().saturating_sub(before);
        assert!(growth < 24 << 20, "{growth} bytes for {so_far} messages of {len} bytes");
        if so_far > 0 {
            assert!(pair.a.stats().credit_stalls > 0, "{:?}", pair.a.stats());
        }

        for _ in 0..BEYOND_MESSAGES {
            assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), 0, &[len]);
        }
        in_time("the sender", sending).await.unwrap();
        assert_eq!(acked.load(Relaxed), BEYOND_MESSAGES);
    }
}

async fn a_sender_without_credit_still_receives(row: &'static Row) {
    let pair = row.pair().await;
    let one = message(0, &[100]);
    let mut sending = JoinSet::new();
    for _ in 0..BEYOND_MESSAGES {
        let (a, one) = (pair.a.clone(), one.clone());
        sending.spawn(async move { a.deliver(one).await });
    }
    let conversation = async {
        for number in 0..100 {
            let lengths = [number * 1000];
            let (sent, taken) = tokio::join!(pair.b.deliver(message(number, &lengths)), pair.a.recv());
            sent.unwrap();
            assert_message(&taken.unwrap(), number, &lengths);
        }
        for _ in 0..BEYOND_MESSAGES {
            pair.b.recv().await.unwrap();
        }
    };
    let (sent, ()) =
        in_time("both directions", async { tokio::join!(sending.join_all(), conversation) }).await;
    assert_eq!(sent.into_iter().filter(Result::is_ok).count(), BEYOND_MESSAGES);
}

async fn a_slow_receiver_gets_everything(row: &'static Row) {
    const COUNT: usize = 300;
    let pair = row.pair().await;
    let lengths = |number: usize| [[0, 100, 10_000, 20_000, 300_000][number % 5]];
    let a = pair.a.clone();
    let sending = tokio::spawn(async move {
        for number in 0..COUNT {
            a.send(message(number, &lengths(number))).await.unwrap();
        }
    });
    for number in 0..COUNT {
        tokio::time::sleep(Duration::from_millis(3)).await;
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), number, &lengths(number));
    }
    in_time("the sender", sending).await.unwrap();
}

async fn long_headers_wait_for_credit(row: &'static Row) {
    const COUNT: usize = 100;
    let pair = row.pair().await;
    let header = bytes(1, HEADER_LEN_MAX);
    let work = |from: Connection, to: Connection| {
        let header = header.clone();
        async move {
            let message = Message::new(header.clone()).with_frame(bytes(2, 10_000));
            let sending = all((0..COUNT).map(|_| from.deliver(message.clone())));
            let taking = async {
                for _ in 0..COUNT {
                    let taken = to.recv().await.unwrap();
                    assert!(taken.header()[..] == header[..]);
                }
            };
            let (sent, ()) = tokio::join!(sending, taking);
            assert!(sent.iter().all(Result::is_ok));
        }
    };
    let both = async {
        tokio::join!(work(pair.a.clone(), pair.b.clone()), work(pair.b.clone(), pair.a.clone()));
    };
    in_time("long headers both ways", both).await;
}

/// Every exchange completes by itself: this finds any that waits for a heartbeat or for the driver's sweep.
async fn no_exchange_waits_for_a_timer(row: &'static Row) {
    const TURNS: usize = 50;
    let pair = row.pair_with(|builder| builder.heartbeat(Duration::from_secs(60))).await;
    let region = pair.b.expose(bytes(1, 100_000).into(), Duration::from_secs(60)).ok();
    for len in [0, 1000, 100_000] {
        let began = Instant::now();
        let exchanges = async {
            for turn in 0..TURNS {
                let (there, back) = (message(turn, &[len]), message(turn, &[len]));
                match turn % 5 {
                    // Both ways.
                    0 => {
                        let (sent, taken) = tokio::join!(pair.a.send(there), pair.b.recv());
                        sent.unwrap();
                        taken.unwrap();
                        let (sent, taken) = tokio::join!(pair.b.send(back), pair.a.recv());
                        sent.unwrap();
                        taken.unwrap();
                    }
                    // The receiver is done before its sender gets the acknowledgement.
                    1 => {
                        let a = pair.a.clone();
                        let sent = tokio::spawn(async move { a.send(there).await?.delivered().await });
                        pair.b.incoming().await.unwrap().accept().await.unwrap();
                        sent.await.unwrap().unwrap();
                    }
                    2 => {
                        let a = pair.a.clone();
                        let sent = tokio::spawn(async move { a.send(there).await?.delivered().await });
                        pair.b.recv_into(BufferMut::with_capacity(len)).await.unwrap();
                        sent.await.unwrap().unwrap();
                    }
                    3 => {
                        let a = pair.a.clone();
                        let sent = tokio::spawn(async move { a.send(there).await?.delivered().await });
                        pair.b.incoming().await.unwrap().reject();
                        sent.await.unwrap().unwrap_err();
                    }
                    _ => {
                        if let Some(region) = &region {
                            let into = BufferMut::with_capacity(len);
                            pair.a.get(&region.remote(), 0, into).await.unwrap();
                        }
                    }
                }
            }
        };
        in_time("the exchanges", exchanges).await;
        let each = began.elapsed() / TURNS as u32;
        assert!(each < Duration::from_millis(100), "{each:?} for an exchange of {len} bytes");
    }
}

/// A call that stops polling the link hands it to another waiting call at once, without the driver's sweep.
async fn a_waiting_call_takes_over_at_once(row: &'static Row) {
    const TURNS: u32 = 20;
    let pair = row.pair().await;
    let talk = async || {
        let mut waited = Duration::ZERO;
        for _ in 0..TURNS {
            let (first, second) = (pair.a.clone(), pair.a.clone());
            let first = tokio::spawn(async move { first.recv().await });
            tokio::time::sleep(Duration::from_millis(2)).await;
            let second = tokio::spawn(async move { second.deliver(message(1, &[50_000])).await });
            tokio::time::sleep(Duration::from_millis(2)).await;
            first.abort();
            // The task has ended. It may have polled the link.
            assert!(first.await.is_err());
            let began = Instant::now();
            assert_message(&pair.b.recv().await.unwrap(), 1, &[50_000]);
            second.await.unwrap().unwrap();
            waited += began.elapsed();
        }
        waited / TURNS
    };
    // The best of several attempts, as the machine may be busy.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        best = best.min(in_time("the exchange", talk()).await);
        if best < Duration::from_millis(5) {
            return;
        }
    }
    panic!("{best:?} for a message after another call ended");
}

async fn a_small_message_is_not_delayed_by_large_ones_the_other_way(row: &'static Row) {
    let pair = row.pair().await;
    let (a, b) = (pair.a.clone(), pair.b.clone());
    let large = tokio::spawn(async move { all((0..8).map(|at| a.deliver(message(at, &[16 << 20])))).await });
    let taking = tokio::spawn(async move {
        for at in 0..8 {
            assert_message(&b.recv().await.unwrap(), at, &[16 << 20]);
        }
    });
    for number in 0..20 {
        let small = async { tokio::join!(pair.b.deliver(message(number, &[10])), pair.a.recv()) };
        let (sent, taken) = within(Duration::from_secs(5), "a small message", small).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[10]);
    }
    taking.await.unwrap();
    assert!(large.await.unwrap().into_iter().all(|sent| sent.is_ok()));
}

/// Receives once on a runtime of one thread, computes on that thread, then receives again.
fn computing(from: Connection) -> std::thread::JoinHandle<towline::Result<()>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            from.recv().await?;
            let until = Instant::now() + COMPUTING;
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(300));
            }
            from.recv().await?;
            Ok(())
        })
    })
}

async fn a_receiver_that_computes_is_not_lost(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.heartbeat(HEARTBEAT)).await;
    let computing = computing(pair.b.clone());
    in_time("the first", pair.a.deliver(message(0, &[10]))).await.unwrap();
    // A large message needs the other end's accept.
    in_time("the second", pair.a.deliver(message(1, &[1 << 20]))).await.unwrap();
    computing.join().unwrap().unwrap();
    let (sent, taken) = tokio::join!(pair.b.deliver(message(2, &[10])), pair.a.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 2, &[10]);
}

async fn gets_are_served_while_their_owner_computes(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.heartbeat(HEARTBEAT)).await;
    let region = pair.b.expose(bytes(1, 1 << 20).into(), Duration::from_secs(60)).unwrap();
    let remote = region.remote();
    let computing = computing(pair.b.clone());
    in_time("the first", pair.a.deliver(message(0, &[10]))).await.unwrap();
    let until = Instant::now() + COMPUTING * 3 / 4;
    let mut gets = 0;
    while Instant::now() < until {
        let get = pair.a.get(&remote, 0, BufferMut::with_capacity(1 << 20));
        let got = within(Duration::from_secs(1), "a get while the owner computes", get).await;
        assert!(got.unwrap().as_slice().unwrap() == bytes(1, 1 << 20));
        gets += 1;
    }
    assert!(gets >= 5, "{gets} gets in {:?}", COMPUTING * 3 / 4);
    in_time("the second", pair.a.deliver(message(1, &[10]))).await.unwrap();
    computing.join().unwrap().unwrap();
}
