//! The cases over `rc_verbs`, run in the machine with the packaged UCX, the only one here that supports RDMA.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use towline::{BufferMut, Connection, ErrorKind, Failed, Message};
use towline_tests::echoing::Server;
use towline_tests::libraries::{self, Installed};
use towline_tests::over_ucx::{assert_echoes, assert_goes_on, bytes, endpoint, pair, run};
use towline_tests::polls::{eventually, in_time, within};
use towline_tests::usage;

/// The name and the function of a case.
pub(crate) type Case = (&'static str, fn());

pub(crate) const CASES: [Case; 9] = [
    ("transports_are_reported_with_the_device", transports_are_reported_with_the_device),
    ("rc_carries_a_connection_and_explain_reports_it", rc_carries_a_connection_and_explain_reports_it),
    ("messages_come_back_as_they_left", messages_come_back_as_they_left),
    ("ud_carries_messages_too", ud_carries_messages_too),
    ("regions_are_read_and_written", regions_are_read_and_written),
    ("data_moves_by_rdma_and_not_by_sends", data_moves_by_rdma_and_not_by_sends),
    ("remapped_memory_is_registered_again", remapped_memory_is_registered_again),
    ("a_connection_ends_in_good_order", a_connection_ends_in_good_order),
    ("killed_peers_are_lost_and_memory_comes_back", killed_peers_are_lost_and_memory_comes_back),
];

/// An address for the machine's device alone. With IPv4 addresses, the check that is disabled here drops the
/// first messages of UCX 1.13.
const RC: &str = "ucx://127.0.0.1:0?TLS=rc_v&NET_DEVICES=rxe0:1&UD_ETH_DGID_CHECK=n";
/// Small, large, and one byte more than a packet.
const LENS: [usize; 3] = [8, 64 << 10, (1 << 20) + 1];
/// The payload of one packet of the device, in bytes.
const PACKET_LEN: u64 = 1024;
/// The time limit for detecting a killed peer on an emulated machine. Real machines take milliseconds.
const NOTICE_TIME: Duration = Duration::from_secs(5);

fn installed() -> Installed {
    libraries::older().unwrap()
}

/// Returns the number of packets that the device sent.
fn packets_sent() -> u64 {
    counter("sent_pkts")
}

/// Returns the number of send operations of the device, each of which consumes a receive of the peer. Reads and
/// writes are not counted.
fn sends() -> u64 {
    counter("rdma_sends")
}

fn counter(name: &str) -> u64 {
    let counter = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
    fs::read_to_string(counter).unwrap().trim().parse().unwrap()
}

fn transports_are_reported_with_the_device() {
    let inventory = endpoint(&installed()).inventory("ucx").unwrap();
    for transport in ["rc_verbs/rxe0:1", "ud_verbs/rxe0:1"] {
        assert!(inventory.devices.iter().any(|device| device == transport), "{inventory:?}");
    }
}

fn rc_carries_a_connection_and_explain_reports_it() {
    run(async {
        let pair = pair(&installed(), RC).await;
        for end in [&pair.a, &pair.b] {
            assert_eq!(end.path().chosen(), "ucx");
            let notes = end.explain().await.notes;
            assert_eq!(notes, ["UCX uses rc_verbs/rxe0:1"]);
        }
        let before = packets_sent();
        let message = Message::new("in packets").with_frame(bytes(LENS[2]));
        let both = async { tokio::join!(pair.a.deliver(message), pair.b.recv()) };
        let (delivered, _) = in_time("a message", both).await;
        delivered.unwrap();
        let packets = packets_sent() - before;
        assert!(packets >= LENS[2] as u64 / PACKET_LEN, "{packets} packets cannot have carried it");
    });
}

fn messages_come_back_as_they_left() {
    let installed = installed();
    let (mut server, address) = Server::start(&installed.libucp, RC);
    run(async {
        let connection = in_time("a connection", endpoint(&installed).connect(&address)).await.unwrap();
        assert_echoes(&connection, &LENS).await;
        in_time("the end", connection.close()).await.unwrap();
    });
    assert!(server.0.wait().unwrap().success());
}

fn ud_carries_messages_too() {
    run(async {
        let pair = pair(&installed(), &RC.replace("rc_v", "ud_v")).await;
        assert_eq!(pair.a.explain().await.notes, ["UCX uses ud_verbs/rxe0:1"]);
        assert_goes_on(&pair.a, &pair.b).await;
    });
}

fn regions_are_read_and_written() {
    let (lifetime, len) = (Duration::from_secs(600), LENS[2]);
    run(async {
        let pair = pair(&installed(), RC).await;
        let readable = pair.b.expose(bytes(len).into(), lifetime).unwrap();
        let remote = readable.remote();
        for (offset, part) in [(0, len), (40_000, 8), (7, 64 << 10)] {
            let got = pair.a.get(&remote, offset as u64, BufferMut::with_capacity(part));
            let got = in_time("a get", got).await.unwrap();
            assert!(
                got.as_slice().unwrap() == &bytes(len)[offset..offset + part],
                "{part} bytes from {offset}"
            );
        }
        let writable = pair.b.expose_mut(BufferMut::zeroed(len), lifetime).unwrap();
        let (remote, mut expected) = (writable.remote(), vec![0; len]);
        for (offset, part) in [(100_000, 64 << 10), (9, 8), (400_000, 500_000)] {
            let put = pair.a.put(&remote, offset as u64, bytes(part).into());
            in_time("a put", put).await.unwrap();
            expected[offset..offset + part].copy_from_slice(&bytes(part));
        }
        let written = in_time("the memory", writable.revoke()).await;
        assert!(written.as_slice().unwrap() == expected, "other bytes were written");
    });
}

/// UCX reads the payload of a rendezvous once the owner has sent the address of the memory.
fn data_moves_by_rdma_and_not_by_sends() {
    run(async {
        let pair = pair(&installed(), RC).await;
        let region = pair.b.expose(bytes(LENS[2]).into(), Duration::from_secs(600)).unwrap();
        let remote = region.remote();
        let (packets, sends_used) = (packets_sent(), sends());
        let got = in_time("a get", pair.a.get(&remote, 0, BufferMut::with_capacity(LENS[2]))).await.unwrap();
        let (packets, sends_used) = (packets_sent() - packets, sends() - sends_used);
        assert_eq!(got.len(), LENS[2]);
        println!("{packets} packets, {sends_used} sends");
        assert!(packets >= LENS[2] as u64 / PACKET_LEN, "{packets} packets cannot have carried it");
        assert!(
            (1..20).contains(&sends_used),
            "{sends_used} sends among {packets} packets: the data was sent, not read"
        );
    });
}

/// UCX caches registrations, and the device keeps their pages. UCX must be notified if another mapping takes
/// the address.
fn remapped_memory_is_registered_again() {
    run(async {
        let pair = pair(&installed(), RC).await;
        let mut places = BTreeSet::new();
        for round in 0..6 {
            let sent: Vec<u8> = bytes(4 << 20).iter().map(|byte| byte ^ round).collect();
            let (message, into) =
                (Message::new("anew").with_frame(sent.clone()), BufferMut::with_capacity(sent.len()));
            places.insert(into.as_ptr().addr());
            let both = async { tokio::join!(pair.a.deliver(message), pair.b.recv_into(into)) };
            let (delivered, taken) = in_time("a message", both).await;
            delivered.unwrap();
            assert!(
                taken.unwrap().frames()[0].to_vec().unwrap() == sent,
                "other bytes arrived in round {round}"
            );
        }
        assert!(places.len() < 6, "no address was used twice, as this case needs");
    });
}

fn a_connection_ends_in_good_order() {
    run(async {
        let pair = pair(&installed(), RC).await;
        // A message sent before the close arrives.
        in_time("a message", pair.a.send(Message::new("the last"))).await.unwrap();
        let closing = async { tokio::join!(pair.a.close(), pair.b.recv()) };
        let (closed, last) = in_time("the end", closing).await;
        closed.unwrap();
        assert_eq!(last.unwrap().header()[..], *b"the last");
        let end = in_time("the end", pair.b.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
    });
}

fn killed_peers_are_lost_and_memory_comes_back() {
    let installed = installed();
    run(async {
        let endpoint = endpoint(&installed);
        let mut descriptors = usize::MAX;
        for delay in [500, 0, 100] {
            let (mut server, address) = Server::start(&installed.libucp, RC);
            let connection = in_time("a connection", endpoint.connect(&address)).await.unwrap();
            // Exchange messages first, so that the peer is killed during traffic.
            assert_echoes(&connection, &LENS).await;
            let sending = tokio::spawn(send_on_and_on(connection.clone()));
            let taking = tokio::spawn(async move {
                while connection.recv().await.is_ok() {}
                connection.recv().await.unwrap_err()
            });
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.0.kill().unwrap();
            let end = within(NOTICE_TIME, "the peer", taking).await.unwrap();
            assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
            let Failed { error, returned } =
                within(NOTICE_TIME, "what was being sent", sending).await.unwrap();
            assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
            assert!(
                returned.frames()[0].to_vec().unwrap() == bytes(LENS[2]),
                "the unsent message is returned"
            );
            eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
            eventually("no more descriptors than before", || usage::descriptors() <= descriptors).await;
            descriptors = usage::descriptors();
        }
    });
}

/// Sends messages until a send fails.
async fn send_on_and_on(connection: Connection) -> Failed<Message> {
    loop {
        let message = Message::new("on and on").with_frame(bytes(LENS[2]));
        if let Err(failed) = connection.send(message).await {
            return failed;
        }
    }
}
