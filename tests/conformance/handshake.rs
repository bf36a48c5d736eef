//! The handshake: which peers a listener accepts, and what it answers to all others.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towline::{Address, Builder, Endpoint, ErrorKind, Listener, Tls, Token};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::encrypted::dial;
use crate::polls::{all, in_time, within};
use crate::suite::cases;

cases! {
    ANY:
        the_same_token_connects,
        another_token_is_unauthenticated,
        a_token_at_one_end_is_unauthenticated,
        a_renewed_token_applies_to_later_peers,
        an_unknown_option_is_invalid,
        a_planned_scheme_names_an_alternative,
        an_address_has_one_listener,
        two_concurrent_listens_bind_an_address_once;
    CROSS_HOST:
        listening_on_all_interfaces_needs_authentication,
        an_http_request_gets_a_400,
        random_bytes_are_refused,
        a_peer_of_another_version_gets_the_supported_range,
        half_a_handshake_is_dropped_in_time,
        silent_unauthenticated_peers_block_no_peer;
}

const HANDSHAKE_TIME: Duration = Duration::from_millis(800);

fn token(secret: &str) -> Token {
    Token::from_bytes(secret).unwrap()
}

fn with_token(row: &Row, secret: Option<&str>) -> Endpoint {
    let builder = row.builder();
    let builder = match secret {
        Some(secret) => builder.token(token(secret)),
        None => builder,
    };
    builder.build().unwrap()
}

/// Asserts that a good peer connects.
async fn assert_open(near: &Endpoint, listener: &Listener) {
    let (a, b) = in_time("a good peer", connect_pair(near, listener)).await;
    let (sent, taken) = tokio::join!(a.deliver(message(1, &[100])), b.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[100]);
}

async fn a_renewed_token_applies_to_later_peers(row: &'static Row) {
    let far = with_token(row, Some("secret"));
    let listener = far.listen(&row.address()).await.unwrap();
    let near = with_token(row, Some("secret"));
    let (a, b) = in_time("a good peer", connect_pair(&near, &listener)).await;
    let error = far.renew(None, Some(Tls::builder().build().unwrap())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "it has no TLS: {error}");
    far.renew(Some(token("another")), None).unwrap();
    let error = in_time("a refusal", near.connect(listener.address())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    near.renew(Some(token("another")), None).unwrap();
    assert_open(&near, &listener).await;
    // The earlier connection stays.
    let (sent, taken) = tokio::join!(a.deliver(message(1, &[100])), b.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[100]);
    let error = with_token(row, None).renew(Some(token("secret")), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "an endpoint without a token cannot get one: {error}");
}

async fn the_same_token_connects(row: &'static Row) {
    let (near, far) = (with_token(row, Some("secret")), with_token(row, Some("secret")));
    assert_open(&near, &far.listen(&row.address()).await.unwrap()).await;
}

/// Asserts that an unauthenticated peer is refused with the reason, and that a good peer still connects.
async fn assert_unauthenticated(row: &Row, near: Option<&str>, far: Option<&str>) {
    let listening = with_token(row, far);
    let listener = listening.listen(&row.address()).await.unwrap();
    for _ in 0..3 {
        let error = in_time("connect", with_token(row, near).connect(listener.address())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(error.to_string().contains("token"), "it names the option: {error}");
    }
    assert_open(&with_token(row, far), &listener).await;
}

async fn another_token_is_unauthenticated(row: &'static Row) {
    assert_unauthenticated(row, Some("secret"), Some("another")).await;
    assert_unauthenticated(row, Some("secret"), Some("secret ")).await;
}

async fn a_token_at_one_end_is_unauthenticated(row: &'static Row) {
    assert_unauthenticated(row, Some("secret"), None).await;
    assert_unauthenticated(row, None, Some("secret")).await;
}

async fn an_unknown_option_is_invalid(row: &'static Row) {
    let pair = row.pair().await;
    let wrong = pair.listener.address().clone().with_option("frobnicate", "7").unwrap();
    let connecting = in_time("connect", pair.near.connect(&wrong)).await.unwrap_err();
    let listening = in_time("listen", pair.far.listen(&wrong)).await.unwrap_err();
    for error in [connecting, listening] {
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("frobnicate"), "{error}");
    }
}

async fn a_planned_scheme_names_an_alternative(row: &'static Row) {
    let endpoint = row.endpoint();
    for planned in towline::backend::PLANNED {
        let address: Address = format!("{planned}://127.0.0.1:7000").parse().unwrap();
        let connecting = in_time("connect", endpoint.connect(&address)).await.unwrap_err();
        let listening = in_time("listen", endpoint.listen(&address)).await.unwrap_err();
        for error in [connecting, listening] {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains("use tcp or towline"), "{error}");
        }
    }
}

