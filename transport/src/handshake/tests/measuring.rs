//! Measurements between handshake messages.

use super::*;
use crate::wire::handshake::MEASURE_LEN_MAX;

/// More than the pipe and the read buffer hold.
const LEN: usize = 200_000;

async fn asked_in_time<S: HandshakeStream>(
    stream: &mut S,
    measurements_left: usize,
) -> Result<ConnectorReply> {
    receive_measure_or_answer(stream, "ucx", measurements_left, LATER, &TestEnvironment::new()).await
}

#[tokio::test]
async fn a_measurement_reads_exactly_its_bytes() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    let connector = async {
        measure(&mut near, &vec![7; LEN], LATER, &environment).await.unwrap();
        answer(&mut near, Err("tcp is as fast")).await.unwrap();
    };
    let acceptor = async {
        let ConnectorReply::Measure(len) = asked_in_time(&mut far, 1).await.unwrap() else { panic!() };
        assert_eq!(len, LEN);
        receive_measurement(&mut far, len, LATER, &environment).await.unwrap();
        let ConnectorReply::Answer(said) = asked_in_time(&mut far, 0).await.unwrap() else { panic!() };
        said.unwrap_err()
    };
    assert_eq!(tokio::join!(connector, acceptor).1, "tcp is as fast");
}

#[tokio::test]
async fn one_measurement_too_many_is_corrupt_at_both_ends() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    let acceptor = async { asked_in_time(&mut far, 0).await.unwrap_err() };
    let connector = async { measure(&mut near, &[7; 8], LATER, &environment).await.unwrap_err() };
    let (here, there) = tokio::join!(acceptor, connector);
    assert_eq!(here.to_string(), "corrupt: Measure arrived where Ready or NotReady was expected");
    assert_eq!(there.kind(), ErrorKind::Corrupt, "{there}");
}

#[tokio::test]
async fn a_measurement_too_long_is_refused_before_its_bytes_are_read() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    let error = measure(&mut near, &vec![7; MEASURE_LEN_MAX + 1], LATER, &environment).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let mut long = encoded(&HandshakeMessage::Measure { len: MEASURE_LEN_MAX }).unwrap();
    long[HEAD_LEN..].copy_from_slice(&u32::MAX.to_le_bytes());
    send(&mut near, &long).await.unwrap();
    assert_eq!(asked_in_time(&mut far, 1).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_measurement_without_bytes_ends_with_the_stream_or_the_deadline() {
    let environment = TestEnvironment::new();
    let (mut near, mut far) = greeted().await;
    near.write_all(&[7; 100]).await.unwrap();
    let by = environment.now() + Duration::from_millis(20);
    assert_eq!(
        receive_measurement(&mut far, LEN, by, &environment).await.unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    drop(near);
    assert_eq!(
        receive_measurement(&mut far, LEN, LATER, &environment).await.unwrap_err().kind(),
        ErrorKind::PeerLost
    );
}
