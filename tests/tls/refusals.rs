//! Certificates that are not believed, and other ends that speak something else.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use towline_tests::certificates::self_signed;

use super::*;

/// Nobody comes in where `theirs` is shown, both ends know why, and the listener that shows it goes on.
async fn assert_not_believed(theirs: &Certificate, host: &str, words: &[&str]) {
    let handshake = Handshake::open(showing(theirs, &ours())).await;
    let near = endpoint(showing(&connectors(), &ours()));
    for count in 1..=2 {
        let error = refused(&near, &handshake.address(Scheme::Tls, host)).await;
        assert_says(&error, ErrorKind::Unauthenticated, words);
        handshake.assert_refused("unauthenticated", count).await;
    }
}

#[tokio::test]
async fn a_certificate_that_a_unauthenticated_peer_signed_is_not_believed() {
    let theirs = Authority::new(9).sign(&["localhost", "127.0.0.1"], 2, Kind::Usual);
    assert_not_believed(&theirs, "localhost", &["signed by no authority that this end trusts", "--ca"]).await;
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_not_believed() {
    let theirs = self_signed(&["localhost"], 2);
    assert_not_believed(&theirs, "localhost", &["signed by no authority that this end trusts", "--ca"]).await;
}

#[tokio::test]
async fn an_expired_certificate_is_not_believed() {
    let theirs = ours().sign(&["localhost"], 2, Kind::Expired);
    assert_not_believed(&theirs, "localhost", &["has expired: renew it"]).await;
}

#[tokio::test]
async fn a_certificate_of_the_future_is_not_believed() {
    let theirs = ours().sign(&["localhost"], 2, Kind::Future);
    assert_not_believed(&theirs, "localhost", &["not valid yet"]).await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_believed() {
    let theirs = ours().sign(&["elsewhere"], 2, Kind::Usual);
    assert_not_believed(&theirs, "localhost", &["is for another name", "localhost", "elsewhere"]).await;
    let theirs = ours().sign(&["localhost", "10.0.0.1"], 2, Kind::Usual);
    assert_not_believed(&theirs, "127.0.0.1", &["is for another name", "127.0.0.1"]).await;
}

#[tokio::test]
async fn a_name_that_is_asked_for_counts_in_place_of_the_host() {
    let theirs = ours().sign(&["elsewhere"], 2, Kind::Usual);
    let handshake = Handshake::open(showing(&theirs, &ours())).await;
    let named = |name| endpoint(connectors().shown_by(believing(&ours())).server_name(name).build().unwrap());
    handshake.meet(&named("elsewhere"), handshake.listener.address()).await;
    let error = refused(&named("nowhere"), handshake.listener.address()).await;
    assert_says(&error, ErrorKind::Unauthenticated, &["is for another name", "nowhere"]);
}

/// A connector that shows this is not let in, both ends know why, and the listener lets a friend in.
async fn assert_kept_out(theirs: Option<&Certificate>, words: &[&str]) {
    let handshake = Handshake::open(showing(&listeners(), &ours())).await;
    let tls = match theirs {
        Some(theirs) => theirs.shown_by(believing(&ours())),
        None => believing(&ours()),
    };
    let near = endpoint(tls.build().unwrap());
    for count in 1..=3 {
        let error = refused(&near, handshake.listener.address()).await;
        assert_says(&error, ErrorKind::Unauthenticated, words);
        handshake.assert_refused("unauthenticated", count).await;
    }
    handshake.assert_open().await;
}

#[tokio::test]
async fn a_connector_without_a_certificate_is_kept_out() {
    assert_kept_out(None, &["the listener requires a certificate", "--cert, --key"]).await;
}

#[tokio::test]
async fn a_connector_that_a_unauthenticated_peer_signed_is_kept_out() {
    let theirs = Authority::new(9).sign(&["worker"], 3, Kind::Usual);
    assert_kept_out(Some(&theirs), &["trusts no authority that signed this end's certificate", "--ca"]).await;
}

#[tokio::test]
async fn a_connector_with_an_expired_certificate_is_kept_out() {
    let theirs = ours().sign(&["worker"], 3, Kind::Expired);
    assert_kept_out(Some(&theirs), &["this end's certificate has expired"]).await;
}

#[tokio::test]
async fn a_connector_with_a_listeners_certificate_is_kept_out() {
    let theirs = ours().sign(&["worker"], 3, Kind::ServerOnly);
    assert_kept_out(Some(&theirs), &["does not trust this end's certificate"]).await;
}

#[tokio::test]
async fn plain_towline_to_a_listener_over_tls_is_refused() {
    for (listening, connecting) in [("tls", Scheme::Tcp), ("towlines", Scheme::Towline)] {
        let tls = endpoint(showing(&listeners(), &ours()));
        let handshake = Handshake::at(&format!("{listening}://127.0.0.1:0"), tls).await;
        let error = refused(&Endpoint::new().unwrap(), &handshake.address(connecting, "127.0.0.1")).await;
        assert_says(&error, ErrorKind::Refused, &["only over TLS", "tls:// or towlines://"]);
        handshake.assert_refused("refused", 1).await;
        handshake.assert_open().await;
    }
}

#[tokio::test]
async fn tls_to_a_plain_listener_is_refused() {
    let near = endpoint(showing(&connectors(), &ours()));
    for (listening, connecting) in [("tcp", Scheme::Tls), ("towline", Scheme::Towlines)] {
        let handshake = Handshake::at(&format!("{listening}://127.0.0.1:0"), Endpoint::new().unwrap()).await;
        let error = refused(&near, &handshake.address(connecting, "127.0.0.1")).await;
        assert_says(&error, ErrorKind::Refused, &["use TLS at both ends or at neither"]);
        handshake.assert_refused("refused", 1).await;
        let friend = Endpoint::new().unwrap();
        handshake.meet(&friend, handshake.listener.address()).await;
    }
}

/// What a listener answers who says this, until it ends the stream.
async fn answer_to(handshake: &Handshake, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", handshake.port())).await.unwrap();
    stream.write_all(words).await.unwrap();
    let mut heard = Vec::new();
    in_time("the end of the stream", stream.read_to_end(&mut heard)).await.unwrap();
    heard
}

#[tokio::test]
async fn unauthenticated_peers_hear_where_they_are() {
    let handshake = Handshake::open(showing(&listeners(), &ours())).await;
    let heard = answer_to(&handshake, b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(heard.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&heard));
    let heard = answer_to(&handshake, &[0xaa; 300]).await;
    assert!(String::from_utf8_lossy(&heard).contains("does not speak Towline"));
    handshake.assert_refused("refused", 2).await;
    handshake.assert_open().await;
}

#[tokio::test]
async fn garbage_within_tls_is_answered_with_an_alert() {
    let handshake = Handshake::open(showing(&listeners(), &ours())).await;
    // A handshake record: of nonsense, of a length that no record has, of another version of TLS altogether.
    for record in
        [&[0x16, 3, 1, 0, 4, 0xff, 0, 0, 0][..], &[0x16, 3, 1, 0xff, 0xff, 0, 0], &[0x16, 9, 9, 0, 1, 1]]
    {
        let heard = answer_to(&handshake, record).await;
        assert_eq!(heard.first(), Some(&0x15), "an alert: {heard:?}");
    }
    handshake.assert_open().await;
}

#[tokio::test]
async fn half_a_tls_handshake_is_dropped_in_time() {
    let handshake = Handshake::open(showing(&listeners(), &ours())).await;
    let begin = std::time::Instant::now();
    for record in [&[][..], &[0x16], &[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc]] {
        assert_eq!(answer_to(&handshake, record).await, []);
    }
    assert!(begin.elapsed() >= 3 * HANDSHAKE_TIME - Duration::from_millis(100), "{:?}", begin.elapsed());
    handshake.assert_refused("timed_out", 3).await;
    // And one that is cut off.
    let mut stream = TcpStream::connect(("127.0.0.1", handshake.port())).await.unwrap();
    stream.write_all(&[0x16, 3, 1, 1, 0, 1]).await.unwrap();
    drop(stream);
    handshake.assert_refused("peer_lost", 1).await;
    handshake.assert_open().await;
}

/// A server that reads a while, says this, and hangs up.
async fn server(words: &'static [u8]) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 4096];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(words).await;
        }
    });
    Address::new(Scheme::Tls, "127.0.0.1", port).unwrap()
}

#[tokio::test]
async fn servers_of_another_kind_are_refused() {
    let near = endpoint(showing(&connectors(), &ours()));
    for (words, kind, says) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], ErrorKind::Refused, "not a Towline endpoint"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ErrorKind::Refused, "SSH-2.0"),
        (b"", ErrorKind::PeerLost, "during the TLS handshake"),
        (b"\x16\x03\x03", ErrorKind::PeerLost, "during the TLS handshake"),
        (b"\x16\x03\x03\x00\x04\xff\xff\xff\xff", ErrorKind::Refused, "does not speak TLS"),
        // handshake_failure, as a server of older TLS says it.
        (b"\x15\x03\x03\x00\x02\x02\x28", ErrorKind::Refused, "TLS 1.3 is needed"),
        (b"\x15\x03\x03\x00\x02\x02\x46", ErrorKind::Refused, "TLS 1.3 is needed"),
    ] {
        let error = refused(&near, &server(words).await).await;
        assert_says(&error, kind, &[says]);
    }
}