async fn an_address_has_one_listener(row: &'static Row) {
    let pair = row.pair().await;
    let address = pair.listener.address().clone();
    for endpoint in [&pair.near, &pair.far] {
        let error = in_time("listen", endpoint.listen(&address)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    assert_open(&pair.near, &pair.listener).await;
    // A free address can be bound again.
    drop(pair.listener);
    let again = async {
        loop {
            match pair.near.listen(&address).await {
                Ok(listener) => return listener,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        }
    };
    let listener = in_time("the address", again).await;
    assert_open(&pair.far, &listener).await;
}

async fn two_concurrent_listens_bind_an_address_once(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    for turn in 0..100 {
        let address = match row.address().name() {
            Some(_) => Address::mem(format!("contested-{turn}")).unwrap(),
            None => {
                let listener = near.listen(&row.address()).await.unwrap();
                let address = listener.address().clone();
                drop(listener);
                // The address is free a little later.
                tokio::time::sleep(Duration::from_millis(2)).await;
                address
            }
        };
        let listening = [&near, &far].map(|endpoint| {
            let (endpoint, address) = (endpoint.clone(), address.clone());
            tokio::spawn(async move { endpoint.listen(&address).await })
        });
        let [first, second] = listening;
        let listeners: Vec<_> = [first.await.unwrap(), second.await.unwrap()].into_iter().flatten().collect();
        assert!(listeners.len() <= 1, "both listen at {address}");
        if let Some(listener) = listeners.first() {
            assert_open(&near, listener).await;
        }
    }
}

async fn listening_on_all_interfaces_needs_authentication(row: &'static Row) {
    let scheme = row.address().scheme();
    let open: [Address; 3] =
        ["*", "0.0.0.0", "[::]"].map(|host| format!("{scheme}://{host}:0").parse().unwrap());
    for address in &open {
        let without_token = in_time("listen", row.endpoint().listen(address)).await;
        if scheme.is_encrypted() {
            without_token.expect("peers need a certificate");
        } else {
            let error = without_token.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("token"), "it names the option: {error}");
        }
        in_time("listen", with_token(row, Some("secret")).listen(address)).await.unwrap();
        let insecure = row.builder().insecure(true).build().unwrap();
        let listener = in_time("listen", insecure.listen(address)).await.unwrap();
        assert_ne!(listener.address().port(), 0);
        // Every address of the host reaches it.
        let port = listener.address().port();
        let loopback = Address::new(scheme, row.address().host(), port).unwrap();
        if address.host() == "*" {
            let (a, _b) = tokio::join!(insecure.connect(&loopback), listener.accept());
            a.unwrap();
        }
    }
}

/// Listens with a short handshake time, and this many places for unauthenticated peers.
async fn listening_briefly(row: &Row, unauthenticated: usize) -> (Endpoint, Listener) {
    let configure =
        |builder: Builder| builder.handshake_time(HANDSHAKE_TIME).unauthenticated_max(unauthenticated);
    let endpoint = configure(row.builder()).build().unwrap();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    (endpoint, listener)
}

/// Returns the answer to an unauthenticated peer that sends these bytes, and then waits.
async fn answer_to(listener: &Listener, words: &[u8]) -> Vec<u8> {
    let mut stream = dial(listener).await;
    stream.write_all(words).await.unwrap();
    let mut answer = Vec::new();
    let end =
        within(HANDSHAKE_TIME + Duration::from_secs(2), "the answer", stream.read_to_end(&mut answer)).await;
    // A peer that is dropped during TLS's handshake gets no close of TLS.
    let cut = |error: &std::io::Error| error.kind() == std::io::ErrorKind::UnexpectedEof;
    if let Err(error) = end.map(drop).or_else(|error| if cut(&error) { Ok(()) } else { Err(error) }) {
        panic!("{error} after {:?}", String::from_utf8_lossy(&answer));
    }
    answer
}

fn contains(answer: &[u8], words: &str) -> bool {
    String::from_utf8_lossy(answer).contains(words)
}

async fn an_http_request_gets_a_400(row: &'static Row) {
    let (_far, listener) = listening_briefly(row, 8).await;
    let request = b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n";
    let answer = answer_to(&listener, request).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{:?}", String::from_utf8_lossy(&answer));
    assert!(contains(&answer, "Towline"));
    assert_open(&row.endpoint(), &listener).await;
}

const MAGIC: &[u8] = b"TOWLINE\x1a";
const HELLO: u8 = 1;
const REFUSE: u8 = 6;

/// Asserts that the answer is a refusal of Towline's handshake.
#[track_caller]
fn assert_refusal(answer: &[u8], reason: &str) {
    let text = String::from_utf8_lossy(answer);
    assert!(answer.starts_with(MAGIC) && answer.get(8) == Some(&REFUSE), "{text:?}");
    assert!(contains(answer, reason), "{text:?}");
}

async fn random_bytes_are_refused(row: &'static Row) {
    let (_far, listener) = listening_briefly(row, 8).await;
    for seed in 0..20 {
        let len = [1, 15, 16, 17, 1000, 100_000][seed % 6];
        let answer = answer_to(&listener, &crate::content::bytes(seed, len)).await;
        assert_refusal(&answer, "does not speak Towline");
    }
    // A valid head with an invalid body.
    let head = |kind: u8, len: u32| [MAGIC, &[kind, 0, 0, 0], &len.to_le_bytes()].concat();
    for head in [head(99, 0), head(HELLO, u32::MAX), head(HELLO, 3), head(2, 32)] {
        let answer = answer_to(&listener, &[head, vec![0xff; 64]].concat()).await;
        assert_refusal(&answer, "");
    }
    assert_open(&row.endpoint(), &listener).await;
}

async fn a_peer_of_another_version_gets_the_supported_range(row: &'static Row) {
    let (_far, listener) = listening_briefly(row, 8).await;
    for version in [0_u16, 900] {
        let mut body = [version.to_le_bytes(), version.to_le_bytes()].concat();
        body.extend([0; 8]); // features
        body.extend([7; 32]); // nonce
        body.extend([0; 56]); // identity
        body.extend([0, 0]); // no token, no offers
        let head = [MAGIC, &[HELLO, 0, 0, 0], &(body.len() as u32).to_le_bytes()].concat();
        let answer = answer_to(&listener, &[head, body].concat()).await;
        assert_refusal(&answer, "no common protocol version");
        assert!(contains(&answer, "1 to 1"), "{:?}", String::from_utf8_lossy(&answer));
    }
    assert_open(&row.endpoint(), &listener).await;
}

async fn half_a_handshake_is_dropped_in_time(row: &'static Row) {
    let (_far, listener) = listening_briefly(row, 8).await;
    let began = Instant::now();
    let unauthenticated = [&b""[..], &MAGIC[..4], MAGIC, b"TOWLINE\x1a\x01\0\0\0\xff\0\0\0"];
    all(unauthenticated.map(|words| async {
        let answer = answer_to(&listener, words).await;
        assert!(answer.is_empty() || answer.starts_with(MAGIC), "{:?}", String::from_utf8_lossy(&answer));
        let time = began.elapsed();
        assert!(time >= HANDSHAKE_TIME - Duration::from_millis(50), "dropped after {time:?}");
        assert!(time < HANDSHAKE_TIME + Duration::from_secs(1), "kept for {time:?}");
    }))
    .await;
    assert_open(&row.endpoint(), &listener).await;
}

async fn silent_unauthenticated_peers_block_no_peer(row: &'static Row) {
    const UNAUTHENTICATED: usize = 4;
    let (_far, listener) = listening_briefly(row, UNAUTHENTICATED).await;
    let address = listener.address();
    for rounds in [1, 3] {
        let unauthenticated =
            (0..UNAUTHENTICATED * rounds).map(|_| TcpStream::connect((address.host(), address.port())));
        let unauthenticated = all(unauthenticated).await;
        assert!(unauthenticated.iter().all(Result::is_ok));
        let began = Instant::now();
        assert_open(&row.endpoint(), &listener).await;
        let limit = HANDSHAKE_TIME * rounds as u32 + Duration::from_secs(1);
        assert!(
            began.elapsed() < limit,
            "blocked for {:?} by {rounds} rounds of unauthenticated peers",
            began.elapsed()
        );
    }
}
