//! Peers in other processes that die, stop or exit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use towline::{BufferMut, Caps, Connection, Destination, ErrorKind, Message, RemoteRegion};

use crate::backends::Row;
use crate::content::{assert_bytes, assert_message, bytes, message};
use crate::peer::{CLOSE, ECHO, EXIT, EXPOSE, EXPOSED_LEN, HEARTBEAT, Home, IGNORE, LIMITED_LEN, Peer, echo};
use crate::polls::{eventually, in_time, within};
use crate::stuck::Stuck;
use crate::suite::cases;

cases! {
    CROSS_PROCESS:
        messages_cross_processes,
        #[core] a_killed_peer_is_lost_at_once,
        #[core] a_stopped_peer_is_lost_by_its_heartbeats,
        #[core] a_message_returns_when_its_receiver_is_killed,
        #[core] destinations_return_when_the_sender_is_killed,
        a_peer_that_exits_without_a_close_is_lost,
        a_peer_that_closes_and_exits_is_closed,
        an_idle_connection_stays;
    CROSS_PROCESS | NAMED_DESTINATION:
        #[core] a_message_is_received_without_room_for_a_second_copy;
    CROSS_PROCESS | ONE_SIDED:
        gets_cross_processes;
}

async fn messages_cross_processes(row: &'static Row) {
    let (_peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    for len in [0, 1, 1000, 16 << 10, 100_000, 16 << 20] {
        echo(&connection, len).await;
    }
    assert_ne!(connection.peer().process, std::process::id());
}

async fn gets_cross_processes(row: &'static Row) {
    let (_peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let region = expose(&connection).await;
    for (offset, len) in [(0, EXPOSED_LEN), (5, 10), (EXPOSED_LEN - 1, 1)] {
        let into = BufferMut::with_capacity(len);
        let got = in_time("get", connection.get(&region, offset as u64, into)).await.unwrap();
        assert_bytes(got.as_slice().unwrap(), 1, offset);
    }
}

async fn expose(connection: &Connection) -> RemoteRegion {
    let both = async { tokio::join!(connection.deliver(Message::new(EXPOSE)), connection.recv()) };
    let (asked, region) = in_time("a region", both).await;
    asked.unwrap();
    RemoteRegion::from_bytes(region.unwrap().header()).unwrap()
}

/// Asserts that all operations on a connection end within `limit` after `end` ended its peer. Memory returns,
/// and other connections continue.
async fn assert_lost(row: &Row, limit: Duration, end: impl AsyncFn(&Peer)) {
    let (peer, address) = Peer::serving(row).await;
    let (_other_peer, other_address) = Peer::serving(row).await;
    let endpoint = row.builder().heartbeat(HEARTBEAT).build().unwrap();
    let connection = endpoint.connect(&address).await.unwrap();
    let other = endpoint.connect(&other_address).await.unwrap();
    echo(&connection, 100).await;
    echo(&other, 100).await;

    let region = if row.caps.contains(Caps::ONE_SIDED) { Some(expose(&connection).await) } else { None };
    in_time("the last message", connection.deliver(Message::new(IGNORE))).await.unwrap();
    let stuck = Stuck::on(&connection).await;
    // Gets would delay the messages above, so they start here.
    let (mut gets, done) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    if let Some(region) = region {
        for _ in 0..2 {
            let (connection, done) = (connection.clone(), done.clone());
            gets.spawn(async move {
                let mut into = BufferMut::with_capacity(EXPOSED_LEN);
                let start = into.as_ptr().addr();
                loop {
                    match connection.get(&region, 0, into).await {
                        Ok(got) => {
                            done.fetch_add(1, Ordering::Relaxed);
                            into = got;
                            into.clear();
                        }
                        Err(failed) => {
                            assert_eq!(failed.returned.as_ptr().addr(), start, "the same memory returns");
                            return failed.error.kind();
                        }
                    }
                }
            });
        }
        eventually("a get completes", || done.load(Ordering::Relaxed) > 0).await;
    }

    end(&peer).await;
    within(limit, "what was in flight", async {
        stuck.assert_ended(limit, &[ErrorKind::PeerLost]).await;
        for kind in gets.join_all().await {
            assert_eq!(kind, ErrorKind::PeerLost);
        }
        let failed = connection.send(message(1, &[5])).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
        assert_eq!(connection.recv().await.unwrap_err().kind(), ErrorKind::PeerLost);
    })
    .await;
    for len in [10, 1 << 20] {
        echo(&other, len).await;
    }
    let again = endpoint.connect(&other_address).await.unwrap();
    echo(&again, 100).await;
}

async fn a_killed_peer_is_lost_at_once(row: &'static Row) {
    assert_lost(row, Duration::from_secs(1), async |peer| peer.signal(Signal::KILL)).await;
}

async fn a_stopped_peer_is_lost_by_its_heartbeats(row: &'static Row) {
    assert_lost(row, Duration::from_millis(1500), async |peer| peer.signal(Signal::STOP)).await;
}

/// Asserts that no other handle to the frame exists: memory that a kernel or a peer may touch is not
/// returned.
fn assert_free(frame: towline::Buffer) {
    assert!(frame.try_into_mut().is_ok(), "no other handle holds it");
}

/// Kills the peer after `delay`, from a thread: a task that moves bytes does not delay the kill.
fn kill_after(mut peer: Peer, delay: Duration) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        peer.kill();
    })
}

