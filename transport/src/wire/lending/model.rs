//! A model of a host's shared memory, for tests and fuzzing. It checks what a lender relies on.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use super::{Lender, LentFrame};
use crate::error::Result;
use crate::memory::arena::lendable;
use crate::memory::{self, Buffer, BufferMut, Place};
use crate::platform::mutex::Mutex;
use crate::wire::record::corrupt;

/// The number of the segment that an arena is.
pub(crate) const SEGMENT: u32 = 3;
/// The number of the segment that its bounce arena is.
const BOUNCE_ARENA: u32 = 5;

/// The arena of one process, which its peer can read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelArena(Arc<Mutex<ModelArenaState>>);

#[derive(Debug, Default)]
struct ModelArenaState {
    /// Frames with live handles, by address, with their offsets in the segment.
    blocks: BTreeMap<usize, (Bytes, u64)>,
    /// The length of the segment.
    len: u64,
    /// The memory of bounce copies.
    bounce_arena: Option<memory::Arena>,
    leases: Vec<ModelLease>,
    out: usize,
    /// Violations of the lending protocol that were observed.
    faults: Vec<&'static str>,
}

#[derive(Debug)]
struct ModelLease {
    segment: u32,
    offset: u64,
    /// The lender's handle, until the lease is returned.
    frame: Option<Buffer>,
    /// The peer has borrowed it.
    borrowed: bool,
}

/// The state of an arena's leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseCounts {
    pub(crate) made: usize,
    pub(crate) out: usize,
    pub(crate) borrowed: usize,
}

impl ModelArena {
    /// Creates an arena with a bounce arena of `bytes_max` bytes.
    pub(crate) fn with_bounce_arena(bytes_max: usize) -> Self {
        let bounce_arena = memory::Arena::new(bytes_max).ok();
        Self(Arc::new(Mutex::new(ModelArenaState { bounce_arena, ..ModelArenaState::default() })))
    }

    /// Returns a frame in the arena.
    pub(crate) fn block(&self, bytes: Vec<u8>) -> Buffer {
        let bytes = Bytes::from(bytes);
        let mut state = self.state();
        let offset = state.len;
        state.len += bytes.len() as u64;
        state.blocks.insert(bytes.as_ptr().addr(), (bytes.clone(), offset));
        drop(state);
        Buffer::placed(Bytes::from_owner(ModelBlock { arena: self.clone(), bytes }), Place::Arena)
    }

    /// Returns a lender from this arena to the process that owns `peers`, with at most `leases_max` leases at
    /// once.
    pub(crate) fn lender(&self, peers: &Self, leases_max: usize) -> Box<dyn Lender> {
        Box::new(ModelLender { ours: self.clone(), theirs: peers.clone(), leases_max })
    }

    /// Models the death of the peer's process: leases that it never borrowed are returned.
    pub(crate) fn peer_is_gone(&self) {
        let mut state = self.state();
        let reclaimed: Vec<_> = (0..state.leases.len())
            .filter_map(|number| if state.leases[number].borrowed { None } else { state.end(number as u64) })
            .collect();
        drop(state);
        drop(reclaimed);
    }

    pub(crate) fn leases(&self) -> LeaseCounts {
        let state = self.state();
        LeaseCounts {
            made: state.leases.len(),
            out: state.out,
            borrowed: state.leases.iter().filter(|lease| lease.borrowed).count(),
        }
    }

    /// Returns how many bytes of the bounce arena are in use.
    pub(crate) fn bounced_bytes(&self) -> usize {
        self.state().bounce_arena.as_ref().map_or(0, |bounce_arena| bounce_arena.stats().in_use_bytes)
    }

    /// Panics if the protocol was violated, or if a bounce copy remains without a lease.
    pub(crate) fn check(&self) {
        let faults = std::mem::take(&mut self.state().faults);
        assert!(faults.is_empty(), "{faults:?}");
        assert!(self.leases().out > 0 || self.bounced_bytes() == 0, "bounce copies remain without leases");
    }

    fn state(&self) -> MutexGuard<'_, ModelArenaState> {
        self.0.lock()
    }
}

impl ModelArenaState {
    /// Returns the block that contains these bytes, and their offset in it.
    fn block_of(&self, at: usize, len: usize) -> Option<(&(Bytes, u64), usize)> {
        let (start, block) = self.blocks.range(..=at).next_back()?;
        (at - start + len <= block.0.len()).then_some((block, at - start))
    }

