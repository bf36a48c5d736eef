//! Handshakes over a pipe in memory, intact or tampered with.

mod joins;
mod measuring;
mod simulated;
mod unauthenticated;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{DuplexStream, ReadBuf, duplex};

use super::*;
use crate::platform::environment::Task;

#[derive(Debug)]
struct TestEnvironment(Instant);

impl TestEnvironment {
    fn new() -> Self {
        Self(Instant::now())
    }
}

impl Environment for TestEnvironment {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Task {
        Box::pin(tokio::time::sleep(at.saturating_sub(self.now())))
    }

    fn random(&self, out: &mut [u8]) {
        getrandom::fill(out).unwrap();
    }

    fn spawn(&self, task: Task) {
        tokio::spawn(task);
    }
}

/// A fault in the bytes that one end writes.
#[derive(Clone, Copy)]
enum HandshakeFault {
    Untouched,
    /// The byte at this position is flipped by this mask.
    Flipped(usize, u8),
    /// The stream ends after so many bytes.
    Cut(usize),
}

struct FaultyStream<S> {
    inner: S,
    fault: HandshakeFault,
    written: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for FaultyStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FaultyStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut bytes = buf.to_vec();
        match self.fault {
            HandshakeFault::Flipped(at, mask) if (self.written..self.written + buf.len()).contains(&at) => {
                bytes[at - self.written] ^= mask;
            }
            HandshakeFault::Cut(at) if self.written >= at => {
                ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
                return Poll::Ready(Ok(buf.len()));
            }
            HandshakeFault::Cut(at) => bytes.truncate(at - self.written),
            _ => {}
        }
        let len = ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes))?;
        self.written += len;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn terms(token: Option<&str>) -> Terms {
    Terms {
        identity: Identity::of_this_process(&TestEnvironment::new()),
        token: token.map(|token| Token::from_bytes(token).unwrap()),
        features: 0b110,
        offers: vec![
            Offer { backend: "tcp".to_owned(), bytes: Vec::new() },
            Offer { backend: "shm".to_owned(), bytes: vec![1, 2, 3] },
        ],
        binding: None,
        time_left: HANDSHAKE_TIME,
        handshake_time: HANDSHAKE_TIME,
    }
}

/// A proposal of one stream, without endpoint info.
fn proposal(backend: &str) -> Proposal {
    Proposal { backend: backend.to_owned(), streams: 1, info: Vec::new() }
}

/// Greets as an acceptor, and expects a peer.
async fn accept_peer<S: HandshakeStream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<Greeting> {
    match greet_as_acceptor(stream, terms, env, |now| now).await? {
        Inbound::Peer(greeting) => Ok(greeting),
        Inbound::Lane(join) => panic!("{join:?} is no peer"),
    }
}

/// Runs a handshake in which each end closes its stream as soon as it is done.
async fn greet_both(
    (connector, connector_fate): (&Terms, HandshakeFault),
    (acceptor, acceptor_fate): (&Terms, HandshakeFault),
) -> (Result<Greeting>, Result<Greeting>) {
    let environment = TestEnvironment::new();
    let (near, far) = duplex(256);
    let mut near = FaultyStream { inner: near, fault: connector_fate, written: 0 };
    let mut far = FaultyStream { inner: far, fault: acceptor_fate, written: 0 };
    let connecting = async {
        let result = greet_as_connector(&mut near, connector, &environment).await;
        drop(near);
        result
    };
    let accepting = async {
        let result = accept_peer(&mut far, acceptor, &environment).await;
        drop(far);
        result
    };
    tokio::join!(connecting, accepting)
}

async fn greet_both_unchanged(connector: &Terms, acceptor: &Terms) -> (Result<Greeting>, Result<Greeting>) {
    greet_both((connector, HandshakeFault::Untouched), (acceptor, HandshakeFault::Untouched)).await
}

#[tokio::test]
async fn both_ends_get_the_same_greeting() {
    for token in [None, Some("a token")] {
        let (ours, theirs) = (terms(token), Terms { features: 0b011, offers: Vec::new(), ..terms(token) });
        let (connected, accepted) = greet_both_unchanged(&ours, &theirs).await;
        let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
        assert_eq!((connected.peer, accepted.peer), (theirs.identity, ours.identity));
        assert!(connected.peer.same_process(&accepted.peer) && connected.peer.id != accepted.peer.id);
        assert_eq!((connected.version, accepted.version), (1, 1));
        assert_eq!((connected.features, accepted.features), (0b010, 0b010));
        assert_eq!((connected.offers, accepted.offers), (Vec::new(), ours.offers.clone()));
        assert_eq!(connected.secret, accepted.secret);
        let again = greet_both_unchanged(&ours, &theirs).await.0.unwrap();
        assert_ne!(again.secret, connected.secret);
    }
}

