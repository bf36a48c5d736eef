//! Requests of other peers to a worker: to fetch values, and to store them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use towline::{Connection, Incoming, Listener, Message};

use super::counts::add;
use super::driver::WorkerDriver;
use crate::background::{Background, within};
use crate::batch::{HELLO_TIMEOUT, Kind};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::peers::{encode_value, receive_value};
use crate::protocol::{DataReply, DataRequest};

/// Concurrent replies to one peer; the worker receives no further request while there are more.
const REPLIES_MAX: usize = 64;

/// Time limit for receiving a value, so that a stalled sender does not hold a reservation: 30 s, and one
/// second for each MB.
fn receive_timeout(bytes: u64) -> Duration {
    Duration::from_secs(30).saturating_add(Duration::from_secs(bytes / 1_000_000))
}

/// Serves all connections, until it is dropped or the listener ends.
pub(super) async fn accept(driver: &Arc<WorkerDriver>, listener: Listener) {
    let peers = Background::of(driver.endpoint());
    loop {
        match listener.accept().await {
            Ok(connection) => peers.spawn(serve(driver.clone(), connection)),
            Err(error) => return tracing::error!(%error, "the worker's listener ended"),
        }
    }
}

async fn serve(driver: Arc<WorkerDriver>, connection: Connection) {
    let replies = Background::of(driver.endpoint());
    let permits = Arc::new(Semaphore::new(REPLIES_MAX));
    let ended: Result<()> = async {
        loop {
            let incoming = connection.incoming().await?;
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok();
            let request = match postcard::from_bytes(incoming.header()) {
                Ok(request) => request,
                Err(error) => {
                    // Dropping it rejects it: its sender would then see only the rejection.
                    if incoming.payload_len() == 0 {
                        let _ = within(driver.endpoint(), HELLO_TIMEOUT, incoming.accept()).await;
                    }
                    Kind::Worker.send_kind(driver.endpoint(), &connection).await;
                    return Err(error.into());
                }
            };
            let replying = reply(driver.clone(), connection.clone(), incoming, request);
            replies.spawn(async move {
                replying.await;
                drop(permit);
            });
        }
    }
    .await;
    if let Err(error) = ended
        && !error.is_closed_by_peer()
    {
        tracing::debug!(peer = %connection.peer(), %error, "gone");
    }
}

/// Replies to one request. A lost connection needs no reply.
async fn reply(driver: Arc<WorkerDriver>, connection: Connection, incoming: Incoming, request: DataRequest) {
    let (reply, frames) = match request {
        DataRequest::Fetch { request, key } => match driver.value(key) {
            Some(value) => {
                add(&driver.counts().given_bytes, value.len());
                let (body, frames) = encode_value(&value);
                (DataReply::Found { request, value: body }, frames)
            }
            None => (DataReply::Missing { request }, Vec::new()),
        },
        DataRequest::Put { request, key, value } => {
            let stored = async {
                let bytes = incoming.payload_len().saturating_add(value.len());
                let permits = driver.reserve(key, bytes)?;
                let destination = receive_value(incoming, value, &connection);
                let received = within(driver.endpoint(), receive_timeout(bytes), destination).await;
                let late = || Error::new(ErrorKind::TimedOut, "the value did not arrive in time");
                let value = received.ok_or_else(late)??;
                drop(permits);
                driver.store(key, value);
                tracing::trace!(?key, bytes, peer = %connection.peer(), "given");
                Ok(())
            };
            let stored: Result<()> = stored.await;
            match stored {
                Ok(()) => (DataReply::Kept { request }, Vec::new()),
                Err(error) => {
                    (DataReply::Refused { request, failure: Failure::clone(error.failure()) }, Vec::new())
                }
            }
        }
    };
    let sent = async {
        let message = Message::from_parts(postcard::to_allocvec(&reply)?, frames);
        connection.send(message).await?;
        Ok(())
    };
    let sent: Result<()> = sent.await;
    if let Err(error) = sent {
        tracing::debug!(peer = %connection.peer(), %error, "a reply was not sent");
    }
}
