//! A host's shared memory as a model, for tests and fuzzing: what a lender must see to, and whether the session lets it.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use super::{Lender, LentFrame};
use crate::error::Result;
use crate::memory::arena::lendable;
use crate::memory::{self, Buffer, BufferMut, Place};
use crate::platform::mutex::Mutex;
use crate::wire::record::corrupt;

/// The segment that all of an arena is.
pub(crate) const SEGMENT: u32 = 3;
/// And that all of its bounce arena is.
const BOUNCE_ARENA: u32 = 5;

/// One process's arena, which its peer reaches too.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelArena(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Frames that a handle is left of, by address, and where they are in the segment.
    blocks: BTreeMap<usize, (Bytes, u64)>,
    /// How long the segment is.
    len: u64,
    /// Where copies lie that are lent in the stead of other memory.
    bounce_arena: Option<memory::Arena>,
    leases: Vec<ModelLease>,
    out: usize,
    /// What nobody may ever do, done.
    faults: Vec<&'static str>,
}

#[derive(Debug)]
struct ModelLease {
    segment: u32,
    offset: u64,
    /// The lender's handle, until it came back.
    frame: Option<Buffer>,
    /// The peer reads it.
    borrowed: bool,
}

/// What became of an arena's leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseCounts {
    pub(crate) made: usize,
    pub(crate) out: usize,
    pub(crate) borrowed: usize,
}

impl ModelArena {
    /// One with so much room for bounce copies.
    pub(crate) fn with_bounce_arena(bytes_max: usize) -> Self {
        let bounce_arena = memory::Arena::new(bytes_max).ok();
        Self(Arc::new(Mutex::new(State { bounce_arena, ..State::default() })))
    }

    /// A frame in it.
    pub(crate) fn block(&self, bytes: Vec<u8>) -> Buffer {
        let bytes = Bytes::from(bytes);
        let mut state = self.state();
        let offset = state.len;
        state.len += bytes.len() as u64;
        state.blocks.insert(bytes.as_ptr().addr(), (bytes.clone(), offset));
        drop(state);
        Buffer::placed(Bytes::from_owner(ModelBlock { arena: self.clone(), bytes }), Place::Arena)
    }

    /// A lender of the process that has it, to one that has `peers`: at most so many leases are out at once.
    pub(crate) fn lender(&self, peers: &Self, leases_max: usize) -> Box<dyn Lender> {
        Box::new(ModelLender { ours: self.clone(), theirs: peers.clone(), leases_max })
    }

    /// The peer's process is gone, with all it had heard of: what it never borrowed comes back.
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

    /// How much is deposited.
    pub(crate) fn bounced_bytes(&self) -> usize {
        self.state().bounce_arena.as_ref().map_or(0, |bounce_arena| bounce_arena.stats().in_use_bytes)
    }

    /// Panics if anybody did what nobody may, or a bounce copy stayed that no lease holds.
    pub(crate) fn check(&self) {
        let faults = std::mem::take(&mut self.state().faults);
        assert!(faults.is_empty(), "{faults:?}");
        assert!(self.leases().out > 0 || self.bounced_bytes() == 0, "bounce copies that nobody has");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// The block that these bytes are of, and where they are in it.
    fn block_of(&self, at: usize, len: usize) -> Option<(&(Bytes, u64), usize)> {
        let (start, block) = self.blocks.range(..=at).next_back()?;
        (at - start + len <= block.0.len()).then_some((block, at - start))
    }

    /// Where in which segment a frame is.
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

    /// A lease ends, if it had not: the frame is to be dropped outside, as its block looks in here.
    fn end(&mut self, number: u64) -> Option<Buffer> {
        let lease = self.lease(number)?;
        lease.borrowed = false;
        let frame = lease.frame.take();
        self.out -= usize::from(frame.is_some());
        frame
    }
}

/// The owner of a frame's memory: there while a handle is left in this process.
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
        // From here on something else could be written there.
        self.arena.state().blocks.remove(&self.bytes.as_ptr().addr());
    }
}

/// What a peer borrowed: its mapping of the bytes, and no handle of the owner's that the lender could need.
struct ModelBorrowed {
    owner: ModelArena,
    lease: u64,
    bytes: Bytes,
    /// It is no block, whose handles are counted.
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
        Some(LentFrame { segment, offset, lease })
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
            state.faults.push("a loan was taken back that was not out, or that the peer has");
        }
        drop(state);
        drop(frame);
    }

    fn borrow(&mut self, lent_frame: LentFrame, len: usize, place: Place) -> Result<Buffer> {
        let mut state = self.theirs.state();
        let wrong = || corrupt(format!("{lent_frame:?} of {len} bytes was never made"));
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
