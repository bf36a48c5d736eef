//! Where the receiver puts the frames of a message.

use crate::memory::{BufferMut, Place, Pool};

/// Where one frame shall land.
#[derive(Debug)]
#[non_exhaustive]
pub enum Destination {
    /// From the start of this buffer, whose capacity must hold it.
    Buffer(BufferMut),
    /// In memory of this pool.
    Pool(Pool),
    /// In memory of the endpoint's pool of this place.
    Place(Place),
    /// Nowhere: the frame is not wanted, and an empty buffer stands in its stead.
    Discard,
}
