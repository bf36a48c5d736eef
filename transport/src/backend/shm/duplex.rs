//! Both rings of a link as one stream: writes go into our ring, reads come out of the peer's ring, directly
//! into memory that need not be initialised.

#![expect(
    unsafe_code,
    reason = "rings are laid over segments here, and fill memory that no Rust code initialised"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ring::{BYTES_AT, Ring, RingMemory};
use super::table::{LeaseTable, TABLE_LEN};
use crate::backend::streamed::{IoOutcome, StreamIo};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{BufferMut, PeerSegment, RawBytes, Segment};
use crate::wire::count::Count;

/// The shortest and the longest ring that a peer may have.
const RING_LENS: std::ops::RangeInclusive<usize> = 4096..=(64 << 20);
/// Long copies are published in parts, so that the other end copies the first part out while the next is
/// copied in.
const PART_LEN: usize = 32 << 10;

/// One end of both rings, and the doorbell that wakes the other end.
#[derive(Debug)]
pub(super) struct Duplex {
    ring: Ring,
    doorbell: Doorbell,
    /// The peer writes no more.
    pub(super) peer_gone: bool,
    /// Bytes copied into our ring and out of the peer's ring.
    pub(super) copied: Count,
    /// Times the doorbell was rung.
    pub(super) rings: u64,
}

/// The doorbell pipe that this end rings.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) write_end: OwnedFd,
    /// The end that the peer reads. Kept open so that ringing for a lost peer raises no SIGPIPE.
    pub(super) read_end: OwnedFd,
}

impl Doorbell {
    fn ring(&self) {
        // A full pipe has rung often enough, and a lost peer needs no doorbell.
        let _ = rustix::io::write(&self.write_end, &[1]);
    }
}

impl Duplex {
    /// See [`Ring::arm`]. Returns false if the peer is gone, since it rings no more.
    pub(super) fn arm(&mut self, for_room: bool) -> bool {
        self.release();
        !self.peer_gone && self.ring.arm(for_room)
    }

    /// Returns the number of readable bytes, or `None` if no more will arrive.
    fn readable(&mut self, wanted: usize) -> io::Result<Option<usize>> {
        let readable = self.ring.readable(wanted).map_err(io::Error::other)?;
        Ok(if readable == 0 && self.peer_gone { None } else { Some(readable) })
    }

    /// Fills `into`, which must not exceed what is readable.
    fn fill(&mut self, into: &mut [MaybeUninit<u8>]) {
        for part in into.chunks_mut(PART_LEN) {
            self.ring.copy_out(part);
            // A peer that waits for room has filled its ring, so it is told of the next fraction of it.
            if self.ring.unreleased() >= PART_LEN.min(self.ring.peer_len() / 8) {
                self.release();
            }
        }
        self.copied.add(into.len() as u64);
    }

    fn release(&mut self) {
        if self.ring.release() {
            self.ring_doorbell();
        }
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.ring_doorbell();
        }
    }

    fn ring_doorbell(&mut self) {
        self.rings += 1;
        self.doorbell.ring();
    }

    /// Reads into `then` after `total` bytes were read before, and returns the sum.
    fn read_more(&mut self, total: usize, then: &mut [u8]) -> io::Result<IoOutcome> {
        match self.read(then)? {
            IoOutcome::Bytes(len) if total + len > 0 => Ok(IoOutcome::Bytes(total + len)),
            _ if total > 0 => Ok(IoOutcome::Bytes(total)),
            other => Ok(other),
        }
    }
}

impl StreamIo for Duplex {
    fn write(&mut self, pieces: &[RawBytes<'_>]) -> io::Result<IoOutcome> {
        let (mut written, mut unpublished) = (0, 0);
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let part_len = rest.len().min(PART_LEN - unpublished);
                let room = self.ring.writable(part_len).map_err(io::Error::other)?;
                let (part, after) = rest.split_at(part_len.min(room));
                self.ring.copy_in(part);
                written += part.len();
                unpublished += part.len();
                if unpublished == PART_LEN || part.len() < part_len {
                    unpublished = 0;
                    self.publish();
                }
                if part.len() < part_len {
                    self.copied.add(written as u64);
                    return Ok(if written > 0 { IoOutcome::Bytes(written) } else { IoOutcome::WouldBlock });
                }
                rest = after;
            }
        }
        self.publish();
        self.copied.add(written as u64);
        Ok(IoOutcome::Bytes(written))
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<IoOutcome> {
        let Some(readable) = self.readable(bytes.len())? else { return Ok(IoOutcome::Bytes(0)) };
        let len = readable.min(bytes.len());
        if len == 0 {
            return Ok(IoOutcome::WouldBlock);
        }
        // SAFETY: initialised bytes are viewed as bytes that need not be; only initialised bytes are written
        // there (M4).
        let into = unsafe { &mut *(&raw mut bytes[..len] as *mut [MaybeUninit<u8>]) };
        self.fill(into);
        Ok(IoOutcome::Bytes(len))
    }

