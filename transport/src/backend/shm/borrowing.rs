//! The one place where a peer's word makes a buffer of its memory.

#![expect(unsafe_code, reason = "the peer is trusted to leave alone what it lent")]

use std::any::Any;
use std::sync::Arc;

use crate::error::Result;
use crate::memory::arena::borrowed::borrowed;
use crate::memory::{Buffer, PeerSegment};

/// What a trusted peer lent, until `lease` is dropped.
pub(super) fn borrow(
    segment: Arc<PeerSegment>,
    offset: usize,
    len: usize,
    lease: Box<dyn Any + Send + Sync>,
) -> Result<Buffer> {
    // SAFETY: M11: only a lender has segments, and only links between peers that trust each other have a lender: the peer's own
    // M2 and M11 keep it from writing what it lent.
    unsafe { borrowed(segment, offset, len, lease) }
}
