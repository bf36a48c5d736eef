//! A message whose header has arrived and whose payload has no destination yet: the receiver chooses one.
//!
//! The invariant: every message that leaves the connection is acknowledged to its sender, as delivered or
//! rejected, exactly once.

use std::fmt;

use bytes::Bytes;

use crate::api::connection::Connection;
use crate::backend::{Delivery, FrameInfo};
use crate::error::{Error, Failed, Result};
use crate::progress::pending_receive::PendingReceive;
use crate::transfer::destination::Destination;
use crate::transfer::message::Message;

/// An announced message: its header and frame table have arrived. Accept it, reject it, or drop it, which
/// rejects it. The connection stays open.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use towline::{Arena, Buffer, ErrorKind, Destination, Message, Place};
/// # use towline::Endpoint;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let arena = Arena::new(1 << 20)?;
/// let tensor = Buffer::from(vec![1; 4096]);
/// let receipt = near.send(Message::new("tensor").with_frame(tensor)).await?;
///
/// // The header and the lengths decide where the payload goes.
/// let incoming = far.incoming().await?;
/// assert_eq!((incoming.header().as_ref(), incoming.frames()[0].len), (&b"tensor"[..], 4096));
/// let mut destinations = Vec::new();
/// for frame in incoming.frames() {
///     destinations.push(Destination::Buffer(arena.take(frame.len)?));
/// }
/// let message = incoming.accept_into(destinations).await?;
/// assert_eq!(message.frames()[0].place(), Place::Arena);
/// receipt.delivered().await?;
///
/// // Reject the next one. Its sender gets `Rejected`.
/// let receipt = near.send(Message::new("another")).await?;
/// far.incoming().await?.reject();
/// assert_eq!(receipt.delivered().await.unwrap_err().kind(), ErrorKind::Rejected);
/// # Ok(())
/// # }
/// ```
pub struct Incoming {
    connection: Connection,
    /// `None` once it is acknowledged, or about to be.
    pending: Option<PendingReceive>,
}

impl Incoming {
    pub(crate) async fn next(connection: &Connection) -> Result<Self> {
        let core = connection.core();
        let mut begun = core.begun().await.map_err(|error| core.placed(error, "recv"))?;
        core.check_not_prefetching().map_err(|error| core.placed(error, "recv"))?;
        core.expect(false);
        let pending = match begun.take() {
            Some(pending) => pending,
            None => PendingReceive::next(core).await?,
        };
        Ok(Self { connection: connection.clone(), pending: Some(pending) })
    }

    /// Returns the header.
    pub fn header(&self) -> &Bytes {
        &self.pending().header
    }

    /// Returns the frame table: each frame's length, and its place at the sender.
    pub fn frames(&self) -> &[FrameInfo] {
        &self.pending().frames
    }

    /// Returns the length of all frames together, in bytes.
    pub fn payload_len(&self) -> u64 {
        self.pending().payload_len()
    }

    /// Receives the payload into host memory: the link's own where the payload has arrived already, else the
    /// endpoint's pool.
    ///
    /// # Errors
    /// `PeerLost` or `Closed` if the connection ends before the payload has arrived.
    pub async fn accept(mut self) -> Result<Message> {
        let core = self.connection.core().clone();
        core.check().map_err(|error| core.placed(error, "accept"))?;
        let pending = self.pending.as_mut().expect("it is not acknowledged yet");
        // If this fails, dropping the message rejects it.
        pending.land_in_pool(&core).map_err(|error| core.placed(error, "accept"))?;
        let mut pending = self.pending.take().expect("it is acknowledged once");
        pending.landed(&core).await.map_err(Error::from)
    }

    /// Receives each frame into its destination. The frames of the returned message are that memory, filled.
    ///
    /// # Errors
    /// `Invalid` for a wrong number of destinations or one that is too small, and `Unsupported` for a place
    /// without a pool: the message is then rejected. `PeerLost` or `Closed`. The buffers are returned.
    pub async fn accept_into(
        mut self,
        destinations: Vec<Destination>,
    ) -> Result<Message, Failed<Vec<Destination>>> {
        let core = self.connection.core().clone();
        if let Err(error) = core.check() {
            return Err(Failed { error: core.placed(error, "accept"), returned: destinations });
        }
        let buffers = match self.pending().buffers(&core, destinations) {
            Ok(buffers) => buffers,
            Err(failed) => return Err(core.failed(failed, "accept")),
        };
        let mut pending = self.pending.take().expect("it is acknowledged once");
        let result = pending.land(&core, buffers).await;
        result.map_err(|failed| Failed {
            error: failed.error,
            returned: failed
                .returned
                .into_iter()
                .map(|b| b.map_or(Destination::Discard, Destination::Buffer))
                .collect(),
        })
    }

    /// Rejects the message: the sender gets `Rejected`.
    pub fn reject(self) {}

    fn pending(&self) -> &PendingReceive {
        self.pending.as_ref().expect("it is not acknowledged yet")
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.ack(self.connection.core(), Delivery::Rejected);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Incoming");
        if let Some(pending) = &self.pending {
            debug.field("id", &pending.id).field("frames", &pending.frames.len());
        }
        debug.finish_non_exhaustive()
    }
}
