//! Attaching over shm at the local socket: a violation is refused, another path still works, and
//! unauthenticated peers block no peer.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::SealFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towline::{Connection, ErrorKind};

use crate::backends::Row;
use crate::content::{assert_message, message};
use crate::mixed::Random;
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{EAGER, announcement, hand, packet, read_handshake, send};
use crate::sharing::{
    AttachingPeer, HANDSHAKE_TIME, HELLO_LEN, Hello, SEGMENT_LEN, Segment, ShmPeer, by_shm, connect_by_shm,
    listening, send_bytes, send_with_descriptors,
};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_PROCESS - CROSS_HOST:
        a_raw_peer_exchanges_messages_over_shm,
        many_links_have_short_rings,
        an_invalid_attach_is_refused_and_another_path_still_works,
        a_lack_of_descriptors_is_reported,
        unauthenticated_peers_at_the_local_socket_block_no_peer;
}

/// Asserts that a good pair still exchanges messages.
pub(crate) async fn assert_exchange((a, b): &(Connection, Connection), number: usize) {
    let both = async { tokio::join!(a.deliver(message(number, &[100, 20_000])), b.recv()) };
    let (sent, taken) = within(Duration::from_secs(2), "the good peer's message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), number, &[100, 20_000]);
}

async fn a_raw_peer_exchanges_messages_over_shm(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let (mut shm_peer, connection) = ShmPeer::connected(&endpoint, &listener, 1).await;
    assert_eq!(connection.path().chosen(), "shm");
    for number in 0..100 {
        shm_peer.write(&packet(&announcement(number, EAGER | 1, b"hi", 5000, &[7; 5000]), 0, &[]));
        let taken = in_time("recv", connection.recv()).await.unwrap();
        assert_eq!(
            (taken.header().as_ref(), taken.frames()[0].to_vec().unwrap()),
            (&b"hi"[..], vec![7; 5000])
        );
    }
    eventually("it acknowledges", || shm_peer.peer_word(crate::sharing::PRODUCED) >= 36).await;
    drop(shm_peer);
    let end = within(Duration::from_secs(1), "the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
}

async fn many_links_have_short_rings(row: &'static Row) {
    const LINKS: usize = 80;
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let mut pairs = Vec::new();
    for _ in 0..LINKS / 2 {
        pairs.push(connect_by_shm(&near, &listener).await);
    }
    // Each pair has both of its ends in this process, as may other cases.
    let (mut shm_peer, connection) = ShmPeer::connected(&endpoint, &listener, 1).await;
    assert_eq!(shm_peer.their_ring_len, 32 << 10);
    shm_peer.write(&packet(&announcement(0, EAGER | 1, b"hi", 5000, &[7; 5000]), 0, &[]));
    let taken = in_time("recv", connection.recv()).await.unwrap();
    assert_eq!(taken.frames()[0].to_vec().unwrap(), vec![7; 5000]);

    let (a, b) = pairs.last().expect("there are pairs");
    for (number, len) in [1, 16_000, 40_000, 300_000, 5 << 20].into_iter().enumerate() {
        for (from, to) in [(a, b), (b, a)] {
            let exchange = async { tokio::join!(from.deliver(message(number, &[len, 3])), to.recv()) };
            let (sent, taken) = in_time("a message", exchange).await;
            sent.unwrap();
            assert_message(&taken.unwrap(), number, &[len, 3]);
        }
    }
    for (number, pair) in pairs.iter().enumerate() {
        assert_exchange(pair, number).await;
    }
}

/// A violation of the attach, the reason of its refusal, and the change to the hello.
type Violation = (&'static str, &'static str, fn(&mut Hello));

const NOT_THE_PEER: &str = "not the peer of this connection";
pub(crate) const ALL: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// Returns a filled segment with these seals.
pub(crate) fn sealed_with(seals: SealFlags, len: usize) -> OwnedFd {
    let segment = Segment::open(len);
    segment.store(0, &vec![0; len]);
    segment.seal(seals);
    segment.memfd.try_clone().unwrap()
}

fn set_ring_len(hello: &mut Hello, len: u32) {
    hello.words[12..16].copy_from_slice(&len.to_le_bytes());
}

const VIOLATIONS: &[Violation] = &[
    ("a wrong proof", NOT_THE_PEER, |hello| hello.is_proven = false),
    ("another connection's name", "did not meet in time", |hello| hello.words[20] ^= 1),
    ("another magic", "another version", |hello| hello.words[0] ^= 1),
    ("another version", "another version", |hello| hello.words[8] = 2),
    ("an unknown flag", "another version", |hello| hello.words[10] = 2),
    ("reserved bytes", "another version", |hello| hello.words[11] = 1),
    ("no descriptor", "0 descriptors", |hello| hello.descriptors.clear()),
    ("two descriptors", "2 descriptors", |hello| drop(hello.descriptors.pop())),
    ("eight descriptors", "", |hello| {
        hello.descriptors.extend((0..5).map(|_| File::open("/dev/null").unwrap().into()));
    }),
    ("descriptors in reverse order", "it is no memfd", |hello| hello.descriptors.reverse()),
    ("a file for a segment", "it is no memfd", |hello| {
        hello.descriptors[0] = File::open(std::env::current_exe().unwrap()).unwrap().into();
    }),
    ("a device for a segment", "it is no memfd", |hello| {
        hello.descriptors[0] = File::open("/dev/zero").unwrap().into();
    }),
    ("a segment without seals", "not sealed against shrinking", |hello| {
        hello.descriptors[0] = sealed_with(SealFlags::empty(), SEGMENT_LEN);
    }),
    ("a segment that may shrink", "not sealed against shrinking", |hello| {
        hello.descriptors[0] = sealed_with(ALL - SealFlags::SHRINK, SEGMENT_LEN);
    }),
    ("a segment that may be written", "not sealed against future writes", |hello| {
        hello.descriptors[0] = sealed_with(ALL - SealFlags::FUTURE_WRITE, SEGMENT_LEN);
    }),
    ("a sparse segment", "not allocated", |hello| {
        let sparse = Segment::open(SEGMENT_LEN);
        sparse.seal(ALL);
        hello.descriptors[0] = sparse.memfd.try_clone().unwrap();
    }),
    ("a segment without room for its ring", "bytes", |hello| {
        hello.descriptors[0] = sealed_with(ALL, SEGMENT_LEN - 4096);
    }),
    ("a segment longer than announced", "more than the", |hello| {
        hello.descriptors[0] = sealed_with(ALL, SEGMENT_LEN * 2);
    }),
    ("a file for a doorbell", "its doorbell is not the read end of a pipe", |hello| {
        hello.descriptors[1] = File::open(std::env::current_exe().unwrap()).unwrap().into();
    }),
    ("a device for a doorbell", "its doorbell is not the read end of a pipe", |hello| {
        hello.descriptors[1] = File::open("/dev/zero").unwrap().into();
    }),
    ("a segment for a doorbell", "its doorbell is not the read end of a pipe", |hello| {
        hello.descriptors[1] = hello.descriptors[0].try_clone().unwrap();
    }),
    ("a write end for a doorbell", "its doorbell is not the read end of a pipe", |hello| {
        hello.descriptors[1] = hello.descriptors[2].try_clone().unwrap();
    }),
    ("a device for its holders", "its holders' pipe is not the write end of a pipe", |hello| {
        hello.descriptors[2] = File::options().write(true).open("/dev/null").unwrap().into();
    }),
    ("a doorbell for its holders", "its holders' pipe is not the write end of a pipe", |hello| {
        hello.descriptors[2] = hello.descriptors[1].try_clone().unwrap();
    }),
    ("a ring of no bytes", "a ring of 0 bytes", |hello| set_ring_len(hello, 0)),
    ("a ring of one byte", "a ring of 1 bytes", |hello| set_ring_len(hello, 1)),
    ("a ring of three pages", "a ring of 12288 bytes", |hello| set_ring_len(hello, 12_288)),
    ("a ring of 2 GiB", "a ring of 2147483648 bytes", |hello| set_ring_len(hello, 1 << 31)),
    ("a ring of all there is", "a ring of 4294967295 bytes", |hello| set_ring_len(hello, u32::MAX)),
];

async fn an_invalid_attach_is_refused_and_another_path_still_works(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    assert_exchange(&pair, 0).await;
    let before = usage::descriptors();
    for (number, (what, reason, violation)) in VIOLATIONS.iter().enumerate() {
        let mut attaching = AttachingPeer::new(&endpoint, &listener, number as u8).await;
        let (mut hello, _segment, _pipe) = attaching.hello();
        violation(&mut hello);
        let (_attach, _shown) = attaching.attach(&hello);
        let began = Instant::now();
        let refused = attaching.confirm().await.expect_err(what);
        assert!(refused.contains(reason), "{what}: {refused}");
        assert!(began.elapsed() < HANDSHAKE_TIME, "{what}: refused after {:?}", began.elapsed());
        send(&mut attaching.control, &hand(3, b"tcp")).await.unwrap();
        assert_eq!(
            read_handshake(&mut attaching.control).await,
            (4, vec![]),
            "{what}: the end is ready for tcp"
        );
        let connection = in_time("the connection", listener.accept()).await.unwrap();
        assert_eq!(connection.path().chosen(), "tcp");
        send(&mut attaching.control, &packet(&announcement(0, EAGER, b"hi", 5, b"hello"), 0, &[]))
            .await
            .unwrap();
        assert_eq!(in_time("recv", connection.recv()).await.unwrap().header(), "hi");
        drop((attaching, connection));
        assert_exchange(&pair, number).await;
    }
    eventually("every descriptor of the peer is closed", || usage::descriptors() <= before).await;
}

async fn a_lack_of_descriptors_is_reported(row: &'static Row) {
    let endpoint = || row.builder().handshake_time(HANDSHAKE_TIME / 2).build().unwrap();
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    // Opens what a process opens once.
    let opened = usage::descriptors();
    drop(connect_by_shm(&near, &listener).await);
    eventually("both ends are closed", || usage::descriptors() <= opened + 4).await;
    let baseline = usage::descriptors();
    let before = getrlimit(Resource::Nofile);
    let mut ends = Vec::new();
    for room in 0..32 {
        eventually("earlier descriptors are closed", || usage::descriptors() <= baseline).await;
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let open: Vec<u64> =
            entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        // Below this number, `room` descriptors are free.
        let current = (0..).filter(|number| !open.contains(number)).nth(room);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        let connected = in_time("an end", near.connect(&by_shm(&listener))).await;
        setrlimit(Resource::Nofile, before).unwrap();
        match connected {
            Ok(connection) => {
                drop((connection, in_time("the accepting end", listener.accept()).await.unwrap()))
            }
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Corrupt, "with {room} descriptors left: {error}");
                ends.push(error.to_string());
            }
        }
    }
    // At least once each, an end did not receive all descriptors of the other.
    for end in ["at the listening end", "at the connecting end"] {
        let is_reported = ends.iter().any(|error| error.contains(&format!("{end} no descriptor is left")));
        assert!(is_reported, "{end}: {ends:#?}");
    }
}

