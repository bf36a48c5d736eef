//! Further streams join the connection that waits for them, and nobody else's.

use super::*;

const SECRET: [u8; 32] = [3; 32];
const STREAMS: u8 = 4;

fn key() -> JoinKey {
    JoinKey::new(SECRET, STREAMS)
}

/// Both ends' view of one attempt.
async fn attempt(joins: &Joins, word: Join) -> Result<()> {
    let world = World::new();
    let (mut near, far) = duplex(1024);
    let later = world.now() + Duration::from_secs(5);
    let (connector, acceptor) =
        tokio::join!(join(&mut near, word, later, &world), joins.join(&word, far.into(), &world));
    match (&connector, &acceptor) {
        (Ok(()), Ok(())) => {}
        (Err(told), Err(found)) => assert_eq!(told.kind(), found.kind(), "{told}, {found}"),
        other => panic!("the ends disagree: {other:?}"),
    }
    acceptor
}

#[tokio::test]
async fn streams_join_in_any_order() {
    let (joins, world) = (Joins::default(), World::new());
    let expected = joins.expect(SECRET, STREAMS).unwrap();
    let joining = async {
        for stream in [3, 1, 2] {
            attempt(&joins, key().join(stream)).await.unwrap();
        }
    };
    let later = world.now() + Duration::from_secs(5);
    let (joined, ()) = tokio::join!(expected.all(later, &world), joining);
    assert_eq!(joined.unwrap().len(), 3);
    let late = attempt(&joins, key().join(1)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Refused, "{late}");
}

#[tokio::test]
async fn a_wrong_join_is_refused_and_hurts_nobody() {
    let (joins, world) = (Joins::default(), World::new());
    let expected = joins.expect(SECRET, STREAMS).unwrap();
    let right = key().join(1);
    let of_others = Join { connection: right.connection, ..JoinKey::new([4; 32], STREAMS).join(1) };
    let of_another_count = JoinKey::new(SECRET, STREAMS - 1).join(1);
    for (wrong, kind) in [
        (of_others, ErrorKind::Unauthenticated),
        (of_another_count, ErrorKind::Unauthenticated),
        (Join { stream: 2, ..right }, ErrorKind::Unauthenticated),
        (key().join(0), ErrorKind::Unauthenticated),
        (key().join(STREAMS), ErrorKind::Unauthenticated),
        (key().join(255), ErrorKind::Unauthenticated),
        (JoinKey::new([4; 32], STREAMS).join(1), ErrorKind::Refused),
    ] {
        let error = attempt(&joins, wrong).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{wrong:?}: {error}");
    }
    attempt(&joins, right).await.unwrap();
    let twice = attempt(&joins, right).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Refused, "{twice}");
    for stream in [2, 3] {
        attempt(&joins, key().join(stream)).await.unwrap();
    }
    let later = world.now() + Duration::from_secs(5);
    assert_eq!(expected.all(later, &world).await.unwrap().len(), 3);
}

#[tokio::test]
async fn who_waits_is_bounded_in_time_and_number() {
    let (joins, world) = (Joins::default(), World::new());
    let expected = joins.expect(SECRET, STREAMS).unwrap();
    attempt(&joins, key().join(2)).await.unwrap();
    let soon = world.now() + Duration::from_millis(20);
    let error = expected.all(soon, &world).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.detail().contains("1 of 3"), "{error}");

    let secret = |number: u8| [number; 32];
    let mut waiting: Vec<_> = (0..128).map(|number| joins.expect(secret(number), 2).unwrap()).collect();
    assert!(joins.expect(secret(128), 2).is_err());
    waiting.pop();
    assert!(joins.expect(secret(128), 2).is_ok());
}
