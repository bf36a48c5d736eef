//! Several streams of one connection: who sets their number, what a cut stream does, and which peers may
//! join.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use towline::{Address, BufferMut, ErrorKind, Scheme};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::encrypted::{Stream, dial};
use crate::polls::in_time;
use crate::raw_peer::{hand, read_handshake, send};
use crate::suite::cases;

cases! {
    CROSS_HOST:
        the_connecting_address_sets_the_number_of_streams,
        a_wrong_number_of_streams_is_invalid,
        a_peer_that_has_one_stream_is_unsupported,
        streams_join_with_one_unauthenticated_peer_at_a_time,
        a_join_of_an_unknown_connection_is_refused,
        a_stream_that_is_cut_is_a_lost_peer;
}

/// Several chunks, the last one short.
const LARGE_LEN: usize = 9_000_000;

fn with_streams(address: &Address, streams: &str) -> Address {
    let plain = Address::new(address.scheme(), address.host(), address.port()).unwrap();
    plain.with_option("streams", streams).unwrap()
}

async fn the_connecting_address_sets_the_number_of_streams(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    for streams in [1, 2, 16] {
        let address = with_streams(listener.address(), &streams.to_string());
        let both = async { tokio::join!(near.connect(&address), listener.accept()) };
        let (a, b) = in_time("the connection", both).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        let encryption = if address.scheme().is_encrypted() { "tls" } else { "none" };
        for end in [&a, &b] {
            assert_eq!((end.path().streams(), end.path().encryption()), (streams, encryption));
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            for (number, lens) in [&[20_000][..], &[LARGE_LEN, 0, 100], &[1 << 20; 6]].into_iter().enumerate()
            {
                let both = async { tokio::join!(from.deliver(message(number, lens)), to.recv()) };
                let (sent, taken) = in_time("a message", both).await;
                sent.unwrap();
                assert_message(&taken.unwrap(), number, lens);
            }
        }
        let region = b.expose(message(7, &[LARGE_LEN]).frames()[0].clone(), Duration::MAX).unwrap();
        let got =
            in_time("a get", a.get(&region.remote(), 0, BufferMut::with_capacity(LARGE_LEN))).await.unwrap();
        assert!(got.as_slice() == message(7, &[LARGE_LEN]).frames()[0].as_slice());
    }
}

async fn a_wrong_number_of_streams_is_invalid(row: &'static Row) {
    let endpoint = row.endpoint();
    for wrong in ["0", "17", "-1", "many", ""] {
        let address = with_streams(&row.address(), wrong);
        for error in
            [endpoint.listen(&address).await.unwrap_err(), endpoint.connect(&address).await.unwrap_err()]
        {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("from 1 to 16"), "{error}");
        }
    }
    for (address, why) in
        [("mem://x?streams=4", "nothing travels"), ("shm://127.0.0.1:0?streams=4", "no sockets")]
    {
        let error = endpoint.listen(&address.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    }
}

async fn a_peer_that_has_one_stream_is_unsupported(row: &'static Row) {
    let endpoint = row.endpoint();
    let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::new(Scheme::Tcp, "127.0.0.1", old.local_addr().unwrap().port()).unwrap();
    let old = tokio::spawn(async move {
        let mut stream: Box<dyn Stream> = Box::new(old.accept().await.unwrap().0);
        assert_eq!(read_handshake(&mut stream).await.0, 1, "its Hello");
        // One version, no features, a nonce, an identity, no token, one offer.
        let hello = [&[1, 0, 1, 0][..], &[0; 8], &[9; 32], &[8; 56], b"\0\x01\x03tcp\0\0"].concat();
        stream.write_all(&hand(1, &hello)).await.unwrap();
        assert_eq!(read_handshake(&mut stream).await.0, 2, "its Proof");
        stream.write_all(&hand(2, &[0; 32])).await.unwrap();
        assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 0, "it proposes nothing");
    });
    let error = in_time("the refusal", endpoint.connect(&with_streams(&address, "2"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("streams"), "{error}");
    in_time("the old peer's end", old).await.unwrap();
}

async fn streams_join_with_one_unauthenticated_peer_at_a_time(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.builder().unauthenticated_max(1).build().unwrap());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = with_streams(listener.address(), "5");
    for _ in 0..3 {
        let both = async {
            tokio::join!(near.connect(&address), near.connect(&address), listener.accept(), listener.accept())
        };
        let (a, b, c, d) = in_time("two connections", both).await;
        for end in [a, b, c, d] {
            assert_eq!(end.unwrap().path().streams(), 5);
        }
    }
}

async fn a_join_of_an_unknown_connection_is_refused(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let (a, b) = in_time("a good peer", connect_pair(&near, &listener)).await;
    for _ in 0..200 {
        let mut stream = dial(&listener).await;
        send(&mut stream, &hand(8, &[7; 49])).await.unwrap();
        let (kind, body) = read_handshake(&mut stream).await;
        assert_eq!((kind, body[0]), (6, 5), "refused as unavailable");
        assert!(String::from_utf8_lossy(&body).contains("no connection waits for this stream"), "{body:?}");
        assert_eq!(in_time("the end", stream.read(&mut [0; 1])).await.unwrap(), 0);
    }
    let both = async { tokio::join!(a.deliver(message(1, &[LARGE_LEN])), b.recv()) };
    let (sent, taken) = in_time("the good peer's message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[LARGE_LEN]);
}

/// Forwards each connection to `to`. Cuts the connection of the number in `cut`.
async fn proxy(listener: TcpListener, to: (String, u16), cut: watch::Receiver<Option<usize>>) {
    for number in 0.. {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(to.clone()).await.unwrap();
        let mut cut = cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Either end may close first.
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.wait_for(|cut| *cut == Some(number)) => {}
            }
        });
    }
}

async fn a_stream_that_is_cut_is_a_lost_peer(row: &'static Row) {
    const STREAMS: usize = 3;
    for victim in 0..STREAMS {
        let (near, far) = (row.endpoint(), row.endpoint());
        let listener = far.listen(&row.address()).await.unwrap();
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = listener.address().scheme();
        let address = Address::new(scheme, "127.0.0.1", between.local_addr().unwrap().port()).unwrap();
        let (cut, is_cut) = watch::channel(None);
        let to = (listener.address().host().to_owned(), listener.address().port());
        let proxy = tokio::spawn(proxy(between, to, is_cut));
        let address = with_streams(&address, &STREAMS.to_string());
        let both = async { tokio::join!(near.connect(&address), listener.accept()) };
        let (a, b) = in_time("the connection", both).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        let both = async { tokio::join!(a.deliver(message(1, &[LARGE_LEN])), b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 1, &[LARGE_LEN]);
        // A send that waits for its accept gets its memory back too.
        let waiting = a.send(message(2, &[LARGE_LEN]));
        let cutting = async {
            b.incoming().await.unwrap();
            cut.send(Some(victim)).unwrap();
            b.recv().await.unwrap_err()
        };
        let (sent, end) = in_time("the end", async { tokio::join!(waiting, cutting) }).await;
        assert_eq!(end.kind(), ErrorKind::PeerLost, "stream {victim}: {end}");
        if let Err(failed) = sent {
            assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "stream {victim}: {}", failed.error);
            assert_eq!(failed.returned.frames()[0].len(), LARGE_LEN);
        }
        let end = in_time("the other end", a.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "stream {victim}: {end}");
        proxy.abort();
    }
}
