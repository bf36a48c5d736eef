//! Measurements between handshake messages: a connector sends bytes to measure its stream.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{HandshakeStream, answer, cut_off, encoded, parse_answer, wait_for_reply};
use crate::platform::environment::{Environment, within};
use crate::wire::handshake::HandshakeMessage;
use crate::{Error, ErrorKind, Result};

/// The size of the read buffer, in bytes.
const SCRATCH_LEN: usize = 64 << 10;

/// A message of the connector while both ends have opened a backend.
#[derive(Debug)]
pub(crate) enum ConnectorReply {
    /// This many bytes follow, to be read by [`receive_measurement`].
    Measure(usize),
    /// Its decision: ready, or why not.
    Answer(Result<(), String>),
}

/// Sends bytes on the stream, and waits until the acceptor has received them.
///
/// `deadline` is a time of `env`'s clock, not a duration. After an error the stream must be dropped.
pub(crate) async fn measure<S: HandshakeStream>(
    stream: &mut S,
    bytes: &[u8],
    deadline: Duration,
    env: &dyn Environment,
) -> Result<()> {
    let head = encoded(&HandshakeMessage::Measure { len: bytes.len() })?;
    let sending = async {
        stream.write_all(&head).await?;
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    within(env, deadline, sending).await.ok_or_else(measure_timed_out)??;
    let answered =
        wait_for_reply(stream, "more", |message| parse_answer(message, false), deadline, env).await?;
    answered
        .map_err(|reason| Error::new(ErrorKind::Corrupt, format!("a measurement is not ready: {reason}")))?;
    Ok(())
}

/// Waits for the connector's decision on `backend`, or for one of at most `measurements_left` measurements.
pub(crate) async fn receive_measure_or_answer<S: HandshakeStream>(
    stream: &mut S,
    backend: &str,
    measurements_left: usize,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<ConnectorReply> {
    let take = |message| match message {
        HandshakeMessage::Measure { len } if measurements_left > 0 => Ok(ConnectorReply::Measure(len)),
        other => Ok(ConnectorReply::Answer(parse_answer(other, false)?.map(drop))),
    };
    wait_for_reply(stream, backend, take, deadline, env).await
}

/// Reads `len` bytes of a measurement and answers `Ready`.
pub(crate) async fn receive_measurement<S: HandshakeStream>(
    stream: &mut S,
    len: usize,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<()> {
    let taking = async {
        let (mut scratch, mut left) = (vec![0; len.min(SCRATCH_LEN)], len);
        while left > 0 {
            let room = left.min(SCRATCH_LEN);
            match stream.read(&mut scratch[..room]).await? {
                0 => return Err(cut_off().deliver(stream, env).await),
                read => left -= read,
            }
        }
        answer(stream, Ok(())).await
    };
    within(env, deadline, taking).await.ok_or_else(measure_timed_out)?
}

fn measure_timed_out() -> Error {
    Error::new(ErrorKind::TimedOut, "the bytes of a measurement were not transferred in time")
}
