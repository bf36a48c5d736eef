//! What a peer lent: a part of a segment of its, as a buffer that holds the lease.

#![expect(unsafe_code, reason = "a block of a peer's segment is an allocation")]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::part;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::segment::PeerSegment;
use crate::memory::{Access, Allocation, Buffer, Place};

/// What whoever made a loan knows of it, and nobody else has to.
pub(crate) type LeaseHandle = Arc<dyn Any + Send + Sync>;

/// A block that a peer lent: part of a segment that it showed.
pub(crate) struct BorrowedMemory {
    segment: Arc<PeerSegment>,
    offset: usize,
    len: usize,
    place: Place,
    lease: LeaseHandle,
    origin: LeaseHandle,
}

impl BorrowedMemory {
    /// Whatever tells the peer, when the last handle of it drops, that the block is free again.
    pub(crate) fn lease(&self) -> &LeaseHandle {
        &self.lease
    }

    /// Where the segment came from, and what everybody who reads of it keeps.
    pub(crate) fn origin(&self) -> &LeaseHandle {
        &self.origin
    }
}

/// `len` bytes of a peer's segment as a buffer in `place` that nobody here can write. Its last handle drops `origin`, and its share of the
/// lease.
///
/// # Errors
///
/// `Corrupt`, with both dropped, where the range is not within the segment.
///
/// # Safety
///
/// The peer is trusted to have written all of the range, and to write none of it until the lease has been dropped (M11).
pub(crate) unsafe fn borrowed(
    segment: Arc<PeerSegment>,
    (offset, len): (usize, usize),
    place: Place,
    lease: LeaseHandle,
    origin: LeaseHandle,
) -> Result<Buffer> {
    if offset.checked_add(len).is_none_or(|end| end > segment.len()) {
        let detail = format!("{len} bytes from {offset} on of a segment of {} were lent", segment.len());
        return Err(Error::new(ErrorKind::Corrupt, detail));
    }
    let memory = BorrowedMemory { segment, offset, len, place, lease, origin };
    // SAFETY: written before it was lent, by the caller's promise (M4), and of what is not writable no `BufferMut` exists.
    Ok(unsafe { Buffer::from_allocation(Arc::new(memory)) })
}

/// The block that a buffer's bytes lie in, if a peer lent it, and where in its segment the first of them does.
pub(crate) fn borrowed_from(buffer: &Buffer) -> Option<(&BorrowedMemory, usize)> {
    let memory: &dyn Any = buffer.allocation()?;
    let memory = memory.downcast_ref::<BorrowedMemory>()?;
    Some((memory, buffer.as_ptr().addr() - memory.segment.base().addr().get()))
}

impl fmt::Debug for BorrowedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BorrowedMemory")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

// SAFETY: the segment stays mapped while this holds it (M1, M8), and nobody writes the range before the lease is dropped,
// which `borrowed` was promised (M2, M11): not writable here.
unsafe impl Allocation for BorrowedMemory {
    fn base(&self) -> NonNull<u8> {
        part(self.segment.base(), self.offset)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        self.place
    }

    fn access(&self) -> Access {
        Access::Owned
    }

    fn writable(&self) -> bool {
        false
    }
}
