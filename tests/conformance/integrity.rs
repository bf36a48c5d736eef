//! Checksums: damaged bytes are never delivered, and end their own connection only.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use towline::{Address, BufferMut, Connection, Endpoint, ErrorKind, Listener};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::polls::in_time;
use crate::suite::cases;

cases! {
    CROSS_HOST:
        a_flipped_bit_is_corrupt_and_ends_one_connection,
        a_flipped_bit_in_a_put_never_reaches_the_region,
        the_connecting_address_enables_integrity,
        an_unknown_integrity_is_invalid;
}

/// Where the proxy flips a bit of the stream: in the second chunk of the large frame.
const FLIP_AT: usize = 1_500_000;
const LARGE_LEN: usize = 3_000_000;
const CHUNK_LEN: usize = 1 << 20;

/// Forwards one connection to `to`, and flips a bit of the connector's bytes.
async fn proxy(listener: TcpListener, to: (String, u16)) {
    let (near, _) = listener.accept().await.unwrap();
    let far = TcpStream::connect(to).await.unwrap();
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.into_split(), far.into_split());
    let back = tokio::spawn(async move {
        // Either end may close first.
        let _ = copy(&mut far_read, &mut near_write).await;
    });
    let mut bytes = vec![0; 64 << 10];
    let mut passed = 0;
    while let Ok(len @ 1..) = near_read.read(&mut bytes).await {
        if (passed..passed + len).contains(&FLIP_AT) {
            bytes[FLIP_AT - passed] ^= 16;
        }
        passed += len;
        if far_write.write_all(&bytes[..len]).await.is_err() {
            break;
        }
    }
    drop(far_write);
    let _ = back.await;
}

/// Connects with checksums through the proxy. Returns the connecting end, the accepting end, and the proxy.
async fn damaged(near: &Endpoint, listener: &Listener) -> (Connection, Connection, JoinHandle<()>) {
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = between.local_addr().unwrap().port();
    let to = (listener.address().host().to_owned(), listener.address().port());
    let proxy = tokio::spawn(proxy(between, to));
    let address = Address::new(listener.address().scheme(), "127.0.0.1", port).unwrap();
    let address = address.with_option("integrity", "crc32c").unwrap();
    let both = async { tokio::join!(near.connect(&address), listener.accept()) };
    let (a, b) = in_time("the connection", both).await;
    (a.unwrap(), b.unwrap(), proxy)
}

async fn a_flipped_bit_in_a_put_never_reaches_the_region(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let (a, b, proxy) = damaged(&near, &listener).await;
    let region = b.expose_mut(BufferMut::zeroed(LARGE_LEN), Duration::from_secs(60)).unwrap();
    let failed = in_time("put", a.put(&region.remote(), 0, vec![0xff; LARGE_LEN].into())).await.unwrap_err();
    assert_eq!((failed.error.kind(), failed.returned.len()), (ErrorKind::PeerLost, LARGE_LEN));
    let end = in_time("the end", b.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    let memory = in_time("the region", region.revoke()).await;
    let bytes = memory.as_slice().unwrap();
    // Whole chunks before the damaged one are written, and nothing behind them.
    let written = bytes.iter().take_while(|byte| **byte == 0xff).count();
    assert!(written <= FLIP_AT && written.is_multiple_of(CHUNK_LEN), "{written} bytes were written");
    assert!(bytes[written..].iter().all(|byte| *byte == 0), "behind {written} bytes nothing was written");
    drop((a, b));
    in_time("the proxy's end", proxy).await.unwrap();
}

async fn a_flipped_bit_is_corrupt_and_ends_one_connection(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let (friend, owner) = in_time("a good peer", connect_pair(&near, &listener)).await;
    let (a, b, proxy) = damaged(&near, &listener).await;

    let lens = [100, LARGE_LEN];
    let sending = async {
        a.deliver(message(0, &[5])).await.unwrap();
        a.deliver(message(1, &lens)).await.unwrap_err()
    };
    let taking = async {
        assert_message(&b.recv().await.unwrap(), 0, &[5]);
        b.recv().await.unwrap_err()
    };
    let (sent, end) = in_time("the end", async { tokio::join!(sending, taking) }).await;
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    let place = format!("message 1, frame 1, the chunk at offset {}", CHUNK_LEN - lens[0]);
    let text = end.to_string();
    // TLS detects the damage before our checksum, and does not know the message.
    let found = if row.address().scheme().is_encrypted() { "violates TLS" } else { &place };
    // The number in the metrics: the endpoint's second connection.
    let whose = format!("{} (connection {})", b.path().address(), number_of_the_newest(&far));
    assert!(text.contains(found) && text.contains(&whose), "{text}");
    assert_eq!(sent.kind(), ErrorKind::PeerLost, "{sent}");

    let both = async { tokio::join!(friend.deliver(message(2, &lens)), owner.recv()) };
    let (sent, taken) = in_time("the good peer's message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 2, &lens);
    drop((a, b));
    in_time("the proxy's end", proxy).await.unwrap();
}

/// Returns the number of an endpoint's newest connection in its metrics.
fn number_of_the_newest(endpoint: &Endpoint) -> u64 {
    let page = endpoint.metrics().text();
    let numbers = page.split("connection=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok());
    numbers.max().unwrap()
}

async fn the_connecting_address_enables_integrity(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let (host, port) = (listener.address().host(), listener.address().port());
    let plain = Address::new(row.address().scheme(), host, port).unwrap();
    let checked = plain.clone().with_option("integrity", "crc32c").unwrap();
    for (address, integrity) in [(plain, "none"), (checked, "crc32c")] {
        let both = async { tokio::join!(near.connect(&address), listener.accept()) };
        let (a, b) = in_time("the connection", both).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.path().integrity(), b.path().integrity()), (integrity, integrity));
        let both = async { tokio::join!(a.deliver(message(1, &[20_000])), b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), 1, &[20_000]);
    }
}

async fn an_unknown_integrity_is_invalid(row: &'static Row) {
    let endpoint = row.endpoint();
    let wrong = row.address().with_option("integrity", "sha256").unwrap();
    let error = endpoint.listen(&wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("integrity=crc32c"), "{error}");
    let error = endpoint.connect(&wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let mem: Address = "mem://x?integrity=crc32c".parse().unwrap();
    let error = endpoint.listen(&mem).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("nothing travels"), "{error}");
}
