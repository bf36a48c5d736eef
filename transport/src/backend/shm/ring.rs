//! The ring: moves bytes from one process to another without locks or system calls.
//!
//! Each end has a segment that only it writes: a [`RingHeader`], and from [`BYTES_AT`] on the ring of the
//! bytes that it sends. So each word has one writer, and a peer can corrupt only its own segment. Words read
//! from there are validated, and bytes are copied out before use (M9). The counters count bytes from the
//! start; a byte's offset is its position modulo the ring's length.

#![expect(unsafe_code, reason = "memory shared with another process is reached through raw addresses")]

#[cfg(test)]
mod heap;
#[cfg(test)]
mod models;
mod sync;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use sync::Ordering::{Relaxed, Release};
use sync::{AtomicU64, Ordering, UnsafeCell, fence, full_fence};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::RawBytes;

/// The offset of the ring in a segment.
pub(super) const BYTES_AT: usize = 4096;

// The value of `armed`: 0, or the events that the end waits for, plus a count of arms in the higher bits, so
// that the peer rings once per arm.
const ARMED_FOR_DATA: u64 = 1;
const ARMED_FOR_ROOM: u64 = 2;
const ARM_COUNT: u64 = 4;

/// The words of one end, at the start of its segment. Fresh memory is all zero: the initial state.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
#[repr(C)]
pub(super) struct RingHeader {
    /// The number of bytes that this end has written to its ring.
    produced: CacheLine<AtomicU64>,
    /// The number of bytes that this end has read from the peer's ring.
    consumed: CacheLine<AtomicU64>,
    /// What this end is armed for.
    armed: CacheLine<AtomicU64>,
}

/// A value with two cache lines of its own, since processors fetch lines in pairs.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
#[repr(C, align(128))]
struct CacheLine<T>(T);

/// One of a connection's two segments, as a ring accesses it.
#[derive(Debug)]
pub(super) struct RingMemory {
    header: NonNull<RingHeader>,
    bytes: NonNull<UnsafeCell<u8>>,
    len: usize,
    /// Keeps the header and the bytes mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the segment is shared between processes, hence between threads. Words are atomics, and bytes are
// accessed only by the ring that owns this half (M9). The owner may go to any thread.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// Creates the memory of a ring of `len` bytes, a power of two, with its header.
    ///
    /// # Safety
    ///
    /// For as long as `owner` lives (M1): `header` is aligned and readable, and so are `len` bytes at
    /// `bytes`; as `ours` of a [`Ring`] both are writable too. Only other processes, and the one ring whose
    /// own they are, write to them (M9).
    pub(super) unsafe fn new(
        owner: Arc<dyn Any + Send + Sync>,
        header: NonNull<RingHeader>,
        bytes: NonNull<UnsafeCell<u8>>,
        len: usize,
    ) -> Self {
        assert!(len.is_power_of_two(), "a ring of {len} bytes");
        Self { header, bytes, len, _owner: owner }
    }

    fn header(&self) -> &RingHeader {
        // SAFETY: aligned and readable while the owner is held (M1); all atomics, of which only our own are
        // stored to (M9).
        unsafe { self.header.as_ref() }
    }

    /// Returns the address of the byte at `position`, and the number of bytes up to the ring's end.
    fn locate(&self, position: u64) -> (*const UnsafeCell<u8>, usize) {
        let at = (position % self.len as u64) as usize;
        (self.bytes.as_ptr().wrapping_add(at), self.len - at)
    }
}

/// One end: writes to its own segment, and reads the peer's.
#[derive(Debug)]
pub(super) struct Ring {
    ours: RingMemory,
    theirs: RingMemory,
    /// Bytes copied into our ring; published to the peer; known to be read by the peer.
    written: u64,
    published: u64,
    taken: u64,
    /// Bytes known to be in the peer's ring; copied out of it; released to the peer.
    arrived: u64,
    read: u64,
    released: u64,
    /// How often this end has armed, and whether it is armed now.
    arms: u64,
    armed: bool,
    /// The peer's `armed` value when its doorbell was last rung.
    rung: u64,
}

impl Ring {
    /// Creates an end at position 0. The peer may already have written.
    pub(super) fn new(ours: RingMemory, theirs: RingMemory) -> Self {
        Self {
            ours,
            theirs,
            written: 0,
            published: 0,
            taken: 0,
            arrived: 0,
            read: 0,
            released: 0,
            arms: 0,
            armed: false,
            rung: 0,
        }
    }

    /// Returns the number of writable bytes. Loads the peer's counter only if fewer than `wanted` are known.
    pub(super) fn writable(&mut self, wanted: usize) -> Result<usize> {
        if self.room() < wanted {
            self.taken = checked_load(&self.theirs.header().consumed, self.taken, self.published)?;
        }
        Ok(self.room())
    }

    fn room(&self) -> usize {
        self.ours.len - self.written.wrapping_sub(self.taken) as usize
    }

