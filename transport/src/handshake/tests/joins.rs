//! Additional streams join the connection that waits for them, and no other.

use super::*;

const SECRET: [u8; 32] = [3; 32];
const STREAMS: u8 = 4;

fn key() -> JoinKey {
    JoinKey::new(SECRET, STREAMS, false)
}

/// The result of one attempt at both ends.
async fn attempt(joins: &Joins, word: Join) -> Result<()> {
    let environment = TestEnvironment::new();
    let (mut near, far) = duplex(1024);
    let later = environment.now() + Duration::from_secs(5);
    let (connector, acceptor) =
        tokio::join!(join(&mut near, word, later, &environment), joins.join(&word, far.into(), &environment));
    match (&connector, &acceptor) {
        (Ok(()), Ok(())) => {}
        (Err(told), Err(found)) => assert_eq!(told.kind(), found.kind(), "{told}, {found}"),
        other => panic!("the ends disagree: {other:?}"),
    }
    acceptor
}

#[tokio::test]
async fn streams_join_in_any_order() {
    let (joins, environment) = (Joins::default(), TestEnvironment::new());
    let expected = joins.expect(key());
    let joining = async {
        for stream in [3, 1, 2] {
            attempt(&joins, key().join(stream, None)).await.unwrap();
        }
    };
    let later = environment.now() + Duration::from_secs(5);
    let (joined, ()) = tokio::join!(expected.all(later, &environment), joining);
    assert_eq!(joined.unwrap().len(), 3);
    let late = attempt(&joins, key().join(1, None)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unavailable, "{late}");
}

#[tokio::test]
async fn a_wrong_join_is_refused_without_side_effects() {
    let (joins, environment) = (Joins::default(), TestEnvironment::new());
    let expected = joins.expect(key());
    let right = key().join(1, None);
    let of_others =
        Join { connection: right.connection, ..JoinKey::new([4; 32], STREAMS, false).join(1, None) };
    let of_another_count = JoinKey::new(SECRET, STREAMS - 1, false).join(1, None);
    for (wrong, kind) in [
        (of_others, ErrorKind::Unauthenticated),
        (of_another_count, ErrorKind::Unauthenticated),
        (Join { stream: 2, ..right }, ErrorKind::Unauthenticated),
        (key().join(0, None), ErrorKind::Unauthenticated),
        (key().join(STREAMS, None), ErrorKind::Unauthenticated),
        (key().join(255, None), ErrorKind::Unauthenticated),
        (JoinKey::new([4; 32], STREAMS, false).join(1, None), ErrorKind::Unavailable),
    ] {
        let error = attempt(&joins, wrong).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{wrong:?}: {error}");
    }
    attempt(&joins, right).await.unwrap();
    let twice = attempt(&joins, right).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Corrupt, "{twice}");
    for stream in [2, 3] {
        attempt(&joins, key().join(stream, None)).await.unwrap();
    }
    let later = environment.now() + Duration::from_secs(5);
    assert_eq!(expected.all(later, &environment).await.unwrap().len(), 3);
}

#[tokio::test]
async fn waiting_for_joins_is_bounded() {
    let (joins, environment) = (Joins::default(), TestEnvironment::new());
    let expected = joins.expect(key());
    attempt(&joins, key().join(2, None)).await.unwrap();
    let soon = environment.now() + Duration::from_millis(20);
    let error = expected.all(soon, &environment).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.detail().contains("1 of 3"), "{error}");
}

#[tokio::test]
async fn a_plain_stream_cannot_join_a_tls_connection() {
    let joins = Joins::default();
    let key = JoinKey::new(SECRET, STREAMS, true);
    let _expected = joins.expect(key.clone());
    let error = attempt(&joins, key.join(1, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.detail().contains("all streams of a connection are encrypted"), "{error}");
}

#[test]
fn a_join_proof_is_invalid_in_another_tls_session() {
    let key = JoinKey::new(SECRET, STREAMS, true);
    let (this, other) = ([1; 32], [2; 32]);
    let join = key.join(1, Some(&this));
    key.verify(&join, Some(&this)).unwrap();
    for session in [Some(&other), None] {
        let error = key.verify(&join, session).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
    let plain = key.join(1, None);
    assert!(key.verify(&plain, Some(&this)).is_err(), "it lacks the session");
    assert!(self::key().verify(&join, Some(&this)).is_err(), "its connection is not encrypted");
}
