//! Borrowed memory: part of a peer's segment, as a buffer that holds the lease.

#![expect(unsafe_code, reason = "a block of a peer's segment is an allocation")]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::part;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::segment::PeerSegment;
use crate::memory::{Access, Allocation, Buffer, Place};

/// A value of the lender or borrower that the arena only keeps alive.
pub(crate) type OpaqueHandle = Arc<dyn Any + Send + Sync>;

/// A block that a peer lent: part of a segment that the peer exported.
pub(crate) struct BorrowedMemory {
    segment: Arc<PeerSegment>,
    offset: usize,
    len: usize,
    place: Place,
    access: Access,
    lease: OpaqueHandle,
    origin: OpaqueHandle,
}

impl BorrowedMemory {
    /// Returns the lease: dropping its last handle returns the block to the peer.
    pub(crate) fn lease(&self) -> &OpaqueHandle {
        &self.lease
    }

    /// Returns the value that identifies the segment's exporter. All borrowed blocks of the segment share it.
    pub(crate) fn origin(&self) -> &OpaqueHandle {
        &self.origin
    }
}

/// Returns `len` bytes of a peer's segment as a read-only buffer in `place`, of `access`. Its last handle drops `origin`
/// and its share of the lease.
///
/// # Errors
///
/// `Corrupt` if the range is not within the segment. Both values are dropped then.
///
/// # Safety
///
/// The peer is trusted to have written all of the range and, unless `access` is `Foreign`, to write none of it
/// until the lease has been dropped (M11).
pub(crate) unsafe fn borrowed(
    segment: Arc<PeerSegment>,
    (offset, len): (usize, usize),
    (place, access): (Place, Access),
    lease: OpaqueHandle,
    origin: OpaqueHandle,
) -> Result<Buffer> {
    if offset.checked_add(len).is_none_or(|end| end > segment.len()) {
        let detail = format!("{len} bytes from {offset} on of a segment of {} were lent", segment.len());
        return Err(Error::new(ErrorKind::Corrupt, detail));
    }
    let memory = BorrowedMemory { segment, offset, len, place, access, lease, origin };
    // SAFETY: the caller promises that the peer wrote the range before it lent it (M4). It is not writable,
    // so no `BufferMut` of it exists.
    Ok(unsafe { Buffer::from_allocation(Arc::new(memory)) })
}

/// Returns the block that a buffer's bytes belong to and the offset of the first one in its segment, if a
/// peer lent it.
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

// SAFETY: the segment stays mapped while this value holds it (M1, M8). The caller of `borrowed` promised that
// the peer writes nothing of the range before the lease is dropped (M2, M11), or that it is foreign (M5). It is
// not writable here.
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
        self.access
    }

    fn writable(&self) -> bool {
        false
    }
}
