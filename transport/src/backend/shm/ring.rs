//! The ring: bytes from one process to another without a lock or a system call.
//!
//! Each end has a segment that it alone writes: [`RingHeader`], and from [`BYTES_AT`] on the ring of the bytes it sends. So each
//! word has one writer, and a peer can spoil nothing but its own segment, from which words are validated and bytes copied (M9).
//! RingHeader count bytes since the beginning; where a byte lies is the remainder by the ring's length.

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

/// Where a segment's ring begins.
pub(super) const BYTES_AT: usize = 4096;

// What `armed` says: nothing, or what for, and above that which sleep it is, so that each is rung once.
const ARMED_FOR_DATA: u64 = 1;
const ARMED_FOR_ROOM: u64 = 2;
const ARM_COUNT: u64 = 4;

/// What one end says of itself, at the start of its segment. Fresh memory, all zero, is a beginning.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
#[repr(C)]
pub(super) struct RingHeader {
    /// How many bytes it ever wrote to its ring.
    produced: CacheLine<AtomicU64>,
    /// How many bytes it ever read from the peer's.
    consumed: CacheLine<AtomicU64>,
    /// What it sleeps for.
    armed: CacheLine<AtomicU64>,
}

/// Two cache lines of its own: processors fetch them in pairs.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
#[repr(C, align(128))]
struct CacheLine<T>(T);

/// One of a connection's two segments, as a ring reaches it.
#[derive(Debug)]
pub(super) struct RingMemory {
    header: NonNull<RingHeader>,
    bytes: NonNull<UnsafeCell<u8>>,
    len: usize,
    /// What keeps both mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: what it points to is made for several processes, hence for several threads: words are atomics, and bytes are touched
// by the ring that owns this half alone (M9). The owner may go to any thread.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// A ring of `len` bytes, which is a power of two, and the words before it.
    ///
    /// # Safety
    ///
    /// For as long as `owner` lives (M1): `words` is aligned and readable, and so are `len` bytes at `bytes`; as `ours` of a
    /// [`Ring`] both are writable too. Nobody writes either but other processes and the one ring whose own they are (M9).
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
        // SAFETY: aligned and readable while the owner is held (M1); all atomics, of which only our own are stored to (M9).
        unsafe { self.header.as_ref() }
    }

    /// The address of the byte at `position`, and how many follow it before the ring starts over.
    fn locate(&self, position: u64) -> (*const UnsafeCell<u8>, usize) {
        let at = (position % self.len as u64) as usize;
        (self.bytes.as_ptr().wrapping_add(at), self.len - at)
    }
}

/// One end: writes into its own segment, and reads the peer's.
#[derive(Debug)]
pub(super) struct Ring {
    ours: RingMemory,
    theirs: RingMemory,
    /// Bytes copied into our ring; told to the peer; known to be read by it.
    written: u64,
    published: u64,
    taken: u64,
    /// Bytes known to be in the peer's ring; copied out of it; told to the peer.
    arrived: u64,
    read: u64,
    released: u64,
    /// How often this end lay down, and whether it has not got up since.
    arms: u64,
    armed: bool,
    /// The peer's `armed` when its doorbell was last due.
    rung: u64,
}

impl Ring {
    /// An end at the beginning: nothing was written or read by it yet. The peer may have begun.
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

    /// How many bytes have room. The peer's word is looked at only where fewer than `wanted` are known to.
    pub(super) fn writable(&mut self, wanted: usize) -> Result<usize> {
        if self.room() < wanted {
            self.taken = checked_load(&self.theirs.header().consumed, self.taken, self.published)?;
        }
        Ok(self.room())
    }

    fn room(&self) -> usize {
        self.ours.len - self.written.wrapping_sub(self.taken) as usize
    }

