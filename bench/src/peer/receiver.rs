//! Receives the messages of a connection into the requested place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towline::{Connection, Destination, Error, Message, Pool};

use crate::data::payload::MessageSpec;
use crate::data::place::{Place, Places};

/// Receives messages. Every frame that is not empty is then in one place.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    connection: Connection,
    place: Place,
    pool: Pool,
    /// True if messages arrive in that place without a destination.
    plain: bool,
    /// Payload bytes copied here, in addition to those that the connection counts.
    copied: Arc<AtomicU64>,
}

impl MessageReceiver {
    /// Creates the receiver of messages of `spec`. Bytes that it copies itself are added to `copied`.
    ///
    /// # Errors
    /// This machine does not have the place.
    pub(crate) fn new(
        connection: &Connection,
        spec: MessageSpec,
        copied: &Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let Places { from, to } = spec.places;
        // Handed-over memory stays where it is.
        let stays = matches!(connection.path().chosen(), "mem" | "shm");
        let comes_to = if stays { from } else { Place::Host };
        // A window is held while another message is received.
        let frame_len = spec.layout.size_bytes / spec.frames + spec.frames;
        let pool = to.pool((spec.layout.window + 2).saturating_mul(spec.frames), frame_len)?;
        let (connection, copied) = (connection.clone(), copied.clone());
        Ok(Self { connection, place: to, pool, plain: comes_to == to, copied })
    }

    /// Returns the next message.
    pub(crate) async fn next(&self) -> Result<Message, Error> {
        if self.plain {
            return self.bring(self.connection.recv().await?);
        }
        let incoming = self.connection.incoming().await?;
        let destinations = incoming.frames().iter().map(|_| Destination::Pool(self.pool.clone())).collect();
        incoming.accept_into(destinations).await.map_err(Error::from)
    }

    /// Copies frames that arrived in another place, such as those too small to be handed over.
    fn bring(&self, message: Message) -> Result<Message, Error> {
        let place = self.place.of_library();
        if message.frames().iter().all(|frame| frame.place() == place || frame.is_empty()) {
            return Ok(message);
        }
        let (header, mut frames) = message.into_parts();
        for frame in frames.iter_mut().filter(|frame| frame.place() != place && !frame.is_empty()) {
            let mut here = self.pool.take(frame.len())?;
            here.fill_from(frame)?;
            self.copied.fetch_add(frame.len() as u64, Ordering::Relaxed);
            *frame = here.freeze();
        }
        Ok(Message::from_parts(header, frames))
    }
}
