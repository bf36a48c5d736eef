//! A raw peer: it sends the bytes of docs/wire.md one by one, and then violates the protocol.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline::{BufferMut, Connection, Endpoint, ErrorKind, Listener};
use towline_tests::wire::{MAGIC, hello};
pub(crate) use towline_tests::wire::{announcement, hand, packet, record};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::encrypted::{Stream, dial};
use crate::polls::{in_time, within};
use crate::suite::cases;

cases! {
    CROSS_HOST:
        a_raw_peer_exchanges_messages,
        a_peer_that_proposes_nothing_is_dropped,
        a_peer_that_proposes_forever_is_dropped,
        a_peer_that_falls_silent_is_lost,
        a_peer_that_is_cut_off_is_lost,
        a_malformed_packet_ends_its_own_connection_only,
        a_peer_that_reads_nothing_blocks_no_other_peer;
}

const HEARTBEAT: Duration = Duration::from_millis(250);
const HANDSHAKE_TIME: Duration = Duration::from_millis(800);
pub(crate) const EAGER: u8 = 4;
pub(crate) const STREAMS: u8 = 2;
pub(crate) const LENT: u8 = 8;
const PING: u8 = 5;
const PONG: u8 = 6;
pub(crate) const CLOSE: u8 = 12;

/// Connects a stream and completes the handshake. The stream is then the peer.
async fn handshaken(listener: &Listener, nonce: u8) -> Box<dyn Stream> {
    greet(listener, nonce, &[nonce; 56], &["tcp"]).await.0
}

/// Completes the handshake with this identity and these offers. Returns the stream and the `Hello` of both
/// ends, ours first.
pub(crate) async fn greet(
    listener: &Listener,
    nonce: u8,
    identity: &[u8; 56],
    offers: &[&str],
) -> (Box<dyn Stream>, [Vec<u8>; 2]) {
    let mut stream = dial(listener).await;
    let offers: Vec<_> = offers.iter().map(|name| (*name, &b""[..])).collect();
    let hello = hello([nonce; 32], identity, &offers);
    send(&mut stream, &hello).await.unwrap();
    let (kind, peers) = read_handshake(&mut stream).await;
    assert_eq!(kind, 1, "its Hello");
    send(&mut stream, &hand(2, &[0; 32])).await.unwrap();
    assert_eq!(read_handshake(&mut stream).await, (2, vec![0; 32]), "its Proof");
    (stream, [hello, hand(1, &peers)])
}

/// Reads the next message of the handshake.
pub(crate) async fn read_handshake(stream: &mut Box<dyn Stream>) -> (u8, Vec<u8>) {
    let mut head = [0; 16];
    in_time("a head", stream.read_exact(&mut head)).await.unwrap();
    assert!(head.starts_with(MAGIC), "{head:?}");
    let len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let mut body = vec![0; len as usize];
    in_time("a body", stream.read_exact(&mut body)).await.unwrap();
    (head[8], body)
}

/// Connects a raw peer. Returns its stream and this end of the connection.
pub(crate) async fn connected(listener: &Listener, nonce: u8) -> (Box<dyn Stream>, Connection) {
    let mut stream = handshaken(listener, nonce).await;
    send(&mut stream, &hand(3, b"tcp")).await.unwrap();
    assert_eq!(read_handshake(&mut stream).await, (4, vec![]), "it is ready");
    (stream, in_time("the connection", listener.accept()).await.unwrap())
}

pub(crate) async fn listening(row: &Row) -> (Endpoint, Listener) {
    let endpoint = row.builder().heartbeat(HEARTBEAT).handshake_time(HANDSHAKE_TIME).build().unwrap();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    (endpoint, listener)
}

/// Writes and flushes all bytes: TLS would keep what the socket had no room for.
pub(crate) async fn send(stream: &mut Box<dyn Stream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Reads until the bytes end with this record.
pub(crate) async fn until(stream: &mut Box<dyn Stream>, record: &[u8]) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(record) {
        bytes.push(in_time("a record", stream.read_u8()).await.unwrap());
    }
}

/// Reads until the end of the stream.
pub(crate) async fn rest(stream: &mut Box<dyn Stream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = in_time("the end of the stream", stream.read_to_end(&mut bytes)).await;
    bytes
}