    /// Returns the segment and offset of a frame.
    fn find(&self, frame: &Buffer) -> Option<(u32, u64)> {
        if let Some((_, offset)) = lendable(frame) {
            return Some((BOUNCE_ARENA, offset as u64));
        }
        let ((_, start), at) = self.block_of(frame.as_ptr().addr(), frame.len())?;
        Some((SEGMENT, start + at as u64))
    }

    fn lease(&mut self, number: u64) -> Option<&mut ModelLease> {
        self.leases.get_mut(usize::try_from(number).ok()?)
    }

    /// Ends a lease. The caller drops the frame after releasing the lock, since the block's drop takes it.
    fn end(&mut self, number: u64) -> Option<Buffer> {
        let lease = self.lease(number)?;
        lease.borrowed = false;
        let frame = lease.frame.take();
        self.out -= usize::from(frame.is_some());
        frame
    }
}

/// The owner of a frame's memory, alive while this process has a handle.
struct ModelBlock {
    arena: ModelArena,
    bytes: Bytes,
}

impl AsRef<[u8]> for ModelBlock {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ModelBlock {
    fn drop(&mut self) {
        // From here on the memory could be reused.
        self.arena.state().blocks.remove(&self.bytes.as_ptr().addr());
    }
}

/// What a peer borrowed: a mapping of the bytes without a handle of the owner.
struct ModelBorrowed {
    owner: ModelArena,
    lease: u64,
    bytes: Bytes,
    /// A bounce copy, which is not in `blocks`.
    bounced: bool,
}

impl AsRef<[u8]> for ModelBorrowed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ModelBorrowed {
    fn drop(&mut self) {
        let mut state = self.owner.state();
        let is_block = || state.block_of(self.bytes.as_ptr().addr(), self.bytes.len()).is_some();
        let is_there = self.bounced || is_block();
        if !is_there {
            state.faults.push("a frame was freed while the peer read it");
        }
        let frame = state.end(self.lease);
        if frame.is_none() {
            state.faults.push("a lease came back twice");
        }
        drop(state);
        drop(frame);
    }
}

#[derive(Debug)]
struct ModelLender {
    ours: ModelArena,
    theirs: ModelArena,
    leases_max: usize,
}

impl Lender for ModelLender {
    fn lend(&mut self, frame: &Buffer) -> Option<LentFrame> {
        let mut state = self.ours.state();
        let (segment, offset) = state.find(frame)?;
        if state.out >= self.leases_max {
            return None;
        }
        let lease = state.leases.len() as u64;
        state.out += 1;
        state.leases.push(ModelLease { segment, offset, frame: Some(frame.clone()), borrowed: false });
        Some(LentFrame { segment, offset, lease, is_foreign: false })
    }

    fn bounce_copy(&mut self, len: usize) -> Option<BufferMut> {
        let state = self.ours.state();
        let bounce_arena = state.bounce_arena.as_ref().filter(|_| state.out < self.leases_max)?;
        bounce_arena.take(len).ok()
    }

    fn take_back(&mut self, lent_frame: LentFrame) {
        let mut state = self.ours.state();
        let is_borrowed = state.lease(lent_frame.lease).is_some_and(|lease| lease.borrowed);
        let frame = state.end(lent_frame.lease);
        if is_borrowed || frame.is_none() {
            state.faults.push("a lease was taken back that was not out, or that the peer had borrowed");
        }
        drop(state);
        drop(frame);
    }

    fn borrow(&mut self, lent_frame: LentFrame, len: usize, place: Place) -> Result<Buffer> {
        let mut state = self.theirs.state();
        let wrong = || corrupt(format!("{lent_frame:?} of {len} bytes was never lent"));
        let lease = state.lease(lent_frame.lease).ok_or_else(wrong)?;
        let frame =
            lease.frame.as_ref().filter(|frame| frame.len() == len && !lease.borrowed).ok_or_else(wrong)?;
        if lent_frame.segment != lease.segment || lent_frame.offset != lease.offset {
            return Err(wrong());
        }
        let (start, frame) = (frame.as_ptr().addr(), frame.clone());
        lease.borrowed = true;
        let bounced = lendable(&frame).is_some();
        let bytes = if bounced {
            Bytes::copy_from_slice(frame.as_slice().unwrap_or_default())
        } else {
            let ((block, _), at) = state.block_of(start, len).ok_or_else(wrong)?;
            block.slice(at..at + len)
        };
        drop(state);
        drop(frame);
        let borrowed = ModelBorrowed { owner: self.theirs.clone(), lease: lent_frame.lease, bytes, bounced };
        Ok(Buffer::placed(Bytes::from_owner(borrowed), place))
    }
}