    fn read_into(
        &mut self,
        buffers: &mut [(&mut BufferMut, usize)],
        then: &mut [u8],
    ) -> io::Result<IoOutcome> {
        let mut total = 0;
        for (buffer, room) in buffers {
            // A buffer that the CPU cannot write to, or that is full, receives nothing and counts 0 bytes.
            let spare = buffer.spare_mut().unwrap_or_default();
            *room = (*room).min(spare.len());
            let Some(readable) = self.readable(*room)? else { break };
            let len = readable.min(*room);
            self.fill(&mut spare[..len]);
            let filled = buffer.len() + len;
            // SAFETY: M4: so many bytes of its spare capacity were just written.
            unsafe { buffer.set_len(filled) };
            total += len;
            if len < *room {
                return Ok(if total > 0 { IoOutcome::Bytes(total) } else { IoOutcome::WouldBlock });
            }
        }
        self.read_more(total, then)
    }

    fn read_region(&mut self, bytes: &mut [u8], then: &mut [u8]) -> io::Result<IoOutcome> {
        match self.read(bytes)? {
            IoOutcome::Bytes(len) if len > 0 && len == bytes.len() => self.read_more(len, then),
            other => Ok(other),
        }
    }
}

/// Returns the length of a segment with a ring of `ring_len` bytes, in whole pages.
pub(super) fn segment_len(ring_len: usize) -> usize {
    (BYTES_AT + ring_len + TABLE_LEN).next_multiple_of(rustix::param::page_size())
}

/// Lays the rings and lease tables over both segments: ours, with a ring of `our_len` bytes, and the peer's,
/// with a ring of the length that its hello claims. Returns our table and the peer's.
pub(super) fn map_rings(
    (ours, our_len): (Arc<Segment>, usize),
    (theirs, their_len): (OwnedFd, usize),
    doorbell: Doorbell,
) -> Result<(Duplex, (LeaseTable, LeaseTable))> {
    let corrupt = |why: String| Err(Error::new(ErrorKind::Corrupt, why));
    if !their_len.is_power_of_two() || !RING_LENS.contains(&their_len) {
        return corrupt(format!("the peer has a ring of {their_len} bytes"));
    }
    let theirs = Arc::new(PeerSegment::map(theirs, segment_len(their_len))?);
    if theirs.len() != segment_len(their_len) {
        return corrupt(format!("the peer's segment has {} bytes, too few for its ring", theirs.len()));
    }
    theirs.populate()?;
    let (our_base, their_base) = (ours.base(), theirs.base());
    let (our_bytes, their_bytes) = (part(our_base, BYTES_AT), part(their_base, BYTES_AT));
    let (our_table_at, their_table_at) =
        (part(our_bytes, our_len).cast(), part(their_bytes, their_len).cast());
    // SAFETY: M1: mapped writable while the segment is held, page-aligned, and as long as all three parts;
    // created for this link alone, whose ring is the only writer of that part (M9).
    let our_half = unsafe { RingMemory::new(ours.clone(), our_base.cast(), our_bytes.cast(), our_len) };
    // SAFETY: M1: mapped while the segment is held, page-aligned, and as long as all three parts, as was
    // checked; this process cannot write it (M9).
    let their_half =
        unsafe { RingMemory::new(theirs.clone(), their_base.cast(), their_bytes.cast(), their_len) };
    // SAFETY: M1: as for our half; the part after the ring, whose length is a multiple of 8, is written only
    // as atomics (M9).
    let our_table = unsafe { LeaseTable::new(ours, our_table_at) };
    // SAFETY: M1: as for their half; the part after the ring, whose length is a multiple of 8 (M9).
    let their_table = unsafe { LeaseTable::new(theirs, their_table_at) };
    let ring = Ring::new(our_half, their_half);
    Ok((
        Duplex { ring, doorbell, peer_gone: false, copied: Count::default(), rings: 0 },
        (our_table, their_table),
    ))
}

/// Returns the address `offset` bytes after `base`.
fn part(base: NonNull<u8>, offset: usize) -> NonNull<u8> {
    NonNull::new(base.as_ptr().wrapping_add(offset)).unwrap_or(base)
}
