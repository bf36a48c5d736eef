//! Counts what an arena has lent to peers, and bounds it while leases are in quarantine.
//!
//! A lease is in quarantine if its link has ended and the peer may still read the frame, because its process
//! is stopped or keeps the message. Meanwhile half of the arena is not lent, so that a peer that never
//! returns its frames takes at most that much.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{ArenaInner, ArenaMemory, reclaim};
use crate::memory::Buffer;
use crate::platform::mutex::Mutex;

/// Minimum time between two sweeps for returned leases, while frames are refused.
const SWEEP_EVERY: Duration = Duration::from_millis(1);

/// What one arena has lent. A block counts once, however many leases it has.
#[derive(Debug, Default)]
pub(super) struct Lending {
    pub(super) lent: LeaseCount,
    /// The part of `lent` that is in quarantine.
    pub(super) quarantined: LeaseCount,
    /// Number of frames that were not lent because of the quarantine.
    pub(super) refused: AtomicU64,
    warned: AtomicBool,
    /// Held by each caller that lends while leases are in quarantine, so that the bound is kept. Holds the
    /// time of the last sweep.
    bounded: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
pub(super) struct LeaseCount {
    pub(super) bytes: AtomicUsize,
    pub(super) leases: AtomicUsize,
}

/// Number of leases of one block.
#[derive(Debug, Default)]
pub(super) struct BlockLeases {
    lent: AtomicU32,
    quarantined: AtomicU32,
}

/// A lease of one frame to a peer, counted until it is dropped. It keeps the frame's memory (M11).
#[derive(Debug)]
pub(crate) struct FrameLease {
    frame: Buffer,
    is_quarantined: bool,
}

impl FrameLease {
    /// Creates a lease of `frame`, or returns `None` where its arena lends no more for now.
    pub(crate) fn of(frame: Buffer) -> Option<Self> {
        if let Some((memory, arena)) = origin(&frame)
            && !arena.lending.lend(memory, &arena)
        {
            return None;
        }
        Some(Self { frame, is_quarantined: false })
    }

    /// Moves the lease to quarantine, because its link has ended.
    pub(crate) fn quarantine(&mut self) {
        self.is_quarantined = true;
        if let Some((memory, arena)) = origin(&self.frame) {
            arena.lending.quarantined.add(memory.location.len, &memory.leases.quarantined);
        }
    }
}

impl Drop for FrameLease {
    fn drop(&mut self) {
        let Some((memory, arena)) = origin(&self.frame) else { return };
        let lending = &arena.lending;
        lending.lent.subtract(memory.location.len, &memory.leases.lent);
        if self.is_quarantined
            && lending.quarantined.subtract(memory.location.len, &memory.leases.quarantined)
        {
            lending.warned.store(false, Ordering::Relaxed);
        }
    }
}

/// Returns the block of a frame and its arena. `None` for other memory, and where the arena is gone, which
/// then counts nothing.
fn origin(frame: &Buffer) -> Option<(&ArenaMemory, Arc<ArenaInner>)> {
    let memory: &dyn Any = frame.allocation()?;
    let memory = memory.downcast_ref::<ArenaMemory>()?;
    Some((memory, memory.arena.upgrade()?))
}

impl Lending {
    /// Counts one more lease of a block, unless the bound forbids it. Returns true if it was counted.
    fn lend(&self, memory: &ArenaMemory, arena: &ArenaInner) -> bool {
        let is_bounded = || self.quarantined.leases.load(Ordering::Relaxed) > 0;
        let mut bounded = None;
        if is_bounded() {
            let looked = bounded.insert(self.bounded.lock());
            let is_too_much = || {
                let is_more = memory.leases.lent.load(Ordering::Relaxed) == 0;
                let bytes = self.lent.bytes.load(Ordering::Relaxed) + memory.location.len;
                is_more && bytes > arena.bytes_max / 2 && is_bounded()
            };
            if is_too_much() && looked.is_none_or(|looked| looked.elapsed() >= SWEEP_EVERY) {
                reclaim();
                **looked = Some(Instant::now());
            }
            if is_too_much() {
                self.refuse(arena);
                return false;
            }
        }
        self.lent.add(memory.location.len, &memory.leases.lent);
        true
    }

    fn refuse(&self, arena: &ArenaInner) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            quarantined_bytes = self.quarantined.bytes.load(Ordering::Relaxed),
            lent_bytes = self.lent.bytes.load(Ordering::Relaxed),
            bytes_max = arena.bytes_max,
            "an arena lends no more than half of itself while leases of ended links are in quarantine, and copies further frames: \
             end the stopped processes, have the other peers drop what they received, or make the arena larger"
        );
    }
}

impl LeaseCount {
    /// Counts one more lease of a block of `bytes` bytes that has `leases` so far.
    fn add(&self, bytes: usize, leases: &AtomicU32) {
        self.leases.fetch_add(1, Ordering::Relaxed);
        if leases.fetch_add(1, Ordering::Relaxed) == 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts one lease less. Returns true if the arena has none left.
    fn subtract(&self, bytes: usize, leases: &AtomicU32) -> bool {
        if leases.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.leases.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