async fn a_raw_peer_exchanges_messages(row: &'static Row) {
    let (_endpoint, listener) = listening(row).await;
    let (mut stream, connection) = connected(&listener, 1).await;
    // The example of docs/wire.md.
    send(&mut stream, &packet(&announcement(0, EAGER | 1, b"hi", 5, b"hello"), 0, &[])).await.unwrap();
    let taken = in_time("recv", connection.recv()).await.unwrap();
    assert_eq!(
        (taken.header().as_ref(), taken.frames()[0].to_vec().unwrap()),
        (&b"hi"[..], b"hello".to_vec())
    );
    let mut ack = [0; 36];
    in_time("the receipt", stream.read_exact(&mut ack)).await.unwrap();
    assert_eq!(ack[..], packet(&record(3, 0, 0, &1_u32.to_le_bytes()), 0, &[]));

    // A large message waits for its accept.
    send(&mut stream, &packet(&announcement(1, 0, b"large", 16_384, b""), 0, &[])).await.unwrap();
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    let answering = async {
        until(&mut stream, &record(2, 0, 1, &[])).await;
        // Two pieces, with a ping between them.
        send(&mut stream, &packet(&[], 4, &[7; 16_000])).await.unwrap();
        send(&mut stream, &packet(&record(PING, 0, 0, &[]), 4, &[8; 384])).await.unwrap();
    };
    let (taken, ()) = in_time("accept", async { tokio::join!(incoming.accept(), answering) }).await;
    let payload = taken.unwrap().frames()[0].to_vec().unwrap();
    assert!(payload[..16_000] == [7; 16_000] && payload[16_000..] == [8; 384]);

    send(&mut stream, &packet(&record(CLOSE, 0, 0, &[]), 0, &[])).await.unwrap();
    assert_eq!(in_time("the end", connection.recv()).await.unwrap_err().kind(), ErrorKind::Closed);
    let bytes = rest(&mut stream).await;
    let holds = |record: Vec<u8>| bytes.windows(record.len()).any(|window| window == record);
    assert!(holds(record(PONG, 0, 0, &[])), "the ping was answered");
    assert!(holds(record(3, 0, 1, &1_u32.to_le_bytes())), "the second message is acknowledged");
    assert!(bytes.ends_with(&record(CLOSE, 0, 0, &[])), "Close is last");
}

async fn a_peer_that_proposes_nothing_is_dropped(row: &'static Row) {
    let (_endpoint, listener) = listening(row).await;
    let mut silent = handshaken(&listener, 1).await;
    let mut undecided = handshaken(&listener, 2).await;
    send(&mut undecided, &hand(3, b"carrier-pigeon")).await.unwrap();
    assert_eq!(read_handshake(&mut undecided).await.0, 5, "it is not ready for an unknown backend");
    for stream in [&mut silent, &mut undecided] {
        within(HANDSHAKE_TIME * 2 + Duration::from_secs(1), "the end", rest(stream)).await;
    }
    assert_open(row, &listener).await;
}

async fn a_peer_that_proposes_forever_is_dropped(row: &'static Row) {
    let (_endpoint, listener) = listening(row).await;
    let mut stream = handshaken(&listener, 1).await;
    let began = Instant::now();
    let proposing = async {
        loop {
            tokio::time::sleep(HANDSHAKE_TIME / 2).await;
            let mut head = [0; 16];
            let answered = match send(&mut stream, &hand(3, b"carrier-pigeon")).await {
                Ok(()) => stream.read_exact(&mut head).await,
                Err(gone) => Err(gone),
            };
            if answered.is_err() {
                return;
            }
            let mut reason = vec![0; usize::from(head[12])];
            stream.read_exact(&mut reason).await.unwrap();
        }
    };
    within(HANDSHAKE_TIME * 5, "the time limit", proposing).await;
    assert!(began.elapsed() >= HANDSHAKE_TIME, "it was dropped after {:?}", began.elapsed());
    assert_open(row, &listener).await;
}

