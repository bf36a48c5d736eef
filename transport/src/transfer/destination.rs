//! The destinations of a message's frames at the receiver.

use crate::memory::{BufferMut, Place, Pool};

/// The destination of one frame, for [`Incoming::accept_into`](crate::Incoming::accept_into).
///
/// ```
/// use towline::{Destination, FrameInfo, Place, Pool};
///
/// // Large frames go to a pool of the application's, others to the endpoint's pool of their place.
/// fn destination(frame: &FrameInfo, large: &Pool) -> Destination {
///     match frame.len {
///         0 => Destination::Discard,
///         len if len >= 1 << 20 => Destination::Pool(large.clone()),
///         _ => Destination::Place(Place::Host),
///     }
/// }
///
/// let pool = Pool::new(64 << 20);
/// let frame = FrameInfo { len: 2 << 20, place: Place::Host };
/// assert!(matches!(destination(&frame, &pool), Destination::Pool(_)));
/// ```
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
