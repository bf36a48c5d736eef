//! What of an arena peers hold: counted while it is out, and bounded once some of it is in quarantine.
//!
//! A loan is in quarantine when its link has ended and it may still be held: by a process that is stopped, or that keeps it.
//! From then on half of the arena is not lent, so that who holds on can take no more than that of what is left.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{ArenaMemory, Inner, reclaim};
use crate::memory::Buffer;
use crate::platform::mutex::Mutex;

/// How often it is looked for what has come back, while frames are refused.
const SWEEP_EVERY: Duration = Duration::from_millis(1);

/// What peers hold of one arena. A block counts once, however many hold it.
#[derive(Debug, Default)]
pub(super) struct Lending {
    pub(super) lent: LentCount,
    /// Of what is lent, what is in quarantine.
    pub(super) quarantined: LentCount,
    /// Frames that were not lent because of what is.
    pub(super) refused: AtomicU64,
    warned: AtomicBool,
    /// Held by whoever lends while something is in quarantine, so that the bound is kept; when it was last looked for what has
    /// come back.
    bounded: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
pub(super) struct LentCount {
    pub(super) bytes: AtomicUsize,
    pub(super) leases: AtomicUsize,
}

/// How many leases a block is out under.
#[derive(Debug, Default)]
pub(super) struct BlockLeases {
    lent: AtomicU32,
    quarantined: AtomicU32,
}

/// A frame that a peer holds, counted until this is dropped. It keeps the frame's memory (M11).
#[derive(Debug)]
pub(crate) struct FrameLease {
    frame: Buffer,
    is_quarantined: bool,
}

impl FrameLease {
    /// Of this frame; `None` where its arena lends no more for now.
    pub(crate) fn of(frame: Buffer) -> Option<Self> {
        if let Some((memory, arena)) = origin(&frame)
            && !arena.lending.lend(memory, &arena)
        {
            return None;
        }
        Some(Self { frame, is_quarantined: false })
    }

    /// Its link has ended.
    pub(crate) fn quarantine(&mut self) {
        self.is_quarantined = true;
        if let Some((memory, arena)) = origin(&self.frame) {
            arena.lending.quarantined.add(memory.spot.len, &memory.leases.quarantined);
        }
    }
}

impl Drop for FrameLease {
    fn drop(&mut self) {
        let Some((memory, arena)) = origin(&self.frame) else { return };
        let lending = &arena.lending;
        lending.lent.subtract(memory.spot.len, &memory.leases.lent);
        if self.is_quarantined && lending.quarantined.subtract(memory.spot.len, &memory.leases.quarantined) {
            lending.warned.store(false, Ordering::Relaxed);
        }
    }
}

/// The block that a frame lies in, and its arena, unless that is gone and lends nothing to anybody.
fn origin(frame: &Buffer) -> Option<(&ArenaMemory, Arc<Inner>)> {
    let memory: &dyn Any = frame.allocation()?;
    let memory = memory.downcast_ref::<ArenaMemory>()?;
    Some((memory, memory.arena.upgrade()?))
}

impl Lending {
    /// Counts one more loan of a block, if that may be.
    fn lend(&self, memory: &ArenaMemory, arena: &Inner) -> bool {
        let is_bounded = || self.quarantined.leases.load(Ordering::Relaxed) > 0;
        let mut bounded = None;
        if is_bounded() {
            let looked = bounded.insert(self.bounded.lock());
            let is_too_much = || {
                let is_more = memory.leases.lent.load(Ordering::Relaxed) == 0;
                let bytes = self.lent.bytes.load(Ordering::Relaxed) + memory.spot.len;
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
        self.lent.add(memory.spot.len, &memory.leases.lent);
        true
    }

    fn refuse(&self, arena: &Inner) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            quarantined_bytes = self.quarantined.bytes.load(Ordering::Relaxed),
            lent_bytes = self.lent.bytes.load(Ordering::Relaxed),
            bytes_max = arena.bytes_max,
            "an arena lends no more than half of itself while peers whose links have ended hold some of it, and frames are \
             copied: end the processes that are stopped, have the others drop what they received, or make the arena larger"
        );
    }
}

impl LentCount {
    /// One more lease of a block of so many bytes, out under `leases` so far.
    fn add(&self, bytes: usize, leases: &AtomicU32) {
        self.leases.fetch_add(1, Ordering::Relaxed);
        if leases.fetch_add(1, Ordering::Relaxed) == 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// One less. Tells whether none is left of the arena.
    fn subtract(&self, bytes: usize, leases: &AtomicU32) -> bool {
        if leases.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.leases.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