    /// Writes `bytes`, no more than were writable. The peer sees them once they are published.
    pub(super) fn copy_in(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room(), "more than is writable");
        let (to, until_end) = self.ours.locate(self.written);
        let (first, second) = bytes.split_at(bytes.len().min(until_end));
        // SAFETY: within our ring, mapped while the half is held (M1), and only this writes there (M9).
        unsafe { sync::store(first, to) };
        // SAFETY: the same, from its start; no more than the ring has (M1, M9).
        unsafe { sync::store(second, self.ours.bytes.as_ptr()) };
        self.written = self.written.wrapping_add(bytes.len() as u64);
    }

    /// Tells the peer of all that was written. Whether its doorbell must be rung, since it sleeps for bytes.
    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        let changed = self.published != self.written;
        if changed {
            self.published = self.written;
            self.ours.header().produced.0.store(self.written, Release);
        }
        changed && self.is_due(ARMED_FOR_DATA)
    }

    /// How many bytes the peer has published. Its word is looked at only where fewer than `wanted` are known.
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

    /// Reads as many bytes as `into` has, no more than were readable. A hostile peer may have torn them, so whoever parses them
    /// parses this copy. Their room is the peer's once they are released.
    pub(super) fn copy_out(&mut self, into: &mut [MaybeUninit<u8>]) {
        assert!(into.len() <= self.unread(), "more than is readable");
        let (from, until_end) = self.theirs.locate(self.read);
        self.read = self.read.wrapping_add(into.len() as u64);
        let (first, second) = into.split_at_mut(into.len().min(until_end));
        // SAFETY: within the peer's ring, mapped while the half is held (M1), and only another process writes there (M9).
        unsafe { sync::load(from, first) };
        // SAFETY: the same, from its start; no more than the ring has (M1, M9).
        unsafe { sync::load(self.theirs.bytes.as_ptr(), second) };
    }

    /// How many bytes the peer's ring holds.
    pub(super) fn peer_len(&self) -> usize {
        self.theirs.len
    }

    /// How many bytes were read whose room is not the peer's yet.
    pub(super) fn unreleased(&self) -> usize {
        self.read.wrapping_sub(self.released) as usize
    }

    /// Gives the peer the room of all that was read. Whether its doorbell must be rung, since it sleeps for room.
    #[must_use]
    pub(super) fn release(&mut self) -> bool {
        let changed = self.released != self.read;
        if changed {
            self.released = self.read;
            self.ours.header().consumed.0.store(self.read, Release);
        }
        changed && self.is_due(ARMED_FOR_ROOM)
    }

    /// Whether the peer sleeps for what we just moved, and was not rung since it lay down.
    ///
    /// Who sleeps says so and then looks at the words; who moves a word then looks who sleeps. With a full fence between the
    /// two at either end, one of them sees the other. (Release and Acquire would let both look first.)
    fn is_due(&mut self, changed: u64) -> bool {
        full_fence();
        let armed = self.theirs.header().armed.0.load(Relaxed);
        let due = armed & changed != 0 && armed != self.rung;
        if due {
            self.rung = armed;
        }
        due
    }

    /// Lies down to sleep for bytes, and `for_room` too. True: from now on the peer rings once for either. False: one of them has
    /// come since `readable` or `writable` looked last, and the ring is awake.
    ///
    /// What was known by then is the caller's, who has dealt with it, and has released what it read.
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

    /// Gets up, whoever or whatever woke it. Costs nothing where it did not sleep.
    pub(super) fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.ours.header().armed.0.store(0, Relaxed);
        }
    }
}

/// What the peer's word says now, if that is neither before what it said last nor past what is possible.
fn checked_load(word: &CacheLine<AtomicU64>, last: u64, end: u64) -> Result<u64> {
    // A fence instead of an acquiring load: those are not promised to work on memory mapped for reading only.
    let now = word.0.load(Relaxed);
    fence(Ordering::Acquire);
    if now.wrapping_sub(last) > end.wrapping_sub(last) {
        let why = format!("the peer's ring went from {last} to {now}, and {end} is the furthest it can be");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    Ok(now)
}
