//! The settings of TLS, and their effects.

use super::*;

#[tokio::test]
async fn only_links_that_leave_the_process_are_encrypted() {
    let tls = || tls_with(&listeners(), &ours());
    let acceptor = Acceptor::at("towlines://127.0.0.1:0", endpoint(tls())).await;
    let (a, b) = acceptor.meet(&endpoint(tls()), acceptor.listener.address()).await;
    assert_eq!((a.path().chosen(), a.path().encryption()), ("mem", "none"));
    assert_eq!((b.path().chosen(), b.path().encryption()), ("mem", "none"));
    // With tcp alone, as between two processes.
    let backends =
        || vec![std::sync::Arc::new(towline::backend::Tcp) as std::sync::Arc<dyn towline::backend::Backend>];
    let near = Endpoint::builder().tls(tls()).backends(backends()).build().unwrap();
    let (a, b) = acceptor.meet(&near, acceptor.listener.address()).await;
    assert_eq!((a.path().chosen(), a.path().encryption()), ("tcp", "tls"));
    assert_eq!((b.path().chosen(), b.path().encryption()), ("tcp", "tls"));
    // With a scheme that requires TLS.
    let (a, b) = acceptor.meet(&near, &acceptor.address(Scheme::Tls, "localhost")).await;
    assert_eq!((a.path().encryption(), b.path().encryption()), ("tls", "tls"));
}

#[tokio::test]
async fn anonymous_connectors_are_accepted_where_permitted() {
    let tls = listeners().shown_by(trusting(&ours())).anonymous_clients(true).build().unwrap();
    let acceptor = Acceptor::open(tls).await;
    acceptor.meet(&endpoint(trusting(&ours()).build().unwrap()), acceptor.listener.address()).await;
    // And where the listener trusts no authority.
    let acceptor = Acceptor::open(listeners().shown_by(Tls::builder()).build().unwrap()).await;
    acceptor.meet(&endpoint(trusting(&ours()).build().unwrap()), acceptor.listener.address()).await;
}

#[tokio::test]
async fn a_token_is_required_over_tls_too() {
    let with = |token: &str| {
        let builder = Endpoint::builder().tls(tls_with(&listeners(), &ours()));
        builder.token(Token::from_bytes(token).unwrap()).build().unwrap()
    };
    let acceptor = Acceptor::at("tls://127.0.0.1:0", with("secret")).await;
    acceptor.meet(&with("secret"), acceptor.listener.address()).await;
    let error = refused(&with("another"), acceptor.listener.address()).await;
    assert_error(&error, ErrorKind::Unauthenticated, &["different tokens"]);
}

#[tokio::test]
async fn a_listener_over_tls_needs_no_insecure_beyond_loopback() {
    let only_shown = listeners().shown_by(Tls::builder()).build().unwrap();
    for tls in [tls_with(&listeners(), &ours()), only_shown] {
        for address in ["tls://*:0", "towlines://0.0.0.0:0"] {
            endpoint(tls.clone()).listen(&address.parse().unwrap()).await.unwrap();
        }
        // The same endpoint refuses an address without TLS.
        let error = endpoint(tls).listen(&"tcp://*:0".parse().unwrap()).await.unwrap_err();
        assert_error(&error, ErrorKind::Invalid, &["accept anybody"]);
    }
}

#[tokio::test]
async fn errors_name_the_missing_setting() {
    let address: Address = "tls://127.0.0.1:7000".parse().unwrap();
    let bare = Endpoint::new().unwrap();
    for error in [bare.listen(&address).await.unwrap_err(), bare.connect(&address).await.unwrap_err()] {
        assert_error(&error, ErrorKind::Invalid, &["has no TLS", "--cert", "--ca"]);
    }
    let without_certificate = endpoint(trusting(&ours()).build().unwrap());
    assert_error(
        &without_certificate.listen(&address).await.unwrap_err(),
        ErrorKind::Invalid,
        &["needs a certificate", "--cert"],
    );
    let without_authority = endpoint(listeners().shown_by(Tls::builder()).build().unwrap());
    assert_error(
        &without_authority.connect(&address).await.unwrap_err(),
        ErrorKind::Invalid,
        &["no listener would be trusted", "--ca"],
    );
    let optional: Address = "tcp://127.0.0.1:7000?tls=on".parse().unwrap();
    assert_error(
        &without_authority.connect(&optional).await.unwrap_err(),
        ErrorKind::Invalid,
        &["write tls:// or towlines://"],
    );
}

