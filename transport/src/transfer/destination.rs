//! The destinations of a message's frames at the receiver.

use crate::memory::{BufferMut, Place, Pool};

/// The destination of one frame. See [`Incoming::accept_into`](crate::Incoming::accept_into).
#[derive(Debug)]
#[non_exhaustive]
pub enum Destination {
    /// This buffer, from its start. Its capacity must hold the frame.
    Buffer(BufferMut),
    /// Memory of this pool.
    Pool(Pool),
    /// Memory of the endpoint's pool of this place.
    Place(Place),
    /// None: the frame is discarded, and an empty buffer replaces it.
    Discard,
}
