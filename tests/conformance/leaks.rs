//! What comes and goes leaves nothing behind: no descriptor, no thread, no memory.

use std::time::{Duration, Instant};

use towline::{Connection, Endpoint, ErrorKind, Listener};

use crate::backends::{Row, meet};
use crate::content::{assert_message, message};
use crate::polls::{eventually, in_time};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        #[core] a_thousand_connections_leak_nothing,
        failed_connects_leak_nothing,
        #[core] connects_that_time_out_leak_nothing,
        #[core] endpoints_leak_nothing,
        a_long_connection_does_not_grow;
}

const GROWTH_MAX: u64 = 30 << 20;

/// What a process has now.
struct Usage {
    descriptors: usize,
    threads: usize,
    resident: u64,
}

impl Usage {
    fn now() -> Self {
        Self { descriptors: usage::descriptors(), threads: usage::threads(), resident: usage::resident() }
    }

    /// Things end in the background: a little later there are no more than there were.
    async fn assert_no_more(&self) {
        eventually("as many descriptors as before", || usage::descriptors() <= self.descriptors).await;
        eventually("as many threads as before", || usage::threads() <= self.threads).await;
        let growth = || {
            usage::trim();
            usage::resident().saturating_sub(self.resident)
        };
        eventually("as much memory as before", || growth() < GROWTH_MAX).await;
    }
}

/// One connection, in one of the ways in which it can end.
async fn come_and_go(near: &Endpoint, listener: &Listener, turn: usize) {
    let (a, b) = in_time("a connection", meet(near, listener)).await;
    talk(&a, &b, turn).await;
    match turn % 16 {
        0 => in_time("close", a.close()).await.unwrap(),
        1..6 => a.abort(),
        6..11 => drop((a, b)),
        _ => drop((b, a)),
    }
}

async fn talk(a: &Connection, b: &Connection, turn: usize) {
    let lengths = [100, if turn.is_multiple_of(10) { 100_000 } else { 0 }];
    let both = async { tokio::join!(a.deliver(message(turn, &lengths)), b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), turn, &lengths);
}

async fn a_thousand_connections_leak_nothing(row: &'static Row) {
    // A bounce arena stays as long as its endpoint, and has descriptors.
    let endpoint = || row.builder().bounce_arena(0).build().unwrap();
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    for turn in 0..50 {
        come_and_go(&near, &listener, turn).await;
    }
    // The warm-up's last ones end first.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = Usage::now();
    for turn in 0..1000 {
        come_and_go(&near, &listener, turn).await;
    }
    before.assert_no_more().await;

    // As many at once.
    let mut alive = Vec::new();
    for turn in 0..200 {
        let (a, b) = in_time("a connection", meet(&near, &listener)).await;
        talk(&a, &b, turn).await;
        alive.push((a, b));
    }
    for (a, b) in &alive {
        talk(a, b, 10).await;
    }
    drop(alive);
    before.assert_no_more().await;
}

async fn failed_connects_leak_nothing(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    drop(listener);
    for _ in 0..10 {
        in_time("a connect to nobody", near.connect(&address)).await.unwrap_err();
    }
    let before = Usage::now();
    for _ in 0..500 {
        let error = in_time("a connect to nobody", near.connect(&address)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    before.assert_no_more().await;
}

async fn connects_that_time_out_leak_nothing(row: &'static Row) {
    let endpoint = || row.builder().bounce_arena(0).build().unwrap();
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    let _server = tokio::spawn(async move {
        // One that was given up in the middle has failed; the listener goes on.
        loop {
            drop(listener.accept().await);
        }
    });
    let begin = Instant::now();
    for _ in 0..20 {
        in_time("a connect", near.connect(&address)).await.unwrap();
    }
    let one = begin.elapsed() / 20;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = Usage::now();
    let (begin, mut given_up) = (Instant::now(), 0);
    for turn in 0..1500 {
        if begin.elapsed() > Duration::from_secs(3) {
            break;
        }
        let enough = one * (turn % 16) / 10;
        given_up += usize::from(tokio::time::timeout(enough, near.connect(&address)).await.is_err());
    }
    assert!(given_up > 0, "every connect had time enough");
    before.assert_no_more().await;
}

async fn endpoints_leak_nothing(row: &'static Row) {
    let round = async |turn| {
        let (near, far) = (row.endpoint(), row.endpoint());
        let listener = far.listen(&row.address()).await.unwrap();
        come_and_go(&near, &listener, turn).await;
    };
    for turn in 0..8 {
        round(turn).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = Usage::now();
    for turn in 0..100 {
        round(turn).await;
    }
    before.assert_no_more().await;
}

async fn a_long_connection_does_not_grow(row: &'static Row) {
    let pair = row.pair().await;
    let round = async || {
        for turn in 0..500 {
            talk(&pair.a, &pair.b, turn).await;
            talk(&pair.b, &pair.a, turn).await;
            drop(pair.a.send(message(turn, &[10])).await.unwrap());
            drop(in_time("incoming", pair.b.incoming()).await.unwrap());
        }
    };
    // Memory that is made once and kept, as a bounce arena's next segment, comes early or late; what leaks comes each time.
    let mut growths = Vec::new();
    while growths.len() < 8 && growths.last().is_none_or(|growth| *growth >= 8 << 20) {
        let before = usage::resident();
        for _ in 0..4 {
            round().await;
        }
        growths.push(usage::resident().saturating_sub(before));
    }
    assert!(growths.last() < Some(&(8 << 20)), "bytes for 8,000 messages each: {growths:?}");
}