    /// Writes `bytes`, which must not exceed what is writable. The peer sees them once they are published.
    pub(super) fn copy_in(&mut self, bytes: RawBytes<'_>) {
        assert!(bytes.len() <= self.room(), "more than is writable");
        let (to, until_end) = self.ours.locate(self.written);
        let (first, second) = bytes.split_at(bytes.len().min(until_end));
        // SAFETY: within our ring, mapped while the half is held (M1), and only this writes there (M9).
        unsafe { sync::store(first, to) };
        // SAFETY: the same, from its start; no more than the ring has (M1, M9).
        unsafe { sync::store(second, self.ours.bytes.as_ptr()) };
        self.written = self.written.wrapping_add(bytes.len() as u64);
    }

    /// Publishes all written bytes to the peer. Returns true if the peer is armed for data and its doorbell
    /// must be rung.
    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        let changed = self.published != self.written;
        if changed {
            self.published = self.written;
            self.ours.header().produced.0.store(self.written, Release);
        }
        changed && self.is_due(ARMED_FOR_DATA)
    }

    /// Returns the number of published bytes not yet read. Loads the peer's counter only if fewer than
    /// `wanted` are known.
    pub(super) fn readable(&mut self, wanted: usize) -> Result<usize> {
        if self.unread() < wanted {
            let produced = &self.theirs.header().produced;
            let end = self.released.wrapping_add(self.theirs.len as u64);
            self.arrived = checked_load(produced, self.arrived, end)?;
        }
        Ok(self.unread())
    }

    fn unread(&self) -> usize {
        self.arrived.wrapping_sub(self.read) as usize
    }

    /// Reads `into.len()` bytes, which must not exceed what is readable. A hostile peer may change the bytes
    /// during the copy, so only this copy is parsed. The peer may reuse their room once they are released.
    pub(super) fn copy_out(&mut self, into: &mut [MaybeUninit<u8>]) {
        assert!(into.len() <= self.unread(), "more than is readable");
        let (from, until_end) = self.theirs.locate(self.read);
        self.read = self.read.wrapping_add(into.len() as u64);
        let (first, second) = into.split_at_mut(into.len().min(until_end));
        // SAFETY: within the peer's ring, mapped while the half is held (M1), and only another process writes
        // there (M9).
        unsafe { sync::load(from, first) };
        // SAFETY: the same, from its start; no more than the ring has (M1, M9).
        unsafe { sync::load(self.theirs.bytes.as_ptr(), second) };
    }

    /// Returns the length of the peer's ring.
    pub(super) fn peer_len(&self) -> usize {
        self.theirs.len
    }

    /// Returns the number of bytes read and not yet released to the peer.
    pub(super) fn unreleased(&self) -> usize {
        self.read.wrapping_sub(self.released) as usize
    }

    /// Releases the room of all bytes read. Returns true if the peer is armed for room and its doorbell must
    /// be rung.
    #[must_use]
    pub(super) fn release(&mut self) -> bool {
        let changed = self.released != self.read;
        if changed {
            self.released = self.read;
            self.ours.header().consumed.0.store(self.read, Release);
        }
        changed && self.is_due(ARMED_FOR_ROOM)
    }

    /// Returns true if the peer is armed for what was just changed, and was not rung since it armed.
    ///
    /// An end that arms stores `armed` and then loads the counters. An end that moves a counter stores it and
    /// then loads `armed`. With a full fence between the store and the load at both ends, at least one sees
    /// the other's store. (Release and Acquire would allow both loads to run first.)
    fn is_due(&mut self, changed: u64) -> bool {
        full_fence();
        let armed = self.theirs.header().armed.0.load(Relaxed);
        let due = armed & changed != 0 && armed != self.rung;
        if due {
            self.rung = armed;
        }
        due
    }

    /// Arms the doorbell for data, and for free space if `for_room`. Returns true if armed: the peer then
    /// rings once. Returns false, disarmed, if either has arrived since the last load by `readable` or
    /// `writable`.
    ///
    /// The caller has handled everything known by then, and has released what it read.
    #[must_use]
    pub(super) fn arm(&mut self, for_room: bool) -> bool {
        let what = if for_room { ARMED_FOR_DATA | ARMED_FOR_ROOM } else { ARMED_FOR_DATA };
        self.arms += 1;
        self.armed = true;
        self.ours.header().armed.0.store(self.arms * ARM_COUNT + what, Relaxed);
        full_fence();
        let theirs = self.theirs.header();
        let bytes = theirs.produced.0.load(Relaxed) != self.arrived;
        let room = for_room && theirs.consumed.0.load(Relaxed) != self.taken;
        if bytes || room {
            self.disarm();
        }
        !bytes && !room
    }

    /// Disarms the doorbell. Free if it was not armed.
    pub(super) fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.ours.header().armed.0.store(0, Relaxed);
        }
    }
}

/// Loads a peer's counter. `Corrupt` if it is before its last value or beyond `end`.
fn checked_load(word: &CacheLine<AtomicU64>, last: u64, end: u64) -> Result<u64> {
    // A fence, since an acquiring load is not guaranteed to work on read-only mappings.
    let now = word.0.load(Relaxed);
    fence(Ordering::Acquire);
    if now.wrapping_sub(last) > end.wrapping_sub(last) {
        let why = format!("the peer's ring counter went from {last} to {now}, beyond the limit {end}");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    Ok(now)
}