#[tokio::test]
async fn different_tokens_are_unauthenticated_at_both_ends() {
    let (connected, accepted) = greet_both_unchanged(&terms(Some("a")), &terms(Some("b"))).await;
    let (connected, accepted) = (connected.unwrap_err(), accepted.unwrap_err());
    assert_eq!(accepted.kind(), ErrorKind::Unauthenticated);
    assert!(accepted.detail().starts_with("the connector's proof is wrong"), "{accepted}");
    assert_eq!(connected.kind(), ErrorKind::Unauthenticated);
    assert!(
        connected.detail().starts_with("the peer refused: the connector's proof is wrong"),
        "{connected}"
    );
}

#[tokio::test]
async fn a_token_at_one_end_is_unauthenticated_and_says_which_end_lacks_it() {
    for (ours, theirs, lacking) in [(None, Some("t"), "connector"), (Some("t"), None, "acceptor")] {
        let (connected, accepted) = greet_both_unchanged(&terms(ours), &terms(theirs)).await;
        for error in [connected.unwrap_err(), accepted.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Unauthenticated);
            assert!(error.detail().contains(&format!("the {lacking} has none")), "{error}");
        }
    }
}

/// A connector requires a proof even if the acceptor claims to have no token.
#[tokio::test]
async fn a_connector_checks_an_acceptor_that_checks_nothing() {
    let (mut near, mut far) = duplex(64 * 1024);
    let ours = terms(Some("t"));
    let hostile_peer = Hello { authenticates: false, ..our_hello(&ours, &TestEnvironment::new()) };
    far.write_all(&encoded(&HandshakeMessage::Hello(hostile_peer)).unwrap()).await.unwrap();
    let error = greet_as_connector(&mut near, &ours, &TestEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.detail().contains("the acceptor has none"), "{error}");
}

