//! What others ask a worker for: values that it has, and to keep values that it is given.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use towline::{Connection, Incoming, Listener, Message};

use super::counting::add;
use super::shell::Shell;
use crate::background::{Background, within};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::peers::{land, pack};
use crate::protocol::{Answer, Ask};

/// Answers to one peer that are under way at the same time; it is not heard while there are more.
const ANSWERS_MAX: usize = 64;

/// How long a value may take to come, so that nobody keeps room for what never does: 30 s, and a second for each MB.
fn time_to_take(bytes: u64) -> Duration {
    Duration::from_secs(30).saturating_add(Duration::from_secs(bytes / 1_000_000))
}

/// Serves whoever connects, until it is dropped or the listener ends.
pub(super) async fn accept(shell: &Arc<Shell>, listener: Listener) {
    let peers = Background::of(shell.endpoint());
    loop {
        match listener.accept().await {
            Ok(connection) => peers.spawn(serve(shell.clone(), connection)),
            Err(error) => return tracing::error!(%error, "the worker's listener ended"),
        }
    }
}

async fn serve(shell: Arc<Shell>, connection: Connection) {
    let answers = Background::of(shell.endpoint());
    let room = Arc::new(Semaphore::new(ANSWERS_MAX));
    let ended: Result<()> = async {
        loop {
            let incoming = connection.incoming().await?;
            // It is never closed.
            let place = room.clone().acquire_owned().await.ok();
            let ask = postcard::from_bytes(incoming.header())?;
            let answering = answer(shell.clone(), connection.clone(), incoming, ask);
            answers.spawn(async move {
                answering.await;
                drop(place);
            });
        }
    }
    .await;
    if let Err(error) = ended
        && !error.is_farewell()
    {
        tracing::debug!(peer = %connection.peer(), %error, "gone");
    }
}

/// Answers one question. A peer that is gone before it was answered needs no answer.
async fn answer(shell: Arc<Shell>, connection: Connection, incoming: Incoming, ask: Ask) {
    let (answer, frames) = match ask {
        Ask::Fetch { request, key } => match shell.value(key) {
            Some(value) => {
                add(&shell.counts().given_bytes, value.len());
                let (body, frames) = pack(&value);
                (Answer::Found { request, value: body }, frames)
            }
            None => (Answer::Missing { request }, Vec::new()),
        },
        Ask::Put { request, key, value } => {
            let kept = async {
                let bytes = incoming.payload_len().saturating_add(value.len());
                let room = shell.expect(key, bytes)?;
                let destination = land(incoming, value, &connection);
                let landed = within(shell.endpoint(), time_to_take(bytes), destination).await;
                let late = || Error::new(ErrorKind::TimedOut, "the value did not come in time");
                let value = landed.ok_or_else(late)??;
                drop(room);
                shell.given(key, value);
                tracing::trace!(?key, bytes, peer = %connection.peer(), "given");
                Ok(())
            };
            let kept: Result<()> = kept.await;
            match kept {
                Ok(()) => (Answer::Kept { request }, Vec::new()),
                Err(error) => {
                    (Answer::Refused { request, failure: Failure::clone(error.failure()) }, Vec::new())
                }
            }
        }
    };
    let sent = async {
        let message = Message::from_parts(postcard::to_allocvec(&answer)?, frames);
        connection.send(message).await?;
        Ok(())
    };
    let sent: Result<()> = sent.await;
    if let Err(error) = sent {
        tracing::debug!(peer = %connection.peer(), %error, "an answer did not leave");
    }
}
