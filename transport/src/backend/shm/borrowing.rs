//! The one place where a peer's message creates a buffer of the peer's memory.

#![expect(unsafe_code, reason = "the peer is trusted to leave alone what it lent")]

use std::sync::Arc;

use super::segments::ImportedSegment;
use crate::error::Result;
use crate::memory::arena::borrowed::{OpaqueHandle, borrowed};
use crate::memory::{Access, Buffer, Place};

/// Returns a buffer of what a trusted peer lent, a range of a segment that it exported, until `lease` is
/// dropped.
pub(super) fn borrow(
    imported: &Arc<ImportedSegment>,
    range: (usize, usize),
    kind: (Place, Access),
    lease: OpaqueHandle,
) -> Result<Buffer> {
    let segment = imported.segment().clone();
    // SAFETY: M11: only a lender has segments, and only links between peers that trust each other have a
    // lender. The memory's owner holds it while the pipes that came with the segment have a writer, which
    // `imported` keeps, or the lease is out.
    unsafe { borrowed(segment, range, kind, lease, imported.clone()) }
}