async fn assert_open(row: &Row, listener: &Listener) {
    let (a, b) = in_time("a good peer", connect_pair(&row.endpoint(), listener)).await;
    let both = async { tokio::join!(a.deliver(message(1, &[20_000])), b.recv()) };
    let (sent, taken) = in_time("its message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[20_000]);
}

async fn a_peer_that_falls_silent_is_lost(row: &'static Row) {
    let (_endpoint, listener) = listening(row).await;
    let (mut stream, connection) = connected(&listener, 1).await;
    let began = Instant::now();
    let end = within(Duration::from_secs(2), "the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
    assert!(began.elapsed() >= HEARTBEAT * 2, "it was lost after {:?}", began.elapsed());
    let pings = rest(&mut stream).await;
    let ping = packet(&record(PING, 0, 0, &[]), 0, &[]);
    assert_eq!(pings, [ping.clone(), ping].concat(), "two pings were sent");
}

async fn a_peer_that_is_cut_off_is_lost(row: &'static Row) {
    let (_endpoint, listener) = listening(row).await;
    let message = packet(&announcement(0, EAGER, b"hi", 5, b"hello"), 0, &[]);
    for len in 0..message.len() {
        let (mut stream, connection) = connected(&listener, len as u8).await;
        send(&mut stream, &message[..len]).await.unwrap();
        drop(stream);
        let end = within(Duration::from_secs(1), "the end", connection.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "after {len} bytes: {end}");
    }
    // During an accepted payload: the destination returns.
    let (mut stream, connection) = connected(&listener, 99).await;
    send(&mut stream, &packet(&announcement(0, 0, b"", 100_000, b""), 0, &[])).await.unwrap();
    let buffer = BufferMut::with_capacity(150_000);
    let start = buffer.as_ptr();
    let cutting = async {
        until(&mut stream, &record(2, 0, 0, &[])).await;
        send(&mut stream, &packet(&[], 0, &[7; 50_000])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(stream);
    };
    let both = async { tokio::join!(connection.recv_into(buffer), cutting) };
    let (taken, ()) = in_time("the end", both).await;
    let failed = taken.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
    assert_eq!((failed.returned.as_ptr(), failed.returned.capacity()), (start, 150_000));
    assert_open(row, &listener).await;
}

async fn a_malformed_packet_ends_its_own_connection_only(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let (friend, owner) = in_time("a good peer", connect_pair(&endpoint, &listener)).await;
    let records = |records: &[Vec<u8>]| packet(&records.concat(), 0, &[]);
    let small = |number| announcement(number, EAGER, b"hi", 5, b"hello");
    let endless = [u32::MAX.to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    let mut reserved = small(0);
    reserved[2] = 1;
    let breaches: [(&str, Vec<u8>); 27] = [
        ("a head beyond its limits", endless),
        ("data beyond its limits", [[0; 4], (2_u32 << 20).to_le_bytes(), [0; 4], [0; 4]].concat()),
        ("transfer kind 3", packet(&small(0), 3, &[])),
        ("data that was not granted", packet(&[], 0, &[1; 100])),
        ("data of an eager message", packet(&small(0), 0, &[1; 100])),
        ("an unknown record", records(&[record(13, 0, 0, &[])])),
        ("an unknown flag", records(&[record(1, 64, 0, &small(0)[16..])])),
        ("reserved bytes", records(&[reserved])),
        ("half a record", records(&[small(0)[..20].to_vec()])),
        ("a record with bytes left over", records(&[record(CLOSE, 0, 0, &[0])])),
        ("a message out of number", records(&[small(1)])),
        ("a message twice", records(&[small(0), small(0)])),
        ("an endless header", records(&[record(1, EAGER, 0, &[0xff; 24])])),
        ("a large eager message", records(&[announcement(0, EAGER, b"", 16_384, &[0; 16_384])])),
        ("a small message that waits", records(&[announcement(0, 0, b"", 5, b"")])),
        ("streaming without credit", records(&[announcement(0, STREAMS, b"", 16_384, b"")])),
        ("a frame in an unknown place", records(&[announcement(0, EAGER, b"", 5 | 77 << 48, b"hello")])),
        ("a frame of another length", records(&[announcement(0, EAGER, b"", 6, b"hello")])),
        ("an ack beyond all numbers", records(&[record(3, 0, u64::MAX, &9_u32.to_le_bytes())])),
        ("an accept of no message", records(&[record(2, 0, 0, &[])])),
        ("an ack of no message", records(&[record(3, 0, 0, &1_u32.to_le_bytes())])),
        ("ready-to-receive for no put", records(&[record(9, 0, 0, &[])])),
        ("Done for no request", records(&[record(10, 0, 0, &[])])),
        ("Refused for no request", records(&[record(11, 0, 0, b"no")])),
        ("a large put that goes at once", records(&[record(8, 2, 0, &[0; 32 + 20_000])])),
        ("anything after Close", records(&[record(CLOSE, 0, 0, &[]), small(0)])),
        ("too many messages", records(&(0..1025).map(small).collect::<Vec<_>>())),
    ];
    for (nonce, (what, bytes)) in breaches.into_iter().enumerate() {
        let (mut stream, connection) = connected(&listener, nonce as u8).await;
        // The peer's end may close before it has read everything.
        let _ = send(&mut stream, &bytes).await;
        let end = async {
            loop {
                if let Err(end) = connection.recv().await {
                    return end;
                }
            }
        };
        let end = within(Duration::from_secs(1), what, end).await;
        assert_eq!(end.kind(), ErrorKind::Corrupt, "{what}: {end}");
        within(Duration::from_secs(1), what, rest(&mut stream)).await;
    }
    let both = async { tokio::join!(friend.deliver(message(1, &[20_000])), owner.recv()) };
    let (sent, taken) = in_time("the good peer's message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[20_000]);
    assert_eq!(endpoint.pool().stats().in_use_bytes, 0, "announced messages are freed");
}

/// The peer answers pings and reads nothing: its connection blocks, and no other does.
async fn a_peer_that_reads_nothing_blocks_no_other_peer(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let (friend, owner) = in_time("a good peer", connect_pair(&endpoint, &listener)).await;
    let (mut stream, connection) = connected(&listener, 1).await;
    let sending = {
        let connection = connection.clone();
        tokio::spawn(async move {
            loop {
                if let Err(failed) = connection.send(message(1, &[10_000])).await {
                    return failed.error;
                }
            }
        })
    };
    let until = Instant::now() + HEARTBEAT * 8;
    while Instant::now() < until {
        // A sign of life.
        send(&mut stream, &packet(&record(PONG, 0, 0, &[]), 0, &[])).await.unwrap();
        let both = async { tokio::join!(friend.deliver(message(2, &[100_000])), owner.recv()) };
        let (sent, taken) = within(Duration::from_secs(1), "the good peer's message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 2, &[100_000]);
        tokio::time::sleep(HEARTBEAT / 4).await;
    }
    assert!(!sending.is_finished(), "the peer is alive, and reads nothing");
    // Now the peer sends nothing either.
    let end = within(Duration::from_secs(2), "the end", sending).await.unwrap();
    assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
}
