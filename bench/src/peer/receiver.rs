//! Takes the messages of a connection so that their frames lie where they are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towline::{Connection, Destination, Error, Message, Pool};

use crate::data::payload::MessageSpec;
use crate::data::place::{Place, Places};

/// What takes messages. Every frame of theirs that is not empty lies in one place then.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    connection: Connection,
    place: Place,
    pool: Pool,
    /// Messages come there by themselves.
    plain: bool,
    /// Payload bytes that were copied here, beside what the connection counts.
    copied: Arc<AtomicU64>,
}

impl MessageReceiver {
    /// For messages of `spec`. What it copies itself is added to `copied`.
    ///
    /// # Errors
    /// The place cannot be had here.
    pub(crate) fn new(
        connection: &Connection,
        spec: MessageSpec,
        copied: &Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let Places { from, to } = spec.places;
        // Memory that changes hands stays where it is.
        let stays = matches!(connection.path().chosen(), "mem" | "shm");
        let comes_to = if stays { from } else { Place::Host };
        // A window is held, and another message lands.
        let frame_len = spec.layout.size_bytes / spec.frames + spec.frames;
        let pool = to.pool((spec.layout.window + 2).saturating_mul(spec.frames), frame_len)?;
        let (connection, copied) = (connection.clone(), copied.clone());
        Ok(Self { connection, place: to, pool, plain: comes_to == to, copied })
    }

    /// The next message.
    pub(crate) async fn next(&self) -> Result<Message, Error> {
        if self.plain {
            return self.bring(self.connection.recv().await?);
        }
        let incoming = self.connection.incoming().await?;
        let destinations = incoming.frames().iter().map(|_| Destination::Pool(self.pool.clone())).collect();
        incoming.accept_into(destinations).await.map_err(Error::from)
    }

    /// Copies what came elsewhere, such as a frame so small that it travels where others are handed over.
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
