//! The end of a connection is detected without a receive, and returns its descriptors while handles are kept.

use std::time::Duration;

use towline::{Connection, ErrorKind, blocking};

use crate::backends::{Pair, Row, connect_pair};
use crate::content::{assert_message, message};
use crate::peer::Peer;
use crate::polls::{eventually, in_time, pending, polled, within};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        the_end_is_detected_without_a_receive,
        waiting_for_the_end_takes_no_message,
        a_thread_waits_for_the_end,
        descriptors_return_at_the_end_while_handles_are_kept;
    CROSS_PROCESS:
        a_killed_peer_is_detected_without_a_receive;
}

/// Limit for detecting an end of any kind.
const END_TIME: Duration = Duration::from_secs(3);

/// One way in which a connection ends, with the kinds that this end and the other report.
type End = (fn(&Connection), &'static [ErrorKind], &'static [ErrorKind]);

const ENDS: [End; 2] = [
    (
        |end| {
            drop(tokio::spawn({
                let end = end.clone();
                async move { end.close().await }
            }))
        },
        &[ErrorKind::Closed],
        &[ErrorKind::Closed],
    ),
    (Connection::abort, &[ErrorKind::Closed], &[ErrorKind::PeerLost, ErrorKind::Closed]),
];

async fn the_end_is_detected_without_a_receive(row: &'static Row) {
    let pair = row.pair().await;
    for (end, near_kinds, far_kinds) in ENDS {
        for is_swapped in [false, true] {
            let (a, b) = connect_pair(&pair.near, &pair.listener).await;
            let (near, far) = if is_swapped { (b, a) } else { (a, b) };
            assert!(near.close_reason().is_none() && far.close_reason().is_none());
            pending("the end", far.closed()).await;
            let waiting =
                [near.clone(), far.clone()].map(|end| tokio::spawn(async move { end.closed().await }));
            end(&near);
            for (connection, kinds) in [(&near, near_kinds), (&far, far_kinds)] {
                let why = within(END_TIME, "the end", connection.closed()).await;
                assert!(kinds.contains(&why.kind()), "{why}");
                let known = connection.close_reason().expect("it has ended");
                assert_eq!(known.to_string(), why.to_string());
                assert!(why.to_string().contains(connection.path().chosen()), "{why}");
            }
            for waiting in waiting {
                within(END_TIME, "a waiting task", waiting).await.unwrap();
            }
        }
    }
}

async fn waiting_for_the_end_takes_no_message(row: &'static Row) {
    const COUNT: usize = 20;
    let pair = row.pair().await;
    let mut closed = Box::pin(pair.b.closed());
    assert!(polled(closed.as_mut(), 1).await.is_none());
    for number in 0..COUNT {
        in_time("send", pair.a.send(message(number, &[number * 100]))).await.unwrap();
        assert!(polled(closed.as_mut(), 1).await.is_none());
    }
    in_time("close", pair.a.close()).await.unwrap();
    assert_eq!(within(END_TIME, "the end", closed).await.kind(), ErrorKind::Closed);
    for number in 0..COUNT {
        assert_message(&in_time("recv", pair.b.recv()).await.unwrap(), number, &[number * 100]);
    }
    assert_eq!(in_time("the end", pair.b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn a_thread_waits_for_the_end(row: &'static Row) {
    let pair = row.pair().await;
    let far = blocking::Connection::from(pair.b.clone());
    let waiting = std::thread::spawn(move || {
        let early = far.clone().with_deadline(Duration::from_millis(10)).closed();
        assert_eq!(early.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(far.close_reason().is_none());
        far.closed()
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    in_time("close", pair.a.close()).await.unwrap();
    let why = tokio::task::spawn_blocking(|| waiting.join().unwrap());
    assert_eq!(in_time("the thread", why).await.unwrap().unwrap().kind(), ErrorKind::Closed);
}

/// Opens a connection and uses it. Returns handles of both ends.
async fn used(pair: &Pair, turn: usize) -> (Connection, Connection) {
    let (a, b) = connect_pair(&pair.near, &pair.listener).await;
    let lengths = [100, if turn.is_multiple_of(2) { 100_000 } else { 0 }];
    let both = async { tokio::join!(a.deliver(message(turn, &lengths)), b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), turn, &lengths);
    if turn.is_multiple_of(3) {
        // A call that sleeps registers the link's descriptor with its own runtime.
        for end in [&a, &b] {
            let end = end.clone();
            tokio::spawn(async move { end.recv().await.map(drop) });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (a, b)
}

async fn descriptors_return_at_the_end_while_handles_are_kept(row: &'static Row) {
    const COUNT: usize = 20;
    // A bounce arena stays as long as its endpoint, and has descriptors.
    let pair = row.pair_with(|builder| builder.bounce_arena(0)).await;
    // The first connection may create what the process keeps.
    let (a, b) = used(&pair, 0).await;
    in_time("close", a.close()).await.unwrap();
    in_time("the end", b.closed()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = usage::descriptors();
    let mut kept = Vec::new();
    for turn in 0..COUNT {
        kept.push(used(&pair, turn).await);
    }
    if row.caps.contains(towline::Caps::CROSS_PROCESS) {
        assert!(usage::descriptors() >= before + COUNT, "each connection has a descriptor at least");
    }
    for (turn, (a, b)) in kept.iter().enumerate() {
        let (ending, other) = if turn.is_multiple_of(2) { (a, b) } else { (b, a) };
        let (end, ..) = ENDS[turn / 2 % ENDS.len()];
        end(ending);
        within(END_TIME, "the end", other.closed()).await;
    }
    eventually("as many descriptors as before", || usage::descriptors() <= before).await;
    // The handles return the same facts as before, and calls on them fail.
    for (a, b) in &kept {
        for end in [a, b] {
            assert_eq!(end.caps(), row.caps);
            assert_eq!(end.stats().messages_sent + end.stats().messages_received, 1);
            assert!(end.close_reason().is_some());
            assert!(in_time("recv", end.recv()).await.is_err());
            assert!(in_time("send", end.send(message(1, &[100_000]))).await.is_err());
            // As before the end, it reports a peer that was lost.
            let _ = in_time("close", end.close()).await;
            end.abort();
        }
    }
}

async fn a_killed_peer_is_detected_without_a_receive(row: &'static Row) {
    let endpoint = row.builder().bounce_arena(0).build().unwrap();
    let mut before = None;
    let mut kept = Vec::new();
    for turn in 0..5 {
        let (mut peer, address) = Peer::serving(row).await;
        let connection = in_time("connect", endpoint.connect(&address)).await.unwrap();
        pending("the end", connection.closed()).await;
        assert!(connection.close_reason().is_none());
        peer.kill();
        drop(peer);
        let why = within(END_TIME, "the end", connection.closed()).await;
        assert_eq!(why.kind(), ErrorKind::PeerLost, "{why}");
        assert_eq!(connection.close_reason().expect("it has ended").kind(), ErrorKind::PeerLost);
        kept.push(connection);
        match before {
            Some(before) => {
                let what = format!("as many descriptors as after the first, turn {turn}");
                eventually(&what, || usage::descriptors() <= before).await;
            }
            None => {
                // The first connection may create what the process keeps.
                tokio::time::sleep(Duration::from_millis(500)).await;
                before = Some(usage::descriptors());
            }
        }
    }
}
