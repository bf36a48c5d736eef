//! What holds over `rc_verbs`: in the machine, with the one UCX of the package that knows RDMA.

use std::fs;
use std::time::{Duration, Instant};

use towline::{BufferMut, ErrorKind, Message};
use towline_tests::echoing::Server;
use towline_tests::libraries::{self, Installed};
use towline_tests::over_ucx::{assert_echoes, bytes, endpoint, pair, run};
use towline_tests::polls::{eventually, soon, within};

/// A claim, by its name.
pub(crate) type Case = (&'static str, fn());

pub(crate) const CASES: [Case; 6] = [
    ("its_transports_are_told_with_the_device", its_transports_are_told_with_the_device),
    ("rc_carries_a_connection_and_says_so", rc_carries_a_connection_and_says_so),
    ("messages_come_back_as_they_left", messages_come_back_as_they_left),
    ("regions_are_read_and_written", regions_are_read_and_written),
    ("a_connection_ends_in_good_order", a_connection_ends_in_good_order),
    ("a_killed_peer_is_lost_and_memory_comes_back", a_killed_peer_is_lost_and_memory_comes_back),
];

/// Over the machine's device and nothing else. The check drops the first messages of UCX 1.13, where addresses are of IPv4.
const RC: &str = "ucx://127.0.0.1:0?TLS=rc_v&NET_DEVICES=rxe0:1&UD_ETH_DGID_CHECK=n";
/// Small, large, and a byte more than a parcel.
const LENS: [usize; 3] = [8, 64 << 10, (1 << 20) + 1];
/// What the device puts into one packet.
const PACKET_LEN: u64 = 1024;
/// What a killed peer is noticed in, on a machine that is emulated: ordinarily it takes milliseconds.
const NOTICE_TIME: Duration = Duration::from_secs(5);

fn installed() -> Installed {
    libraries::older().unwrap()
}

/// Packets that left the device.
fn packets_sent() -> u64 {
    let counter = "/sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts";
    fs::read_to_string(counter).unwrap().trim().parse().unwrap()
}

fn its_transports_are_told_with_the_device() {
    let inventory = endpoint(&installed()).inventory("ucx").unwrap();
    for transport in ["rc_verbs/rxe0:1", "ud_verbs/rxe0:1"] {
        assert!(inventory.devices.iter().any(|device| device == transport), "{inventory:?}");
    }
}

fn rc_carries_a_connection_and_says_so() {
    run(async {
        let pair = pair(&installed(), RC).await;
        for end in [&pair.a, &pair.b] {
            assert_eq!(end.path().chosen(), "ucx");
            let notes = end.explain().await.notes;
            assert_eq!(notes, ["UCX took rc_verbs/rxe0:1"]);
        }
        let before = packets_sent();
        let message = Message::new("in packets").with_frame(bytes(LENS[2]));
        let both = async { tokio::join!(pair.a.deliver(message), pair.b.recv()) };
        let (delivered, _) = soon("a message", both).await;
        delivered.unwrap();
        let packets = packets_sent() - before;
        assert!(packets >= LENS[2] as u64 / PACKET_LEN, "{packets} packets cannot have carried it");
    });
}

fn messages_come_back_as_they_left() {
    let installed = installed();
    let (mut server, address) = Server::start(&installed.libucp, RC);
    run(async {
        let connection = soon("a connection", endpoint(&installed).connect(&address)).await.unwrap();
        assert_echoes(&connection, &LENS).await;
        soon("the end", connection.close()).await.unwrap();
    });
    assert!(server.0.wait().unwrap().success());
}

fn regions_are_read_and_written() {
    let (lifetime, len) = (Duration::from_secs(600), LENS[2]);
    run(async {
        let pair = pair(&installed(), RC).await;
        let readable = pair.b.expose(bytes(len).into(), lifetime).unwrap();
        let remote = readable.remote();
        for (offset, part) in [(0, len), (40_000, 8), (7, 64 << 10)] {
            let got = pair.a.get(&remote, offset as u64, BufferMut::with_capacity(part));
            let got = soon("a get", got).await.unwrap();
            assert!(
                got.as_slice().unwrap() == &bytes(len)[offset..offset + part],
                "{part} bytes from {offset}"
            );
        }
        let writable = pair.b.expose_mut(BufferMut::zeroed(len), lifetime).unwrap();
        let (remote, mut expected) = (writable.remote(), vec![0; len]);
        for (offset, part) in [(100_000, 64 << 10), (9, 8), (400_000, 500_000)] {
            let put = pair.a.put(&remote, offset as u64, bytes(part).into());
            soon("a put", put).await.unwrap();
            expected[offset..offset + part].copy_from_slice(&bytes(part));
        }
        let written = soon("the memory", writable.revoke()).await;
        assert!(written.as_slice().unwrap() == expected, "other bytes were written");
    });
}

fn a_connection_ends_in_good_order() {
    run(async {
        let pair = pair(&installed(), RC).await;
        // What was sent before the end is not lost by it.
        soon("a message", pair.a.send(Message::new("the last"))).await.unwrap();
        let closing = async { tokio::join!(pair.a.close(), pair.b.recv()) };
        let (closed, last) = soon("the end", closing).await;
        closed.unwrap();
        assert_eq!(last.unwrap().header()[..], *b"the last");
        let end = soon("the end", pair.b.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
    });
}

fn a_killed_peer_is_lost_and_memory_comes_back() {
    let installed = installed();
    let (mut server, address) = Server::start(&installed.libucp, RC);
    run(async {
        let endpoint = endpoint(&installed);
        let connection = soon("a connection", endpoint.connect(&address)).await.unwrap();
        // In good order first, so that it dies amid messages.
        assert_echoes(&connection, &LENS).await;
        let sending = {
            let connection = connection.clone();
            tokio::spawn(async move {
                loop {
                    let message = Message::new("on and on").with_frame(bytes(LENS[2]));
                    if let Err(failed) = connection.send(message).await {
                        return failed;
                    }
                }
            })
        };
        let taking = tokio::spawn(async move {
            loop {
                if let Err(end) = connection.recv().await {
                    return (end, Instant::now());
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.0.kill().unwrap();
        let killed = Instant::now();
        let (end, noticed) = within(NOTICE_TIME, "the peer", taking).await.unwrap();
        println!("noticed after {:?} of an emulated machine", noticed - killed);
        assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
        let failed = within(NOTICE_TIME, "what was being sent", sending).await.unwrap();
        assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{}", failed.error);
        let returned = failed.returned.frames()[0].clone();
        assert!(returned.to_vec().unwrap() == bytes(LENS[2]), "what did not leave is given back");
        eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    });
}
