//! A hostile peer that is correct until it violates the protocol: in lengths, numbers, order, credit, keys,
//! reserved bytes.
//!
//! Each violation is a row of the table, and ends its own connection at most. Operations in flight there end
//! and return their memory. Memory that the peer may not touch is unchanged. A good peer's messages continue.

use std::time::Duration;

use tokio::task::JoinHandle;
use towline::{Buffer, BufferMut, Connection, ErrorKind, Failed, Incoming, Message, Region, RemoteRegion};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::encrypted::Stream;
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{
    CLOSE, EAGER, STREAMS, announcement, connected, hand, packet, record, rest, send, until,
};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_HOST:
        a_protocol_violation_ends_its_own_connection_only;
}

/// Time limit until our end detects a violation.
const LIMIT: Duration = Duration::from_secs(2);
const GROWTH_MAX: u64 = 30 << 20;
const ACCEPT: u8 = 2;
const ACK: u8 = 3;
const GET: u8 = 7;
const PUT: u8 = 8;
const READY_TO_RECEIVE: u8 = 9;
const DONE: u8 = 10;
const REFUSED: u8 = 11;
/// Flag of a put: the record holds its payload.
const INLINE: u8 = 2;
/// Length of a payload that travels as data, announced and requested.
const LARGE: usize = 20_000;
/// Length of the region that may be read, and of our get. The region that may be written has `LARGE` bytes.
const REGION_LEN: usize = 1000;

/// The effect of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The connection ends with `Corrupt`.
    Corrupt,
    /// The bytes are valid: the connection continues.
    Nothing,
    /// The request is refused, and the connection continues.
    Refused,
    /// The empty request completes, and the connection continues.
    Done,
}
use Outcome::{Corrupt, Done, Nothing, Refused};

