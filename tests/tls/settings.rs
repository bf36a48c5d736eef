//! What an endpoint is told, and what it then does.

use super::*;

#[tokio::test]
async fn what_leaves_the_process_is_encrypted_and_what_stays_is_not() {
    let tls = || showing(&listeners(), &ours());
    let handshake = Handshake::at("towlines://127.0.0.1:0", endpoint(tls())).await;
    let (a, b) = handshake.meet(&endpoint(tls()), handshake.listener.address()).await;
    assert_eq!((a.path().chosen(), a.path().encryption()), ("mem", "none"));
    assert_eq!((b.path().chosen(), b.path().encryption()), ("mem", "none"));
    // As between two processes.
    let backends =
        || vec![std::sync::Arc::new(towline::backend::Tcp) as std::sync::Arc<dyn towline::backend::Backend>];
    let near = Endpoint::builder().tls(tls()).backends(backends()).build().unwrap();
    let (a, b) = handshake.meet(&near, handshake.listener.address()).await;
    assert_eq!((a.path().chosen(), a.path().encryption()), ("tcp", "tls"));
    assert_eq!((b.path().chosen(), b.path().encryption()), ("tcp", "tls"));
    // And forced.
    let (a, b) = handshake.meet(&near, &handshake.address(Scheme::Tls, "localhost")).await;
    assert_eq!((a.path().encryption(), b.path().encryption()), ("tls", "tls"));
}

#[tokio::test]
async fn anonymous_connectors_come_in_where_they_may() {
    let tls = listeners().shown_by(believing(&ours())).anonymous_clients(true).build().unwrap();
    let handshake = Handshake::open(tls).await;
    handshake.meet(&endpoint(believing(&ours()).build().unwrap()), handshake.listener.address()).await;
    // And where nobody could be believed anyway.
    let handshake = Handshake::open(listeners().shown_by(Tls::builder()).build().unwrap()).await;
    handshake.meet(&endpoint(believing(&ours()).build().unwrap()), handshake.listener.address()).await;
}

#[tokio::test]
async fn a_token_is_asked_for_over_tls_as_well() {
    let with = |token: &str| {
        let builder = Endpoint::builder().tls(showing(&listeners(), &ours()));
        builder.token(Token::from_bytes(token).unwrap()).build().unwrap()
    };
    let handshake = Handshake::at("tls://127.0.0.1:0", with("secret")).await;
    handshake.meet(&with("secret"), handshake.listener.address()).await;
    let error = refused(&with("another"), handshake.listener.address()).await;
    assert_says(&error, ErrorKind::Unauthenticated, &["different tokens"]);
}

#[tokio::test]
async fn a_listener_over_tls_needs_no_insecure_beyond_loopback() {
    let only_shown = listeners().shown_by(Tls::builder()).build().unwrap();
    for tls in [showing(&listeners(), &ours()), only_shown] {
        for address in ["tls://*:0", "towlines://0.0.0.0:0"] {
            endpoint(tls.clone()).listen(&address.parse().unwrap()).await.unwrap();
        }
        // The same endpoint without TLS in its address is as open as ever.
        let error = endpoint(tls).listen(&"tcp://*:0".parse().unwrap()).await.unwrap_err();
        assert_says(&error, ErrorKind::Invalid, &["accept anybody"]);
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let address: Address = "tls://127.0.0.1:7000".parse().unwrap();
    let bare = Endpoint::new().unwrap();
    for error in [bare.listen(&address).await.unwrap_err(), bare.connect(&address).await.unwrap_err()] {
        assert_says(&error, ErrorKind::Invalid, &["has no TLS", "--cert", "--ca"]);
    }
    let believer = endpoint(believing(&ours()).build().unwrap());
    assert_says(
        &believer.listen(&address).await.unwrap_err(),
        ErrorKind::Invalid,
        &["needs a certificate", "--cert"],
    );
    let shower = endpoint(listeners().shown_by(Tls::builder()).build().unwrap());
    assert_says(
        &shower.connect(&address).await.unwrap_err(),
        ErrorKind::Invalid,
        &["no listener would be trusted", "--ca"],
    );
    let optional: Address = "tcp://127.0.0.1:7000?tls=on".parse().unwrap();
    assert_says(
        &shower.connect(&optional).await.unwrap_err(),
        ErrorKind::Invalid,
        &["write tls:// or towlines://"],
    );
}

#[test]
fn what_is_no_certificate_is_told_at_once() {
    let wrong = |tls: TlsBuilder| tls.build().unwrap_err();
    let Certificate { chain, key } = listeners();
    assert_says(
        &wrong(Tls::builder().certificate("", key.clone())),
        ErrorKind::Invalid,
        &["certificate contains no certificate"],
    );
    assert_says(&wrong(Tls::builder().certificate(chain.clone(), "")), ErrorKind::Invalid, &["private key"]);
    let damaged = chain.replace("MI", "?!");
    assert_says(&wrong(Tls::builder().certificate(damaged, key)), ErrorKind::Invalid, &["certificate"]);
    let another = connectors().key;
    assert_says(&wrong(Tls::builder().certificate(chain, another)), ErrorKind::Invalid, &["cannot be used"]);
    assert_says(
        &wrong(Tls::builder().authority("nobody")),
        ErrorKind::Invalid,
        &["authority contains no certificate"],
    );
    assert_says(&wrong(Tls::builder().server_name("no name")), ErrorKind::Invalid, &["no name"]);
}

#[test]
fn nothing_of_a_key_is_shown() {
    let tls = listeners().shown_by(believing(&ours()));
    let key = listeners().key;
    let line = key.lines().nth(1).unwrap();
    let text = format!("{tls:?} {:?}", showing(&listeners(), &ours()));
    assert!(!text.contains(line) && text.len() < 400, "{text}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_whom_comes_next() {
    let handshake = Handshake::open(showing(&listeners(), &ours())).await;
    let friend = endpoint(showing(&connectors(), &ours()));
    let (a, b) = handshake.meet(&friend, handshake.listener.address()).await;

    // One that would let in whoever comes, and one that shows nothing.
    let weaker = [listeners().shown_by(Tls::builder()).build().unwrap(), believing(&ours()).build().unwrap()];
    for weaker in weaker {
        let error = handshake.endpoint.renew(None, Some(weaker)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    handshake.assert_open().await;

    let others = Authority::new(9);
    let renewed = others.sign(&["127.0.0.1"], 4, Kind::Usual);
    handshake.endpoint.renew(None, Some(showing(&renewed, &others))).unwrap();
    let error = in_time("a refusal", friend.connect(handshake.listener.address())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    friend.renew(None, Some(showing(&others.sign(&["worker"], 5, Kind::Usual), &others))).unwrap();
    handshake.meet(&friend, handshake.listener.address()).await;
    // Who was there stays.
    let (there, taken) = tokio::join!(a.deliver(Message::new("there")), b.recv());
    there.unwrap();
    assert_eq!(&taken.unwrap().header()[..], b"there");
}
