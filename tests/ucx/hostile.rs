//! A hostile peer over UCX: wrong keys, numbers and lengths, and payload without credit.
//!
//! A violation ends at most its own connection. Another connection of the same endpoint works on.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

use towline::backend::{Tcp, Ucx};
use towline::{Connection, Endpoint, ErrorKind};
use ucx_sys::{Library, UCP_AM_SEND_FLAG_RNDV};

use crate::hostile_peer::{
    HELLO, Handshake, HostilePeer, MEASURE, NOT_READY, PACKET, PROPOSE, READY, READY_INFO, RECORDS, REFUSE,
    info_of, propose,
};
use crate::libraries::Installed;
use crate::node::Node;
use crate::over_ucx::{SHM, TCP, assert_goes_on, at, builder, meet, run};
use crate::polls::within;
use crate::wire::{announcement, hand, packet, record};

/// The time limit for detecting a violation.
const LIMIT: Duration = Duration::from_secs(5);
/// The time limit of a handshake.
const HANDSHAKE_TIME: Duration = Duration::from_millis(800);
const EAGER: u8 = 4;
/// A message that travels as packets.
const LARGE: usize = 20_000;

/// The effect of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The connection ends: `Corrupt`.
    Ends,
    /// The message is ignored, and the connection works on.
    Continues,
}
use Outcome::{Continues, Ends};

