//! Connections and endpoints that end leave no descriptor, no thread and no memory behind.

use std::time::{Duration, Instant};

use towline::{Connection, Endpoint, ErrorKind, Listener};

use crate::backends::{Row, connect_pair};
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

/// Resources of this process.
struct Usage {
    descriptors: usize,
    threads: usize,
    resident: u64,
}

impl Usage {
    fn now() -> Self {
        Self { descriptors: usage::descriptors(), threads: usage::threads(), resident: usage::resident() }
    }

    /// Asserts that the process soon has no more than these. Connections end in the background.
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

/// Opens a connection, and ends it in one of the ways that a connection can end.
async fn open_and_end(near: &Endpoint, listener: &Listener, turn: usize) {
    let (a, b) = in_time("a connection", connect_pair(near, listener)).await;
    exchange(&a, &b, turn).await;
    match turn % 16 {
        0 => in_time("close", a.close()).await.unwrap(),
        1..6 => a.abort(),
        6..11 => drop((a, b)),
        _ => drop((b, a)),
    }
}

async fn exchange(a: &Connection, b: &Connection, turn: usize) {
    let lengths = [100, if turn.is_multiple_of(10) { 100_000 } else { 0 }];
    let both = async { tokio::join!(a.deliver(message(turn, &lengths)), b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), turn, &lengths);
}

async fn a_thousand_connections_leak_nothing(row: &'static Row) {
    // A bounce arena has descriptors, and stays as long as its endpoint.
    let endpoint = || row.builder().bounce_arena(0).build().unwrap();
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    for turn in 0..50 {
        open_and_end(&near, &listener, turn).await;
    }
    // The last connections of the warm-up end first.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = Usage::now();
    for turn in 0..1000 {
        open_and_end(&near, &listener, turn).await;
    }
    before.assert_no_more().await;

    // Many at once.
    let mut alive = Vec::new();
    for turn in 0..200 {
        let (a, b) = in_time("a connection", connect_pair(&near, &listener)).await;
        exchange(&a, &b, turn).await;
        alive.push((a, b));
    }
    for (a, b) in &alive {
        exchange(a, b, 10).await;
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
        in_time("a connect without a listener", near.connect(&address)).await.unwrap_err();
    }
    let before = Usage::now();
    for _ in 0..500 {
        let error = in_time("a connect without a listener", near.connect(&address)).await.unwrap_err();
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
        // A cancelled attempt fails its accept; the listener continues.
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
    let (begin, mut timed_out) = (Instant::now(), 0);
    for turn in 0..1500 {
        if begin.elapsed() > Duration::from_secs(3) {
            break;
        }
        let enough = one * (turn % 16) / 10;
        timed_out += usize::from(tokio::time::timeout(enough, near.connect(&address)).await.is_err());
    }
    assert!(timed_out > 0, "no connect timed out");
    before.assert_no_more().await;
}

async fn endpoints_leak_nothing(row: &'static Row) {
    let round = async |turn| {
        let (near, far) = (row.endpoint(), row.endpoint());
        let listener = far.listen(&row.address()).await.unwrap();
        open_and_end(&near, &listener, turn).await;
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
            exchange(&pair.a, &pair.b, turn).await;
            exchange(&pair.b, &pair.a, turn).await;
            drop(pair.a.send(message(turn, &[10])).await.unwrap());
            drop(in_time("incoming", pair.b.incoming()).await.unwrap());
        }
    };
    // Memory created once, as a bounce arena's next segment, comes early or late. A leak comes each time.
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
