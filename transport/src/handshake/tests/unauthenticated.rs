//! Peers of another version, other protocols, random bytes: each gets the reason in bounded time.

use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Accepts a peer that sends `words` and then reads. Returns the error, and what the peer received.
async fn accept_bytes(words: &[u8]) -> (Error, Vec<u8>) {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = duplex(64 * 1024);
    let (ours, mut answer) = (terms(None), Vec::new());
    near.write_all(words).await.unwrap();
    let accepting = async {
        let result = accept_peer(&mut far, &ours, &environment).await;
        drop(far);
        result
    };
    let (result, _) = tokio::join!(accepting, near.read_to_end(&mut answer));
    (result.unwrap_err(), answer)
}

/// Connects to a server that sends `words` at once.
async fn connect_to_bytes(words: &[u8]) -> Error {
    let (mut near, mut far) = duplex(64 * 1024);
    far.write_all(words).await.unwrap();
    greet_as_connector(&mut near, &terms(None), &TestEnvironment::new()).await.unwrap_err()
}

fn refusal_in(bytes: &[u8]) -> (ErrorKind, String) {
    let (first, body) = bytes.split_first_chunk().unwrap();
    let (kind, len) = head(first).unwrap();
    assert_eq!(len, body.len());
    match decode(kind, body).unwrap() {
        HandshakeMessage::Refuse { kind, reason } => (kind, reason),
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[tokio::test]
async fn versions_without_overlap_are_refused_by_name_at_both_ends() {
    let mut hello =
        encoded(&HandshakeMessage::Hello(our_hello(&terms(None), &TestEnvironment::new()))).unwrap();
    hello[HEAD_LEN..HEAD_LEN + 4].copy_from_slice(&[5, 0, 7, 0]);
    let named = |text: &str| text.contains("speaks 1 to 1") && text.contains("the other end 5 to 7");

    let (error, answer) = accept_bytes(&hello).await;
    assert!(error.kind() == ErrorKind::Incompatible && named(error.detail()), "{error}");
    let (kind, reason) = refusal_in(&answer);
    assert!(kind == ErrorKind::Incompatible && named(&reason), "{reason}");

    let error = connect_to_bytes(&hello).await;
    assert!(error.kind() == ErrorKind::Incompatible && named(error.detail()), "{error}");
    let error = connect_to_bytes(&answer).await;
    assert!(error.detail().starts_with("the peer refused: no common protocol version"), "{error}");
}

#[tokio::test]
async fn a_browser_gets_a_displayable_answer() {
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"]
    {
        let (error, answer) = accept_bytes(request.as_bytes()).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.detail().contains("HTTP"), "{error}");
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 400 Bad Request\r\n") && body.contains("Towline endpoint"),
            "{answer}"
        );
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }
}

#[tokio::test]
async fn unauthenticated_peers_get_a_refusal_with_its_reason() {
    for (words, expected) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefghijkl"[..], "speaks TLS"),
        (b"SSH-2.0-client\r\n", "it sent \"SSH-2.0-client\""),
        (b"\n", "does not speak Towline"),
        (b"TOWLINX", "it sent \"TOWLINX\""),
        (b"\x00\xff\x1b[2J\x07 and so on, for longer than anyone wants to read", "\\x00\\xff\\x1b[2J"),
        (b"GETTING", "it sent \"GETTING\""),
    ] {
        let (error, answer) = accept_bytes(words).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.detail().contains(expected), "{error}");
        assert_eq!(refusal_in(&answer), (ErrorKind::Incompatible, error.detail().to_owned()));
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
}

#[tokio::test]
async fn a_connector_reports_what_answered() {
    for (words, expected) in [
        (&b"SSH-2.0-OpenSSH_9.6\r\n"[..], "not a Towline endpoint: it answered \"SSH-2.0-OpenSSH_9.6\""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it answered \"HTTP/1.1 400 Bad Request\""),
        (b"\x15\x03\x01\x00\x02\x02\x32", "it answered in TLS"),
        (b"\x00\x00\x00\x00", "it answered \"\\x00\\x00\\x00\\x00\""),
        (&[b'a'; 100], "it answered \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ] {
        let error = connect_to_bytes(words).await;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.detail().contains(expected), "{error}");
        assert!(error.detail().len() < 120, "{error}");
    }
}

#[tokio::test]
async fn a_peers_reason_is_cleaned_and_keeps_its_kind() {
    let refuse =
        |kind, reason: &str| encoded(&HandshakeMessage::Refuse { kind, reason: reason.to_owned() }).unwrap();
    let error = connect_to_bytes(&refuse(ErrorKind::TooLarge, "\x1b]0;owned\x07 too\nmany")).await;
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.detail(), "the peer refused: \u{fffd}]0;owned\u{fffd} too\u{fffd}many");
    let error = connect_to_bytes(&refuse(ErrorKind::Unavailable, "")).await;
    assert_eq!(error.to_string(), "unavailable: the peer refused: it gave no reason");
}

/// An acceptor ends in bounded time, whether a peer neither reads nor closes, or never stops sending.
#[tokio::test]
async fn a_refusal_is_bounded_whatever_the_unauthenticated_peer_does() {
    let (mut near, mut far) = duplex(8);
    near.write_all(b"\xffxxxxxxx").await.unwrap();
    let (ours, environment) =
        (Terms { time_left: Duration::from_secs(60), ..terms(None) }, TestEnvironment::new());
    let (result, took) = timed(accept_peer(&mut far, &ours, &environment)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Incompatible);
    assert!(took < Duration::from_secs(20), "{took:?}");

    let (mut near, mut far) = duplex(4096);
    let flood = tokio::spawn(async move {
        let mut written = 0;
        while near.write_all(&[0xaa; 1024]).await.is_ok() {
            written += 1024;
        }
        written
    });
    accept_peer(&mut far, &ours, &environment).await.unwrap_err();
    drop(far);
    let written = flood.await.unwrap();
    assert!(written <= 64 * 1024 + 3 * 4096, "{written} bytes were taken from the flood");
}

/// An environment in which no time passes, so that the test depends on no timing.
#[derive(Debug)]
struct StoppedClock;

impl Environment for StoppedClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, _: Duration) -> Task {
        Box::pin(std::future::pending())
    }

    fn random(&self, out: &mut [u8]) {
        out.fill(7);
    }

    fn spawn(&self, task: Task) {
        tokio::spawn(task);
    }
}

/// On a real socket, closing with unread bytes resets the connection. A peer that is still writing would then
/// fail before it reads the reason.
#[tokio::test]
async fn the_reason_reaches_a_peer_that_is_still_writing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        accept_peer(&mut stream, &terms(None), &StoppedClock).await.unwrap_err()
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0x55; 40 * 1024]).await.unwrap();
    stream.readable().await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        stream.write_all(&[0x55; 1024]).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let error = accepting.await.unwrap();
    assert_eq!(refusal_in(&answer).1, error.detail());
}