/// Several times the places in the local socket. One after another, they would delay the last peer by 2 s.
const UNAUTHENTICATED: usize = 600;

async fn unauthenticated_peers_at_the_local_socket_block_no_peer(row: &'static Row) {
    // With the default time limits.
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    let before = usage::descriptors();
    let attaching = AttachingPeer::new(&endpoint, &listener, 1).await;
    let (hello, segment, pipe) = attaching.hello();
    let encoded = attaching.encode(&hello);
    let mut random = Random::new(1, 1);
    let mut random_bytes = |len| (0..len).map(|_| random.below(256) as u8).collect::<Vec<_>>();
    let began = Instant::now();
    let unauthenticated: Vec<_> = (0..UNAUTHENTICATED)
        .map(|number| {
            let socket = attaching.dial();
            match number % 5 {
                0 => {}
                1 => send_bytes(&socket, &encoded[..encoded.len() / 2]),
                2 => send_bytes(&socket, &random_bytes(10)),
                3 => send_bytes(&socket, b"GET / HTTP/1.1\r\n"),
                // Without a full hello, its descriptors stay in the socket.
                _ => send_with_descriptors(&socket, &encoded[..1], &hello.descriptors),
            }
            socket
        })
        .collect();
    assert_exchange(&pair, 1).await;
    let address = by_shm(&listener);
    let connecting = async { tokio::join!(near.connect(&address), listener.accept()) };
    let (a, b) = within(Duration::from_secs(2), "one more good peer", connecting).await;
    let another = (a.unwrap(), b.unwrap());
    assert_exchange(&another, 2).await;
    for mut unauthenticated_peer in unauthenticated {
        let mut bytes = Vec::new();
        // A socket closed with unread descriptors ends with a reset.
        let _ = unauthenticated_peer.read_to_end(&mut bytes);
        assert_eq!(bytes, b"", "an unauthenticated peer receives nothing");
    }
    assert!(began.elapsed() < Duration::from_secs(4), "the last was dropped after {:?}", began.elapsed());
    // Whole hellos that belong to no connection are dropped at once.
    for number in 0..UNAUTHENTICATED {
        let mut unauthenticated_peer = attaching.dial();
        let began = Instant::now();
        if number % 2 == 0 {
            send_bytes(&unauthenticated_peer, &random_bytes(HELLO_LEN))
        } else {
            send_with_descriptors(&unauthenticated_peer, &random_bytes(HELLO_LEN), &hello.descriptors)
        }
        let _ = unauthenticated_peer.read_to_end(&mut Vec::new());
        assert!(began.elapsed() < Duration::from_secs(1), "dropped after {:?}", began.elapsed());
    }
    assert_exchange(&another, 3).await;
    drop((another, attaching, hello, segment, pipe));
    eventually("every descriptor is closed", || usage::descriptors() <= before).await;
}