#[tokio::test]
async fn a_reflected_handshake_is_refused() {
    let (mut near, far) = duplex(64 * 1024);
    let mirror = tokio::spawn(async {
        let (mut read, mut write) = tokio::io::split(far);
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let error = greet_as_connector(&mut near, &terms(Some("t")), &TestEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.detail().contains("same nonce"), "{error}");
    drop(near);
    mirror.await.unwrap();
}

/// Bytes that each end writes in a valid handshake between [`terms`]: a `Hello` and a `Proof`.
fn conversation_len() -> usize {
    encoded(&HandshakeMessage::Hello(our_hello(&terms(None), &TestEnvironment::new()))).unwrap().len()
        + HEAD_LEN
        + 32
}

#[tokio::test]
async fn a_handshake_cut_at_any_byte_fails() {
    let (ours, theirs) = (terms(Some("t")), terms(Some("t")));
    for at in 0..conversation_len() {
        let (connected, accepted) =
            greet_both((&ours, HandshakeFault::Cut(at)), (&theirs, HandshakeFault::Untouched)).await;
        assert_eq!(accepted.unwrap_err().kind(), ErrorKind::PeerLost, "cut after {at}");
        connected.unwrap_err();
        let (connected, _) =
            greet_both((&ours, HandshakeFault::Untouched), (&theirs, HandshakeFault::Cut(at))).await;
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::PeerLost, "cut after {at}");
    }
    let len = conversation_len();
    let (connected, accepted) =
        greet_both((&ours, HandshakeFault::Cut(len)), (&theirs, HandshakeFault::Cut(len))).await;
    assert!(connected.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn a_flipped_byte_is_detected_with_a_token() {
    let short = || Terms { time_left: Duration::from_millis(50), ..terms(Some("t")) };
    let (ours, theirs) = (short(), short());
    for at in 0..conversation_len() {
        for mask in [1 << (at % 8), 0xff] {
            let flip = HandshakeFault::Flipped(at, mask);
            let (connected, accepted) = greet_both((&ours, flip), (&theirs, HandshakeFault::Untouched)).await;
            let error = accepted.expect_err("authenticated content was changed");
            assert_ne!(error.kind(), ErrorKind::Io, "byte {at}: {error}");
            connected.unwrap_err();
            // The acceptor is done before its own proof arrives, so only the connector can detect this.
            let (connected, _) = greet_both((&ours, HandshakeFault::Untouched), (&theirs, flip)).await;
            connected.expect_err("authenticated content was changed");
        }
    }
}

#[tokio::test]
async fn without_a_token_flipped_bytes_are_an_error_or_another_greeting() {
    let short = || Terms { time_left: Duration::from_millis(50), ..terms(None) };
    let (ours, theirs) = (short(), short());
    for at in 0..conversation_len() {
        let flip = HandshakeFault::Flipped(at, 1 << (at % 8));
        let (connected, accepted) = greet_both((&ours, flip), (&theirs, HandshakeFault::Untouched)).await;
        if let (Ok(connected), Ok(accepted)) = (connected, accepted) {
            assert_ne!(connected.secret, accepted.secret, "byte {at}");
        }
    }
}

/// Runs `task` and returns how long it took.
async fn timed<T>(task: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (task.await, start.elapsed())
}

#[tokio::test]
async fn one_byte_at_a_time_does_not_hold_the_handshake_open() {
    let ours = Terms { time_left: Duration::from_millis(100), ..terms(None) };
    let (mut near, mut far) = duplex(64 * 1024);
    let hello = encoded(&HandshakeMessage::Hello(our_hello(&ours, &TestEnvironment::new()))).unwrap();
    let trickle = tokio::spawn(async move {
        for byte in hello {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if near.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    let environment = TestEnvironment::new();
    let (result, took) = timed(accept_peer(&mut far, &ours, &environment)).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let told = format!("within {} s: ", HANDSHAKE_TIME.as_secs());
    assert!(error.detail().contains(&told), "the configured limit, not the time left: {error}");
    assert!(took >= Duration::from_millis(100), "{took:?}");
    drop(far);
    trickle.await.unwrap();
}

#[tokio::test]
async fn silence_ends_in_time_at_both_ends() {
    let ours = Terms { time_left: Duration::from_millis(20), ..terms(None) };
    let (mut near, _far) = duplex(16);
    let error = greet_as_connector(&mut near, &ours, &TestEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "the pipe is full: {error}");
    let (_near, mut far) = duplex(16);
    assert_eq!(
        accept_peer(&mut far, &ours, &TestEnvironment::new()).await.unwrap_err().kind(),
        ErrorKind::TimedOut
    );
}

/// Both ends after their greeting.
async fn greeted() -> (DuplexStream, DuplexStream) {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = duplex(64 * 1024);
    let (ours, theirs) = (terms(None), terms(None));
    let (connected, accepted) = tokio::join!(
        greet_as_connector(&mut near, &ours, &environment),
        accept_peer(&mut far, &theirs, &environment)
    );
    assert!(connected.is_ok() && accepted.is_ok());
    (near, far)
}

const LATER: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_connector_proposes_until_the_acceptor_is_ready() {
    let (mut near, mut far) = greeted().await;
    let environment = TestEnvironment::new();
    let connector = async {
        let reason = propose(&mut near, &proposal("ucx"), LATER, &environment).await.unwrap().unwrap_err();
        propose(&mut near, &proposal("tcp"), LATER, &environment).await.unwrap().unwrap();
        reason
    };
    let acceptor = async {
        assert_eq!(receive_proposal(&mut far, LATER, &environment).await.unwrap(), proposal("ucx"));
        answer(&mut far, Err("libucp.so is\nmissing")).await.unwrap();
        assert_eq!(receive_proposal(&mut far, LATER, &environment).await.unwrap(), proposal("tcp"));
        answer(&mut far, Ok(())).await.unwrap();
    };
    assert_eq!(tokio::join!(connector, acceptor).0, "libucp.so is\u{fffd}missing");
}

#[tokio::test]
async fn endpoint_infos_arrive_at_both_ends() {
    let environment = TestEnvironment::new();
    for streams in [1, 4] {
        let (mut near, mut far) = greeted().await;
        let asked = Proposal { streams, info: vec![7; INFO_LEN_MAX], ..proposal("ucx") };
        let connector = async { propose(&mut near, &asked, LATER, &environment).await.unwrap().unwrap() };
        let acceptor = async {
            assert_eq!(receive_proposal(&mut far, LATER, &environment).await.unwrap(), asked);
            answer_with(&mut far, b"the acceptor's").await.unwrap();
        };
        assert_eq!(tokio::join!(connector, acceptor).0, b"the acceptor's");
        // An endpoint info may be answered without one.
        answer_with(&mut far, &[]).await.unwrap();
        assert_eq!(propose(&mut near, &asked, LATER, &environment).await.unwrap().unwrap(), b"");
    }
}

#[tokio::test]
async fn an_unexpected_endpoint_info_is_corrupt() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    answer_with(&mut far, b"an endpoint info").await.unwrap();
    let error = propose(&mut near, &proposal("tcp"), LATER, &environment).await.unwrap_err();
    assert_eq!(error.to_string(), "corrupt: ReadyInfo arrived where Ready or NotReady was expected");

    let (mut near, mut far) = greeted().await;
    answer_with(&mut near, b"an endpoint info").await.unwrap();
    let error = receive_answer(&mut far, "ucx", LATER, &environment).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn an_oversized_endpoint_info_fails_before_sending() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    let asked = Proposal { info: vec![7; INFO_LEN_MAX + 1], ..proposal("ucx") };
    let error = propose(&mut near, &asked, LATER, &environment).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let error = answer_with(&mut near, &asked.info).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    drop(near);
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
}

/// The stream is handed on: bytes after the last message are not read.
#[tokio::test]
async fn nothing_is_read_past_the_last_message() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = duplex(64 * 1024);
    let (ours, theirs) = (terms(Some("t")), terms(Some("t")));
    let accepting = async {
        accept_peer(&mut far, &theirs, &environment).await.unwrap();
        far.write_all(b"after the greeting").await.unwrap();
    };
    let connecting = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        greet_as_connector(&mut near, &ours, &environment).await.unwrap();
        let mut after = [0; 18];
        near.read_exact(&mut after).await.unwrap();
        assert_eq!(&after, b"after the greeting");
    };
    tokio::join!(accepting, connecting);

    near.write_all(&encoded(&HandshakeMessage::Propose { backend: "tcp".to_owned() }).unwrap())
        .await
        .unwrap();
    near.write_all(b"after").await.unwrap();
    assert_eq!(receive_proposal(&mut far, LATER, &environment).await.unwrap(), proposal("tcp"));
    let mut after = [0; 5];
    far.read_exact(&mut after).await.unwrap();
    assert_eq!(&after, b"after");
}

#[tokio::test]
async fn waiting_for_a_proposal_ends_on_close_timeout_or_garbage() {
    let environment = TestEnvironment::new();
    let (near, mut far) = greeted().await;
    drop(near);
    assert_eq!(receive_proposal(&mut far, LATER, &environment).await.unwrap_err().kind(), ErrorKind::Closed);

    let (_near, mut far) = greeted().await;
    let soon = environment.now() + Duration::from_millis(10);
    assert_eq!(receive_proposal(&mut far, soon, &environment).await.unwrap_err().kind(), ErrorKind::TimedOut);

    let (mut near, _far) = greeted().await;
    let soon = environment.now() + Duration::from_millis(10);
    let error = propose(&mut near, &proposal("ib"), soon, &environment).await.unwrap_err();
    assert!(error.kind() == ErrorKind::TimedOut && error.detail().contains("ib"), "{error}");
    let error = propose(&mut near, &proposal("I B"), soon, &environment).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let (mut near, mut far) = greeted().await;
    answer(&mut near, Ok(())).await.unwrap();
    let error = receive_proposal(&mut far, LATER, &environment).await.unwrap_err();
    assert_eq!(error.to_string(), "corrupt: Ready arrived where Propose was expected");
    let error = propose(&mut near, &proposal("tcp"), LATER, &environment).await.unwrap_err();
    assert_eq!(error.to_string(), "corrupt: the peer refused: Ready arrived where Propose was expected");

    let (mut near, far) = greeted().await;
    drop(far);
    assert_eq!(
        propose(&mut near, &proposal("tcp"), LATER, &environment).await.unwrap_err().kind(),
        ErrorKind::PeerLost
    );
}

#[tokio::test]
async fn invalid_terms_fail_before_sending() {
    let ours =
        Terms { offers: vec![Offer { backend: "Not A Name".to_owned(), bytes: Vec::new() }], ..terms(None) };
    let (mut near, far) = duplex(16);
    let error = greet_as_connector(&mut near, &ours, &TestEnvironment::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    drop(near);
    let mut answer = Vec::new();
    { far }.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty());
}
