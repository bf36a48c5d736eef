//! The one place where a peer's word makes a buffer of its memory.

#![expect(unsafe_code, reason = "the peer is trusted to leave alone what it lent")]

use std::sync::Arc;

use super::segments::ImportedSegment;
use crate::error::Result;
use crate::memory::arena::borrowed::{OpaqueHandle, borrowed};
use crate::memory::{Buffer, Place};

/// What a trusted peer lent in a segment that it showed, so many bytes from an offset on, until `lease` is dropped.
pub(super) fn borrow(
    imported: &Arc<ImportedSegment>,
    range: (usize, usize),
    place: Place,
    lease: OpaqueHandle,
) -> Result<Buffer> {
    let segment = imported.segment().clone();
    // SAFETY: M11: only a lender has segments, and only links between peers that trust each other have a lender: whoever's memory
    // it is holds it while the pipes of the showing, which goes along, have a writer, or the lease is out.
    unsafe { borrowed(segment, range, place, lease, imported.clone()) }
}