/// The name of a violation, its effect, and its code.
type Violation = (&'static str, Outcome, fn(&HostilePeer));

const VIOLATIONS: &[Violation] = &[
    ("records for another connection", Continues, |hostile_peer| {
        hostile_peer.send(RECORDS, &[], [&[7; 24], &small_announcement()[..]].concat())
    }),
    ("records without a key", Continues, |hostile_peer| {
        hostile_peer.send(RECORDS, &[], small_announcement())
    }),
    ("half a key", Continues, |hostile_peer| hostile_peer.send(RECORDS, &[], hostile_peer.key[..8].to_vec())),
    ("nothing at all", Continues, |hostile_peer| hostile_peer.send(RECORDS, &[], vec![])),
    ("records without a number", Ends, |hostile_peer| {
        hostile_peer.send(RECORDS, &[], hostile_peer.key.to_vec())
    }),
    ("half a number", Ends, |hostile_peer| hostile_peer.send(RECORDS, &[], hostile_peer.header(&[0; 4]))),
    ("records with a header", Continues, |hostile_peer| {
        hostile_peer.send(RECORDS, &hostile_peer.key, hostile_peer.header(&[0; 8]))
    }),
    ("the highest number", Ends, |hostile_peer| records(hostile_peer, u64::MAX, small_announcement())),
    ("a number far ahead", Ends, |hostile_peer| records(hostile_peer, 5000, small_announcement())),
    ("a later number, twice", Ends, |hostile_peer| {
        [5, 5].into_iter().for_each(|number| records(hostile_peer, number, small_announcement()))
    }),
    ("the first number, twice", Ends, |hostile_peer| {
        [0, 0].into_iter().for_each(|number| records(hostile_peer, number, small_announcement()))
    }),
    ("records that are garbage", Ends, |hostile_peer| records(hostile_peer, 0, vec![0xa5; 300])),
    ("half a record, and another number", Ends, |hostile_peer| {
        records(hostile_peer, 0, small_announcement()[..20].to_vec());
        records(hostile_peer, 1, small_announcement());
    }),
    ("records beyond the limit of one message", Ends, |hostile_peer| {
        records(hostile_peer, 0, vec![0; 200 << 10])
    }),
    ("an unknown record", Ends, |hostile_peer| {
        records(hostile_peer, 0, packet(&record(13, 0, 0, &[]), 0, &[]))
    }),
    ("data among records", Ends, |hostile_peer| records(hostile_peer, 0, packet(&[], 0, &[1; 100]))),
    ("records by rendezvous", Continues, |hostile_peer| {
        hostile_peer.send_with(
            RECORDS,
            &[],
            [&hostile_peer.key[..], &[0; 1 << 20]].concat(),
            UCP_AM_SEND_FLAG_RNDV,
        );
    }),
    ("a packet for another connection", Continues, |hostile_peer| {
        hostile_peer.send(PACKET, &[7; 40], vec![1; 100])
    }),
    ("a packet without a head", Ends, |hostile_peer| {
        hostile_peer.send(PACKET, &hostile_peer.key, vec![1; 100])
    }),
    ("a packet with half a head", Ends, |hostile_peer| {
        hostile_peer.send(PACKET, &hostile_peer.header(&[0; 12]), vec![1; 100])
    }),
    ("a packet shorter than its head states", Ends, |hostile_peer| {
        data(hostile_peer, 101, 0, 0, vec![1; 100])
    }),
    ("a packet longer than its head states", Ends, |hostile_peer| data(hostile_peer, 99, 0, 0, vec![1; 100])),
    ("a packet whose head states more than the limit", Ends, |hostile_peer| {
        data(hostile_peer, u32::MAX, 0, 0, vec![1; 100])
    }),
    ("a packet of records", Ends, |hostile_peer| {
        hostile_peer.send(
            PACKET,
            &hostile_peer.header(&[&100_u32.to_le_bytes()[..], &[0; 20]].concat()),
            vec![1; 100],
        );
    }),
    ("a packet with a header beyond the limit", Continues, |hostile_peer| {
        hostile_peer.send(PACKET, &hostile_peer.header(&[0; 300]), vec![1; 100]);
    }),
    ("a packet with half a number of records", Ends, |hostile_peer| with_records(hostile_peer, &[0; 4], &[])),
    ("a packet with garbage for records", Ends, |hostile_peer| {
        with_records(hostile_peer, &[0; 8], &[0xa5; 100])
    }),
    ("a packet with records received before", Ends, |hostile_peer| {
        records(hostile_peer, 0, small_announcement());
        with_records(hostile_peer, &[0; 8], &small_announcement());
    }),
    ("a packet with records far ahead", Ends, |hostile_peer| {
        with_records(hostile_peer, &5000_u64.to_le_bytes(), &small_announcement());
    }),
    ("a packet without credit, with its announcement", Ends, |hostile_peer| {
        let head = head(LARGE as u32, 0, 0);
        hostile_peer.send(
            PACKET,
            &hostile_peer.header(&[&head, &[0; 8][..], &large_announcement()].concat()),
            vec![1; LARGE],
        );
    }),
    ("a response to no get", Ends, |hostile_peer| data(hostile_peer, 100, 1, 0, vec![1; 100])),
    ("payload of no put", Ends, |hostile_peer| data(hostile_peer, 100, 2, 0, vec![1; 100])),
    ("payload of an unknown kind", Ends, |hostile_peer| data(hostile_peer, 100, 3, 0, vec![1; 100])),
    ("payload of a message beyond the window", Ends, |hostile_peer| {
        data(hostile_peer, 100, 5000 << 2, 0, vec![1; 100])
    }),
    ("payload at an unaligned offset", Ends, |hostile_peer| {
        records(hostile_peer, 0, large_announcement());
        data(hostile_peer, 100, 0, 50, vec![1; 100]);
    }),
    ("payload of a small message", Ends, |hostile_peer| {
        records(hostile_peer, 0, small_announcement());
        data(hostile_peer, 5, 0, 0, b"hello".to_vec());
    }),
    ("payload without credit", Ends, |hostile_peer| {
        records(hostile_peer, 0, large_announcement());
        data(hostile_peer, LARGE as u32, 0, 0, vec![1; LARGE]);
    }),
    ("rendezvous payload of no message", Ends, |hostile_peer| {
        let head = head(1 << 20, 5000 << 2, 0);
        hostile_peer.send_with(PACKET, &hostile_peer.header(&head), vec![1; 1 << 20], UCP_AM_SEND_FLAG_RNDV);
    }),
    ("two thousand packets of later messages", Ends, |hostile_peer| {
        for number in 0..2000 {
            data(hostile_peer, 1, (number % 1000) << 2, number / 1000, vec![1]);
        }
    }),
    ("one more hello", Continues, |hostile_peer| hostile_peer.send(HELLO, &hostile_peer.key, vec![])),
    ("hello with a book", Continues, |hostile_peer| {
        hostile_peer.send(HELLO, &hostile_peer.header(&[0; 80]), vec![7; 3000])
    }),
    // Ids just beyond the last: UCX before 1.17 reads its table before it checks the bound (docs/gotchas.md).
    ("messages with ids without a handler", Continues, |hostile_peer| {
        (3..32).for_each(|id| hostile_peer.send(id, &hostile_peer.key, small_announcement()))
    }),
];

/// The announcement of a small message, the first.
fn small_announcement() -> Vec<u8> {
    packet(&announcement(0, EAGER, b"hi", 5, b"hello"), 0, &[])
}

/// The announcement of a large message, whose payload waits for the accept.
fn large_announcement() -> Vec<u8> {
    packet(&announcement(0, 0, b"hi", LARGE as u64, b""), 0, &[])
}

fn records(hostile_peer: &HostilePeer, number: u64, bytes: Vec<u8>) {
    hostile_peer.send(RECORDS, &[], hostile_peer.header(&[&number.to_le_bytes()[..], &bytes].concat()));
}

/// Sends a packet of a later message, with records behind its head.
fn with_records(hostile_peer: &HostilePeer, number: &[u8], records: &[u8]) {
    hostile_peer.send(
        PACKET,
        &hostile_peer.header(&[&head(100, 4, 0), number, records].concat()),
        vec![1; 100],
    );
}

fn head(len: u32, transfer: u64, offset: u64) -> Vec<u8> {
    [&[0; 4][..], &len.to_le_bytes(), &transfer.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn data(hostile_peer: &HostilePeer, len: u32, transfer: u64, offset: u64, bytes: Vec<u8>) {
    hostile_peer.send(PACKET, &hostile_peer.header(&head(len, transfer, offset)), bytes);
}

pub(crate) fn a_violation_ends_its_own_connection_at_most(installed: &Installed) {
    let ways: [(&str, &[(&CStr, &CStr)]); 2] = [
        (TCP, &[(c"TLS", c"tcp"), (c"NET_DEVICES", c"lo")]),
        (SHM, &[(c"TLS", c"posix,sysv,cma"), (c"MM_ERROR_HANDLING", c"y")]),
    ];
    let ucx = Library::open_at(&installed.libucp).unwrap();
    for (address, settings) in ways {
        run(async {
            let endpoint = builder(installed).heartbeat(Duration::from_secs(60)).build().unwrap();
            let listener = endpoint.listen(&at(address)).await.unwrap();
            let (honest, owner) = meet(&endpoint, &listener).await;
            for (nonce, (what, outcome, violation)) in VIOLATIONS.iter().enumerate() {
                let hostile_peer = HostilePeer::connected(ucx, &listener, nonce as u8, settings);
                let connection = within(LIMIT, what, listener.accept()).await.unwrap();
                violation(&hostile_peer);
                if *outcome == Continues {
                    records(&hostile_peer, 0, small_announcement());
                }
                let end = outcome_of(&hostile_peer, what, *outcome, &connection).await;
                assert_eq!(end, *outcome, "{what}");
            }
            assert_goes_on(&honest, &owner).await;
        });
    }
}

/// Returns the effect of a violation on the connection.
async fn outcome_of(
    hostile_peer: &HostilePeer,
    what: &str,
    expected: Outcome,
    connection: &Connection,
) -> Outcome {
    let receiving = async {
        // Messages announced before the violation are not accepted.
        let mut announced = Vec::new();
        loop {
            match connection.incoming().await {
                Ok(incoming) if expected == Continues => {
                    assert_eq!(incoming.accept().await.unwrap().frames()[0].as_slice().unwrap(), b"hello");
                    return Continues;
                }
                Ok(incoming) => announced.push(incoming),
                Err(end) => {
                    assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
                    return Ends;
                }
            }
        }
    };
    let progressing = async {
        loop {
            hostile_peer.node.progress();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let both = async {
        tokio::select! {
            outcome = receiving => outcome,
            () = progressing => unreachable!("it loops"),
        }
    };
    within(LIMIT, what, both).await
}

pub(crate) fn a_violation_before_the_path_is_open_is_refused(installed: &Installed) {
    let ucx = Library::open_at(&installed.libucp).unwrap();
    run(async {
        let endpoint = builder(installed).handshake_time(HANDSHAKE_TIME).build().unwrap();
        let listener = endpoint.listen(&at(TCP)).await.unwrap();
        // This listener does not allow other versions.
        let strict = endpoint.listen(&at(SHM)).await.unwrap();
        let (honest, owner) = meet(&endpoint, &listener).await;
        let silent = Node::new(ucx);
        let info = |address: &[u8]| propose(&info_of(ucx, address));
        let violations: [(&str, Vec<u8>, u8, &str); 7] = [
            ("an empty endpoint info", propose(&[]), REFUSE, "an endpoint info is empty"),
            ("an endpoint info beyond its limit", propose(&[1; 16_385]), REFUSE, "limit"),
            ("no endpoint info", hand(PROPOSE, b"ucx"), NOT_READY, "sent no worker address"),
            ("another layout", propose(&[2; 80]), NOT_READY, "layout 2"),
            ("an endpoint info that is no address", info(&[1; 8]), NOT_READY, "shorter than any"),
            ("another version", propose(&[1; 80]), NOT_READY, "of different versions"),
            ("a worker that never says hello", info(&silent.address()), READY_INFO, "did not meet in time"),
        ];
        for (nonce, (what, violation, answer, why)) in violations.into_iter().enumerate() {
            let listener = if what == "another version" { &strict } else { &listener };
            let (mut handshake, _) = Handshake::greeted(listener, nonce as u8);
            handshake.send(&violation);
            let (mut kind, mut reason) = handshake.receive(|| silent.progress());
            assert_eq!(kind, answer, "{what}");
            if answer == READY_INFO {
                handshake.send(&hand(READY, b""));
                (kind, reason) = handshake.receive(|| silent.progress());
                assert_eq!(kind, NOT_READY, "{what}");
            }
            let reason = String::from_utf8_lossy(&reason).into_owned();
            assert!(reason.contains(why), "{what}: {reason}");
        }
        assert_goes_on(&honest, &owner).await;
    });
}

/// The hostile peer claims to be on another host, so that it may measure UCX against tcp.
pub(crate) fn measurements_beyond_their_bounds_end_only_their_own_connection(installed: &Installed) {
    let ucx = Library::open_at(&installed.libucp).unwrap();
    run(async {
        let backend = Arc::new(Ucx::default().library(&installed.libucp));
        let builder = Endpoint::builder().backends(vec![backend, Arc::new(Tcp)]);
        let endpoint = builder.handshake_time(HANDSHAKE_TIME).build().unwrap();
        let listener = endpoint.listen(&at("towline://127.0.0.1:0")).await.unwrap();
        let silent = Node::new(ucx);
        if ucx.version().minor < 14 {
            // This version may abort over tcp, so there is no path probe.
            let (mut handshake, _) = Handshake::greeted(&listener, 0);
            handshake.send(&propose(&info_of(ucx, &silent.address())));
            let (kind, reason) = handshake.receive(|| silent.progress());
            let reason = String::from_utf8_lossy(&reason);
            assert!(kind == NOT_READY && reason.contains("may abort this process"), "{kind} {reason}");
            let (a, b) = meet(&endpoint, &listener).await;
            return assert_goes_on(&a, &b).await;
        }
        let measure = |len: u32| hand(MEASURE, &len.to_le_bytes());
        let violations = [
            ("of nothing", measure(0), 0, "no bytes"),
            ("beyond a mebibyte", measure(1 << 20 | 1), 0, "limit"),
            ("too many", [measure(1), vec![7]].concat().repeat(65), 64, "Measure arrived where"),
        ];
        for (nonce, (what, violation, ready, why)) in violations.into_iter().enumerate() {
            let (mut handshake, _) = Handshake::greeted(&listener, nonce as u8);
            handshake.send(&propose(&info_of(ucx, &silent.address())));
            assert_eq!(handshake.receive(|| silent.progress()).0, READY_INFO, "{what}");
            handshake.send(&violation);
            for _ in 0..ready {
                assert_eq!(handshake.receive(|| silent.progress()).0, READY, "{what}");
            }
            let (kind, reason) = handshake.receive(|| silent.progress());
            let reason = String::from_utf8_lossy(&reason);
            assert!(kind == REFUSE && reason.contains(why), "{what}: {kind} {reason}");
        }
        let (a, b) = meet(&endpoint, &listener).await;
        assert_goes_on(&a, &b).await;
    });
}