/// A violation, its effect, and its bytes.
type Violation = (&'static str, Outcome, fn(&Scene) -> Vec<u8>);

const LENGTHS: &[Violation] = &[
    ("records longer than their packet states", Corrupt, |_| {
        let mut bytes = records(&[small(2)]);
        bytes[0] -= 1;
        bytes
    }),
    ("records shorter than their packet states", Corrupt, |_| {
        let mut bytes = records(&[small(2), small(3)]);
        bytes[0] += 16;
        [bytes, records(&[small(4)])].concat()
    }),
    ("a record beyond its packet", Corrupt, |_| {
        let mut large = small(2);
        large[5] = 1;
        records(&[large])
    }),
    ("a header beyond its record", Corrupt, |_| {
        let body = [&9_u32.to_le_bytes()[..], &[0; 4], b"hi"].concat();
        records(&[record(1, EAGER, 2, &body)])
    }),
    ("a header beyond its limit", Corrupt, |_| records(&[announcement(2, EAGER, &[0; 65_537], 0, b"")])),
    ("a frame table beyond its record", Corrupt, |_| {
        records(&[record(1, EAGER, 2, &[[0; 4], 65_536_u32.to_le_bytes()].concat())])
    }),
    ("a frame table beyond its limit", Corrupt, |_| {
        let body = [[0; 4], 65_537_u32.to_le_bytes()].concat();
        records(&[record(1, EAGER, 2, &[body, vec![0; 65_537 * 8]].concat())])
    }),
    ("frames beyond what a message can be", Corrupt, |_| {
        let body = [[0; 4], 3_u32.to_le_bytes()].concat();
        let frames = [(1_u64 << 48) - 1; 3].map(u64::to_le_bytes).concat();
        records(&[record(1, 0, 2, &[body, frames].concat())])
    }),
    ("eager payload a byte short", Corrupt, |_| records(&[announcement(2, EAGER, b"", 5, b"hell")])),
    ("eager payload a byte long", Corrupt, |_| records(&[announcement(2, EAGER, b"", 5, b"hello!")])),
    ("data a byte longer than its message", Corrupt, |_| packet(&[], 1 << 2, &[7; LARGE + 1])),
    ("data that goes on behind its message", Corrupt, |_| {
        [packet(&[], 1 << 2, &[7; LARGE]), packet(&[], 1 << 2, &[7; 1])].concat()
    }),
    ("a get answered with more than it asked for", Corrupt, |_| packet(&[], 1, &[7; REGION_LEN + 1])),
    ("a put longer than it states", Corrupt, |scene| records(&[scene.put(INLINE, 0, 5, b"hello!")])),
    ("a small put without its payload", Corrupt, |scene| records(&[scene.put(0, 0, 5, b"")])),
    ("a reason beyond its limit", Corrupt, |_| records(&[record(REFUSED, 0, 0, &[b'x'; 1025])])),
    ("a bitmap beyond its limit", Corrupt, |_| records(&[record(ACCEPT, 0, 1, &[0; 8193])])),
];

const NUMBERS: &[Violation] = &[
    ("the number of an earlier message", Corrupt, |_| records(&[small(1)])),
    ("a number left out", Corrupt, |_| records(&[small(3)])),
    ("the last number there is", Corrupt, |_| records(&[small(u64::MAX)])),
    ("an ack of a message never sent", Corrupt, |_| records(&[ack(0, 3)])),
    ("an ack of a message that waits for its accept", Corrupt, |_| records(&[ack(1, 1)])),
    ("acks of more messages than exist", Corrupt, |_| records(&[ack(0, u32::MAX)])),
    ("an accept of a small message", Corrupt, |_| records(&[record(ACCEPT, 0, 0, &[])])),
    ("two accepts of one message", Corrupt, |_| {
        records(&[record(ACCEPT, 0, 1, &[]), record(ACCEPT, 0, 1, &[])])
    }),
    ("data of a message that is here", Corrupt, |_| packet(&[], 0, &[7; 5])),
    ("data of a message to come", Corrupt, |_| packet(&[], 9 << 2, &[7; 5])),
    ("data of nothing", Corrupt, |_| packet(&[], 3, &[])),
    ("data for a put that was never asked for", Corrupt, |_| packet(&[], 2, &[7; 5])),
    ("data for no get", Corrupt, |_| packet(&[], 7 << 2 | 1, &[7; 5])),
    ("data from the owner for a put", Corrupt, |_| packet(&[], 1 << 2 | 1, &[7; 5])),
    ("ready-to-receive for a get", Corrupt, |_| records(&[record(READY_TO_RECEIVE, 0, 0, &[])])),
    ("ready-to-receive for a small put", Corrupt, |_| records(&[record(READY_TO_RECEIVE, 0, 2, &[])])),
    ("Refused twice", Corrupt, |_| records(&[record(REFUSED, 0, 0, b"no"), record(REFUSED, 0, 0, b"no")])),
    ("Done twice", Corrupt, |_| records(&[record(DONE, 0, 2, &[]), record(DONE, 0, 2, &[])])),
    ("two puts of one number", Corrupt, |scene| records(&[scene.large_put(5, 0), scene.large_put(5, 0)])),
];

const ORDER: &[Violation] = &[
    ("the handshake once more", Corrupt, |_| hand(3, b"tcp")),
    ("payload that was not asked for", Corrupt, |_| {
        [records(&[announcement(2, 0, b"", LARGE as u64, b"")]), packet(&[], 2 << 2, &[7; LARGE])].concat()
    }),
    ("ready-to-receive twice", Corrupt, |_| {
        records(&[record(READY_TO_RECEIVE, 0, 1, &[]), record(READY_TO_RECEIVE, 0, 1, &[])])
    }),
    ("Done before ready-to-receive", Corrupt, |_| records(&[record(DONE, 0, 1, &[])])),
    ("a get half answered, and done", Corrupt, |_| {
        [packet(&[], 1, &[7; REGION_LEN / 2]), records(&[record(DONE, 0, 0, &[])])].concat()
    }),
    ("a get answered, and done once more", Corrupt, |_| {
        [packet(&[], 1, &[7; REGION_LEN]), records(&[record(DONE, 0, 0, &[])])].concat()
    }),
    ("a get refused, and answered", Corrupt, |_| packet(&record(REFUSED, 0, 0, b"no"), 1, &[7; REGION_LEN])),
    ("a message after Close", Corrupt, |_| records(&[record(CLOSE, 0, 0, &[]), small(2)])),
    ("Close twice", Corrupt, |_| records(&[record(CLOSE, 0, 0, &[]), record(CLOSE, 0, 0, &[])])),
];

const CREDIT: &[Violation] = &[
    ("more messages than were granted", Corrupt, |_| records(&(2..1027).map(small).collect::<Vec<_>>())),
    ("more bytes than were granted", Corrupt, |_| {
        let full = |number| announcement(number, EAGER, b"", 16_383, &[7; 16_383]);
        [records(&(2..34).map(full).collect::<Vec<_>>()), records(&(34..80).map(full).collect::<Vec<_>>())]
            .concat()
    }),
    ("more requests than may be unanswered", Corrupt, |scene| {
        records(&(0..1025).map(|number| scene.get_from(scene.readable(), number, 0, 5)).collect::<Vec<_>>())
    }),
    ("payload ahead of its grant", Corrupt, |_| {
        records(&[announcement(2, STREAMS, b"", (4 << 20) + 1, b"")])
    }),
    ("a packet of 4 GiB", Corrupt, |_| [&[0xff; 8][..], &[0; 8]].concat()),
];

const KEYS: &[Violation] = &[
    ("an unknown key", Refused, |scene| records(&[scene.get_from([9; 16], 0, 0, 5)])),
    ("the key of another connection", Refused, |scene| records(&[scene.get_from(scene.foreign, 0, 0, 5)])),
    ("a put by the key of another connection", Refused, |scene| {
        records(&[put_to(scene.foreign, INLINE, 0, 0, 5, b"hello")])
    }),
    ("the key of a region that was revoked", Refused, |scene| {
        records(&[scene.get_from(scene.revoked, 0, 0, 5)])
    }),
    ("a get of a writable region", Refused, |scene| records(&[scene.get_from(scene.writable(), 0, 0, 5)])),
    ("a put to a readable region", Refused, |scene| {
        records(&[put_to(scene.readable(), INLINE, 0, 0, 5, b"hello")])
    }),
    ("a read beyond the end", Refused, |scene| {
        records(&[scene.get_from(scene.readable(), 0, REGION_LEN as u64 - 4, 5)])
    }),
    ("a write beyond the end", Refused, |scene| records(&[scene.put(INLINE, LARGE as u64 - 4, 5, b"hello")])),
    ("a large write beyond the end", Refused, |scene| records(&[scene.large_put(0, 1)])),
    ("a range that wraps around", Refused, |scene| {
        records(&[scene.get_from(scene.readable(), 0, u64::MAX, u64::MAX)])
    }),
    ("all of the address space", Refused, |scene| {
        records(&[scene.get_from(scene.readable(), 0, 0, u64::MAX)])
    }),
];

const RESERVED: &[Violation] = &[
    ("the first reserved byte", Corrupt, |_| reserved(2)),
    ("the second reserved byte", Corrupt, |_| reserved(3)),
    ("an unknown flag of an ack", Corrupt, |_| records(&[record(ACK, 2, 0, &1_u32.to_le_bytes())])),
    ("an unknown flag of a get", Corrupt, |scene| {
        let mut get = scene.get_from(scene.readable(), 0, 0, 5);
        get[1] = 1;
        records(&[get])
    }),
    ("a message both eager and streaming", Corrupt, |_| {
        records(&[announcement(2, EAGER | STREAMS, b"", 5, b"hello")])
    }),
    ("a Ping with a body", Corrupt, |_| records(&[record(5, 0, 0, &[0])])),
    ("a ready-to-receive with a body", Corrupt, |_| records(&[record(READY_TO_RECEIVE, 0, 1, &[0])])),
    ("kind 0", Corrupt, |_| records(&[record(0, 0, 0, &[])])),
    ("kind 255", Corrupt, |_| records(&[record(255, 0, 0, &[])])),
];

/// Valid bytes that look like violations.
const EMPTY: &[Violation] = &[
    ("empty packets", Nothing, |_| packet(&[], 0, &[]).repeat(1000)),
    ("an ack of no message", Nothing, |_| records(&[ack(0, 0)])),
    ("a grant of everything", Nothing, |_| records(&[record(4, 0, u64::MAX, &[])])),
    ("a get of nothing", Done, |scene| records(&[scene.get_from(scene.readable(), 0, REGION_LEN as u64, 0)])),
    ("a put of nothing", Done, |scene| records(&[scene.put(INLINE, LARGE as u64, 0, b"")])),
    ("a get of nothing beyond the end", Refused, |scene| {
        records(&[scene.get_from(scene.readable(), 0, REGION_LEN as u64 + 1, 0)])
    }),
];

const VIOLATIONS: [&[Violation]; 7] = [LENGTHS, NUMBERS, ORDER, CREDIT, KEYS, RESERVED, EMPTY];

fn records(records: &[Vec<u8>]) -> Vec<u8> {
    packet(&records.concat(), 0, &[])
}

/// Returns a small message, valid except for its number.
fn small(number: u64) -> Vec<u8> {
    announcement(number, EAGER, b"hi", 5, b"hello")
}

fn ack(first: u64, count: u32) -> Vec<u8> {
    record(ACK, 0, first, &count.to_le_bytes())
}

fn reserved(at: usize) -> Vec<u8> {
    let mut message = small(2);
    message[at] = 1;
    records(&[message])
}

fn range(key: [u8; 16], offset: u64, len: u64) -> Vec<u8> {
    [&key[..], &offset.to_le_bytes(), &len.to_le_bytes()].concat()
}

fn put_to(key: [u8; 16], flags: u8, number: u64, offset: u64, len: u64, payload: &[u8]) -> Vec<u8> {
    record(PUT, flags, number, &[&range(key, offset, len), payload].concat())
}

fn key<M>(region: &Region<M>) -> [u8; 16] {
    let bytes = region.remote().to_bytes();
    std::array::from_fn(|at| bytes[16 + at])
}

/// A connection with operations in flight. The peer announced message 0, which was received, and 1, which is
/// large and was accepted. This end sent message 0, and 1, which is large and waits. It requested a get (0),
/// a large put (1) and a small put (2).
struct Scene {
    stream: Box<dyn Stream>,
    connection: Connection,
    readable: Region<Buffer>,
    writable: Region<BufferMut>,
    revoked: [u8; 16],
    /// The key of a good peer's region.
    foreign: [u8; 16],
    accepting: JoinHandle<Result<Message, towline::Error>>,
    sending: JoinHandle<Result<(), Failed<Message>>>,
    getting: JoinHandle<Result<BufferMut, Failed<BufferMut>>>,
    putting: JoinHandle<Result<(), Failed<Buffer>>>,
}

impl Scene {
    async fn set(stream: Box<dyn Stream>, connection: Connection, foreign: [u8; 16]) -> Self {
        let mut stream = stream;
        let large = announcement(1, 0, b"large", LARGE as u64, b"");
        send(&mut stream, &records(&[small(0), large])).await.unwrap();
        let first = in_time("the first message", connection.recv()).await.unwrap();
        assert_eq!(first.header(), "hi");
        let incoming: Incoming = in_time("the large one", connection.incoming()).await.unwrap();
        let accepting = tokio::spawn(incoming.accept());
        until(&mut stream, &record(ACCEPT, 0, 1, &[])).await;

        connection.send(Message::new("small").with_frame("frame")).await.unwrap();
        let sender = connection.clone();
        let message = Message::new("waits").with_frame(vec![1; LARGE]);
        let sending = tokio::spawn(async move { sender.send(message).await.map(drop) });
        until(&mut stream, b"waits").await;
        let remote = |access| {
            let bytes =
                [&[1, access, 0, 0, 0, 0, 0, 0][..], &(LARGE as u64).to_le_bytes(), &[5; 16]].concat();
            RemoteRegion::from_bytes(&bytes).unwrap()
        };
        let getter = connection.clone();
        let getting =
            tokio::spawn(
                async move { getter.get(&remote(1), 0, BufferMut::with_capacity(REGION_LEN)).await },
            );
        until(&mut stream, &record(GET, 0, 0, &range([5; 16], 0, REGION_LEN as u64))).await;
        let putter = connection.clone();
        let putting =
            tokio::spawn(async move { putter.put(&remote(2), 0, Buffer::from(vec![1; LARGE])).await });
        until(&mut stream, &record(PUT, 0, 1, &range([5; 16], 0, LARGE as u64))).await;
        let putter = connection.clone();
        tokio::spawn(async move { putter.put(&remote(2), 0, Buffer::from(b"tiny".to_vec())).await });
        until(&mut stream, b"tiny").await;

        let revoked = connection.expose(Buffer::from(vec![4; 10]), Duration::MAX).unwrap();
        let revoked_key = key(&revoked);
        drop(revoked.revoke().await);
        Self {
            readable: connection.expose(Buffer::from(vec![2; REGION_LEN]), Duration::MAX).unwrap(),
            writable: connection.expose_mut(BufferMut::zeroed(LARGE), Duration::MAX).unwrap(),
            revoked: revoked_key,
            foreign,
            stream,
            connection,
            accepting,
            sending,
            getting,
            putting,
        }
    }

    fn readable(&self) -> [u8; 16] {
        key(&self.readable)
    }

    fn writable(&self) -> [u8; 16] {
        key(&self.writable)
    }

    fn get_from(&self, key: [u8; 16], number: u64, offset: u64, len: u64) -> Vec<u8> {
        record(GET, 0, number, &range(key, offset, len))
    }

    /// Returns a put into the writable region.
    fn put(&self, flags: u8, offset: u64, len: u64, payload: &[u8]) -> Vec<u8> {
        put_to(self.writable(), flags, 0, offset, len, payload)
    }

    /// Returns a put whose payload comes as data.
    fn large_put(&self, number: u64, offset: u64) -> Vec<u8> {
        put_to(self.writable(), 0, number, offset, LARGE as u64, b"")
    }

    /// Asserts the effect of the violation.
    async fn assert(mut self, what: &str, outcome: Outcome) {
        if outcome == Corrupt {
            self.assert_corrupt(what).await;
        } else {
            self.assert_goes_on(what, outcome).await;
            self.connection.abort();
        }
        let ended = async {
            (
                self.accepting.await.unwrap(),
                self.sending.await.unwrap(),
                self.getting.await.unwrap(),
                self.putting.await.unwrap(),
            )
        };
        let (accepted, sent, got, put) = within(LIMIT, what, ended).await;
        if let Ok(message) = accepted {
            assert_eq!(message.payload_len(), LARGE as u64, "{what}");
        }
        let failed = sent.unwrap_err();
        assert_eq!(failed.returned.payload_len(), LARGE as u64, "{what}");
        if let Err(failed) = got {
            assert_eq!((failed.returned.len(), failed.returned.capacity()), (0, REGION_LEN), "{what}");
        }
        if let Err(failed) = put {
            assert_eq!(failed.returned.len(), LARGE, "{what}");
        }
        let written = within(LIMIT, what, self.writable.revoke()).await;
        assert!(written.as_slice().unwrap().iter().all(|byte| *byte == 0), "{what}: the region was written");
        let read = within(LIMIT, what, self.readable.revoke()).await;
        assert!(read.as_slice().unwrap().iter().all(|byte| *byte == 2), "{what}");
    }

    async fn assert_corrupt(&mut self, what: &str) {
        // Receive nothing before the end: a receive grants credit, which could make a violation of credit
        // valid.
        eventually(what, || self.sending.is_finished()).await;
        let end = async {
            loop {
                if let Err(end) = self.connection.recv().await {
                    return end;
                }
            }
        };
        let end = within(LIMIT, what, end).await;
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        within(LIMIT, what, rest(&mut self.stream)).await;
    }

    async fn assert_goes_on(&mut self, what: &str, outcome: Outcome) {
        // The kind of a refusal alone: its reason is for people.
        let answer = match outcome {
            Refused => vec![REFUSED, 0, 0, 0],
            Done => record(DONE, 0, 0, &[]),
            Nothing | Corrupt => Vec::new(),
        };
        within(LIMIT, what, until(&mut self.stream, &answer)).await;
        send(&mut self.stream, &records(&[small(2)])).await.unwrap();
        let taken = within(LIMIT, what, self.connection.recv()).await.unwrap();
        assert_eq!(taken.header(), "hi", "{what}");
    }
}

async fn a_protocol_violation_ends_its_own_connection_only(row: &'static Row) {
    // With the default heartbeat: the violation counts, not its duration.
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    let (friend, owner) = in_time("a good peer", connect_pair(&endpoint, &listener)).await;
    let foreign = owner.expose(Buffer::from(vec![6; 100]), Duration::MAX).unwrap();
    let before = usage::resident();
    for (number, (what, outcome, violation)) in VIOLATIONS.into_iter().flatten().enumerate() {
        let (stream, connection) = connected(&listener, number as u8).await;
        let mut scene = in_time(what, Scene::set(stream, connection, key(&foreign))).await;
        let bytes = violation(&scene);
        // The peer's end may close before it has read everything.
        let _ = send(&mut scene.stream, &bytes).await;
        scene.assert(what, *outcome).await;
        let both = async { tokio::join!(friend.deliver(message(number, &[100, LARGE])), owner.recv()) };
        let (sent, taken) = within(LIMIT, "the good peer's message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[100, LARGE]);
    }
    eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    let growth = usage::resident().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth} bytes more are resident");
}
