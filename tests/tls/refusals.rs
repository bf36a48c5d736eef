//! Certificates that are not trusted, and peers of other protocols.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use towline_tests::certificates::self_signed;

use super::*;

/// Checks that connectors refuse a listener that presents `theirs`, that both ends report the reason, and that
/// the listener still works.
async fn assert_listener_refused(theirs: &Certificate, host: &str, words: &[&str]) {
    let acceptor = Acceptor::open(tls_with(theirs, &ours())).await;
    let near = endpoint(tls_with(&connectors(), &ours()));
    for count in 1..=2 {
        let error = refused(&near, &acceptor.address(Scheme::Tls, host)).await;
        assert_error(&error, ErrorKind::Unauthenticated, words);
        acceptor.assert_refused("unauthenticated", count).await;
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_not_trusted() {
    let theirs = Authority::new(9).sign(&["localhost", "127.0.0.1"], 2, Kind::Usual);
    assert_listener_refused(&theirs, "localhost", &["signed by no authority that this end trusts", "--ca"])
        .await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_not_trusted() {
    let theirs = self_signed(&["localhost"], 2);
    assert_listener_refused(&theirs, "localhost", &["signed by no authority that this end trusts", "--ca"])
        .await;
}

#[tokio::test]
async fn an_expired_certificate_is_not_trusted() {
    let theirs = ours().sign(&["localhost"], 2, Kind::Expired);
    assert_listener_refused(&theirs, "localhost", &["has expired: renew it"]).await;
}

#[tokio::test]
async fn a_certificate_of_the_future_is_not_trusted() {
    let theirs = ours().sign(&["localhost"], 2, Kind::Future);
    assert_listener_refused(&theirs, "localhost", &["not valid yet"]).await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_trusted() {
    let theirs = ours().sign(&["elsewhere"], 2, Kind::Usual);
    assert_listener_refused(&theirs, "localhost", &["is for another name", "localhost", "elsewhere"]).await;
    let theirs = ours().sign(&["localhost", "10.0.0.1"], 2, Kind::Usual);
    assert_listener_refused(&theirs, "127.0.0.1", &["is for another name", "127.0.0.1"]).await;
}

#[tokio::test]
async fn server_name_replaces_the_host_in_the_check() {
    let theirs = ours().sign(&["elsewhere"], 2, Kind::Usual);
    let acceptor = Acceptor::open(tls_with(&theirs, &ours())).await;
    let named = |name| endpoint(connectors().shown_by(trusting(&ours())).server_name(name).build().unwrap());
    acceptor.meet(&named("elsewhere"), acceptor.listener.address()).await;
    let error = refused(&named("nowhere"), acceptor.listener.address()).await;
    assert_error(&error, ErrorKind::Unauthenticated, &["is for another name", "nowhere"]);
}

/// Checks that a connector that presents `theirs` is refused, that both ends report the reason, and that the
/// listener still accepts a trusted peer.
async fn assert_connector_refused(theirs: Option<&Certificate>, words: &[&str]) {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    let tls = match theirs {
        Some(theirs) => theirs.shown_by(trusting(&ours())),
        None => trusting(&ours()),
    };
    let near = endpoint(tls.build().unwrap());
    for count in 1..=3 {
        let error = refused(&near, acceptor.listener.address()).await;
        assert_error(&error, ErrorKind::Unauthenticated, words);
        acceptor.assert_refused("unauthenticated", count).await;
    }
    acceptor.assert_open().await;
}

#[tokio::test]
async fn a_connector_without_a_certificate_is_refused() {
    assert_connector_refused(None, &["the listener requires a certificate", "--cert, --key"]).await;
}

#[tokio::test]
async fn a_connector_of_another_authority_is_refused() {
    let theirs = Authority::new(9).sign(&["worker"], 3, Kind::Usual);
    assert_connector_refused(
        Some(&theirs),
        &["trusts no authority that signed this end's certificate", "--ca"],
    )
    .await;
}

#[tokio::test]
async fn a_connector_with_an_expired_certificate_is_refused() {
    let theirs = ours().sign(&["worker"], 3, Kind::Expired);
    assert_connector_refused(Some(&theirs), &["this end's certificate has expired"]).await;
}

#[tokio::test]
async fn a_connector_with_a_listeners_certificate_is_refused() {
    let theirs = ours().sign(&["worker"], 3, Kind::ServerOnly);
    assert_connector_refused(Some(&theirs), &["does not trust this end's certificate"]).await;
}

#[tokio::test]
async fn plain_towline_to_a_listener_over_tls_is_refused() {
    for (listening, connecting) in [("tls", Scheme::Tcp), ("towlines", Scheme::Towline)] {
        let tls = endpoint(tls_with(&listeners(), &ours()));
        let acceptor = Acceptor::at(&format!("{listening}://127.0.0.1:0"), tls).await;
        let error = refused(&Endpoint::new().unwrap(), &acceptor.address(connecting, "127.0.0.1")).await;
        assert_error(&error, ErrorKind::Incompatible, &["only over TLS", "tls:// or towlines://"]);
        acceptor.assert_refused("incompatible", 1).await;
        acceptor.assert_open().await;
    }
}

#[tokio::test]
async fn tls_to_a_plain_listener_is_refused() {
    let near = endpoint(tls_with(&connectors(), &ours()));
    for (listening, connecting) in [("tcp", Scheme::Tls), ("towline", Scheme::Towlines)] {
        let acceptor = Acceptor::at(&format!("{listening}://127.0.0.1:0"), Endpoint::new().unwrap()).await;
        let error = refused(&near, &acceptor.address(connecting, "127.0.0.1")).await;
        assert_error(&error, ErrorKind::Incompatible, &["use TLS at both ends or at neither"]);
        acceptor.assert_refused("incompatible", 1).await;
        let honest = Endpoint::new().unwrap();
        acceptor.meet(&honest, acceptor.listener.address()).await;
    }
}

/// Sends `bytes` to the listener, and returns its answer up to the end of the stream.
async fn answer_to(acceptor: &Acceptor, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", acceptor.port())).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    in_time("the end of the stream", stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn peers_of_other_protocols_get_an_answer_they_can_read() {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    let answer = answer_to(&acceptor, b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
    let answer = answer_to(&acceptor, &[0xaa; 300]).await;
    assert!(String::from_utf8_lossy(&answer).contains("does not speak Towline"));
    acceptor.assert_refused("incompatible", 2).await;
    acceptor.assert_open().await;
}

#[tokio::test]
async fn garbage_within_tls_is_answered_with_an_alert() {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    // A handshake record: garbage, a length beyond the limit, an unknown version of TLS.
    for record in
        [&[0x16, 3, 1, 0, 4, 0xff, 0, 0, 0][..], &[0x16, 3, 1, 0xff, 0xff, 0, 0], &[0x16, 9, 9, 0, 1, 1]]
    {
        let answer = answer_to(&acceptor, record).await;
        assert_eq!(answer.first(), Some(&0x15), "an alert: {answer:?}");
    }
    acceptor.assert_open().await;
}

#[tokio::test]
async fn half_a_tls_handshake_is_dropped_in_time() {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    let begin = std::time::Instant::now();
    for record in [&[][..], &[0x16], &[0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc]] {
        assert_eq!(answer_to(&acceptor, record).await, []);
    }
    assert!(begin.elapsed() >= 3 * HANDSHAKE_TIME - Duration::from_millis(100), "{:?}", begin.elapsed());
    acceptor.assert_refused("timed_out", 3).await;
    // The peer closes during the handshake.
    let mut stream = TcpStream::connect(("127.0.0.1", acceptor.port())).await.unwrap();
    stream.write_all(&[0x16, 3, 1, 1, 0, 1]).await.unwrap();
    drop(stream);
    acceptor.assert_refused("peer_lost", 1).await;
    acceptor.assert_open().await;
}

/// Starts a server that reads once, sends `bytes`, and closes.
async fn server(bytes: &'static [u8]) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 4096];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(bytes).await;
        }
    });
    Address::new(Scheme::Tls, "127.0.0.1", port).unwrap()
}

#[tokio::test]
async fn servers_of_another_kind_are_refused() {
    let near = endpoint(tls_with(&connectors(), &ours()));
    for (bytes, kind, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], ErrorKind::Incompatible, "not a Towline endpoint"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ErrorKind::Incompatible, "SSH-2.0"),
        (b"", ErrorKind::PeerLost, "during the TLS handshake"),
        (b"\x16\x03\x03", ErrorKind::PeerLost, "during the TLS handshake"),
        (b"\x16\x03\x03\x00\x04\xff\xff\xff\xff", ErrorKind::Incompatible, "does not speak TLS"),
        // The alerts of servers with older TLS: handshake_failure, protocol_version.
        (b"\x15\x03\x03\x00\x02\x02\x28", ErrorKind::Incompatible, "TLS 1.3 is needed"),
        (b"\x15\x03\x03\x00\x02\x02\x46", ErrorKind::Incompatible, "TLS 1.3 is needed"),
    ] {
        let error = refused(&near, &server(bytes).await).await;
        assert_error(&error, kind, &[words]);
    }
}