async fn a_message_returns_when_its_receiver_is_killed(row: &'static Row) {
    const LEN: usize = 64 << 20;
    let mut in_the_middle = 0;
    for delay_ms in [0, 2, 10] {
        let (peer, address) = Peer::serving(row).await;
        let connection = row.endpoint().connect(&address).await.unwrap();
        echo(&connection, 100).await;
        let message = Message::new(ECHO).with_frame(bytes(1, LEN)).with_frame(bytes(2, LEN));
        let starts: Vec<_> = message.frames().iter().map(|frame| frame.as_ptr()).collect();
        let killing = kill_after(peer, Duration::from_millis(delay_ms));
        let sent = within(Duration::from_secs(3), "send", connection.send(message)).await;
        killing.join().unwrap();
        match sent {
            Ok(receipt) => drop(receipt.delivered().await),
            Err(failed) => {
                assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
                in_the_middle += 1;
                for (frame, start) in failed.returned.into_parts().1.into_iter().zip(starts) {
                    assert_eq!(frame.as_ptr(), start);
                    assert_free(frame);
                }
            }
        }
    }
    assert!(in_the_middle > 0, "no message was cut");
}

async fn destinations_return_when_the_sender_is_killed(row: &'static Row) {
    const LEN: usize = 64 << 20;
    let mut in_the_middle = 0;
    for delay_ms in [0, 2, 10] {
        let (peer, address) = Peer::serving(row).await;
        let connection = row.endpoint().connect(&address).await.unwrap();
        let asked = connection.clone();
        let asking = tokio::spawn(async move {
            let message = Message::new(ECHO).with_frame(bytes(1, LEN)).with_frame(bytes(2, LEN));
            asked.deliver(message).await
        });
        let incoming = in_time("the echo", connection.incoming()).await.unwrap();
        in_time("the question", asking).await.unwrap().unwrap();
        let destinations: Vec<_> = (0..2).map(|_| BufferMut::with_capacity(LEN)).collect();
        let starts: Vec<_> = destinations.iter().map(BufferMut::as_ptr).collect();
        let destinations = destinations.into_iter().map(Destination::Buffer).collect();
        let killing = kill_after(peer, Duration::from_millis(delay_ms));
        let taken = within(Duration::from_secs(3), "accept", incoming.accept_into(destinations)).await;
        killing.join().unwrap();
        if let Err(failed) = taken {
            assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
            in_the_middle += 1;
            let returned: Vec<_> = failed
                .returned
                .iter()
                .map(|destination| match destination {
                    Destination::Buffer(buffer) => buffer.as_ptr(),
                    other => panic!("{other:?} returned"),
                })
                .collect();
            assert_eq!(returned, starts);
        }
    }
    assert!(in_the_middle > 0, "no message was cut");
}

async fn a_peer_that_exits_without_a_close_is_lost(row: &'static Row) {
    let (mut peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    echo(&connection, 100).await;
    // Its acknowledgement may have left or not.
    let last = connection.send(Message::new(EXIT)).await;
    drop(last.unwrap());
    let end = within(Duration::from_secs(2), "the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
    peer.assert_done().await;
}

async fn a_peer_that_closes_and_exits_is_closed(row: &'static Row) {
    let (peer, address) = Peer::serving(row).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    echo(&connection, 100).await;
    in_time("the last message", connection.deliver(Message::new(CLOSE))).await.unwrap();
    let end = in_time("the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
    drop(peer);
    assert_eq!(
        connection.recv().await.unwrap_err().kind(),
        ErrorKind::Closed,
        "a closed connection is not lost"
    );
}

async fn an_idle_connection_stays(row: &'static Row) {
    let (_peer, address) = Peer::serving(row).await;
    let connection = row.builder().heartbeat(HEARTBEAT).build().unwrap().connect(&address).await.unwrap();
    echo(&connection, 100).await;
    // No call is made for many heartbeats.
    tokio::time::sleep(HEARTBEAT * 10).await;
    echo(&connection, 100).await;
}

async fn a_message_is_received_without_room_for_a_second_copy(row: &'static Row) {
    let (mut peer, address) = Peer::listening("serve-limited", row, Home::Here, row.address).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    in_time("the first", connection.deliver(message(1, &[LIMITED_LEN]))).await.unwrap();
    let back = in_time("its echo", connection.recv()).await.unwrap();
    assert_message(&back, 1, &[LIMITED_LEN]);
    drop(back);
    in_time("the second", connection.deliver(message(2, &[LIMITED_LEN]))).await.unwrap();
    assert_message(&in_time("its receipt", connection.recv()).await.unwrap(), 3, &[]);
    assert_eq!(in_time("the end", connection.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    peer.assert_done().await;
}