#[test]
fn invalid_certificates_are_refused_at_once() {
    let wrong = |tls: TlsBuilder| tls.build().unwrap_err();
    let Certificate { chain, key } = listeners();
    assert_error(
        &wrong(Tls::builder().certificate("", key.clone())),
        ErrorKind::Invalid,
        &["certificate contains no certificate"],
    );
    assert_error(&wrong(Tls::builder().certificate(chain.clone(), "")), ErrorKind::Invalid, &["private key"]);
    let damaged = chain.replace("MI", "?!");
    assert_error(&wrong(Tls::builder().certificate(damaged, key)), ErrorKind::Invalid, &["certificate"]);
    let another = connectors().key;
    assert_error(&wrong(Tls::builder().certificate(chain, another)), ErrorKind::Invalid, &["cannot be used"]);
    assert_error(
        &wrong(Tls::builder().authority("absent")),
        ErrorKind::Invalid,
        &["authority contains no certificate"],
    );
    assert_error(&wrong(Tls::builder().server_name("no name")), ErrorKind::Invalid, &["no name"]);
}

#[test]
fn debug_output_contains_no_key() {
    let tls = listeners().shown_by(trusting(&ours()));
    let key = listeners().key;
    let line = key.lines().nth(1).unwrap();
    let text = format!("{tls:?} {:?}", tls_with(&listeners(), &ours()));
    assert!(!text.contains(line) && text.len() < 400, "{text}");
}

#[tokio::test]
async fn a_renewed_certificate_applies_to_later_connections() {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    let honest = endpoint(tls_with(&connectors(), &ours()));
    let (a, b) = acceptor.meet(&honest, acceptor.listener.address()).await;

    // Settings that accept any peer, and settings without a certificate.
    let weaker = [listeners().shown_by(Tls::builder()).build().unwrap(), trusting(&ours()).build().unwrap()];
    for weaker in weaker {
        let error = acceptor.endpoint.renew(None, Some(weaker)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    acceptor.assert_open().await;

    let others = Authority::new(9);
    let renewed = others.sign(&["127.0.0.1"], 4, Kind::Usual);
    acceptor.endpoint.renew(None, Some(tls_with(&renewed, &others))).unwrap();
    let error = in_time("a refusal", honest.connect(acceptor.listener.address())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    honest.renew(None, Some(tls_with(&others.sign(&["worker"], 5, Kind::Usual), &others))).unwrap();
    acceptor.meet(&honest, acceptor.listener.address()).await;
    // The earlier connection still works.
    let (there, received) = tokio::join!(a.deliver(Message::new("there")), b.recv());
    there.unwrap();
    assert_eq!(&received.unwrap().header()[..], b"there");
}

#[tokio::test]
async fn any_name_of_the_authority_is_accepted_where_it_is_asked_for() {
    let elsewhere = ours().sign(&["elsewhere"], 2, Kind::Usual);
    let acceptor = Acceptor::open(tls_with(&elsewhere, &ours())).await;
    let named = || connectors().shown_by(trusting(&ours()));
    let error = refused(&endpoint(named().build().unwrap()), acceptor.listener.address()).await;
    assert_error(&error, ErrorKind::Unauthenticated, &["is for another name", "any_name"]);
    let near = endpoint(named().any_name(true).build().unwrap());
    acceptor.meet(&near, acceptor.listener.address()).await;
    acceptor.meet(&near, &acceptor.address(Scheme::Tls, "localhost")).await;

    // Everything but the name is checked.
    for (theirs, says) in [
        (Authority::new(9).sign(&["127.0.0.1"], 2, Kind::Usual), "signed by no authority"),
        (towline_tests::certificates::self_signed(&["127.0.0.1"], 2), "signed by no authority"),
        (ours().sign(&["127.0.0.1"], 2, Kind::Expired), "has expired"),
        (ours().sign(&["127.0.0.1"], 2, Kind::Future), "not valid yet"),
    ] {
        let acceptor = Acceptor::open(tls_with(&theirs, &ours())).await;
        let error = refused(&near, acceptor.listener.address()).await;
        assert_error(&error, ErrorKind::Unauthenticated, &[says]);
    }
}

#[test]
fn any_name_excludes_a_name_and_is_never_renewed_into() {
    let error = trusting(&ours()).any_name(true).server_name("worker").build().unwrap_err();
    assert_error(&error, ErrorKind::Invalid, &["exclude each other"]);
    let any = || trusting(&ours()).any_name(true).build().unwrap();
    let strict = endpoint(trusting(&ours()).build().unwrap());
    assert_error(&strict.renew(None, Some(any())).unwrap_err(), ErrorKind::Invalid, &[]);
    endpoint(any()).renew(None, Some(trusting(&ours()).build().unwrap())).unwrap();
}
