//! Lending in place: the frames that this end lends to its peer, and those that it borrows.
//!
//! The invariant (M11): a lent block is held until its lease is returned, or until no process can hold it any
//! more. The latter is detected by the holders' pipe. Its write end stays open in every process that can read
//! what was lent over the link, including forwarded frames, and in every process that inherited it. A silent
//! peer returns nothing, since it may only be stopped.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use super::borrowing;
use super::forwarding::{Forwarded, keep_sweeping};
use super::pipe;
use super::segments::{Exports, Imports, SegmentNumber};
use super::table::{LEASES, LeaseTable};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::arena::borrowed::borrowed_from;
use crate::memory::arena::{self, FrameLease, lendable};
use crate::memory::{Access, BounceArena, Buffer, BufferMut, Place};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::platform::process::{PerProcess, Process};
use crate::wire::lending::{Lender, LentFrame};

/// The bits of a lease that number its slot; the bits above are the slot's generation.
const SLOT_BITS: u32 = 12;
const _: () = assert!(LEASES == 1 << SLOT_BITS, "SLOT_BITS number every slot");
/// The number of leases, oldest first, that are checked whenever another is granted.
const SWEPT_AT_ONCE: usize = 4;

/// Lending and borrowing on one link between peers that trust each other.
#[derive(Debug)]
pub(super) struct ArenaLender {
    /// The socket that carries descriptors.
    socket: OwnedFd,
    bounce_arena: BounceArena,
    lent: Arc<Mutex<Lent>>,
    exports: Exports,
    borrowed: BorrowState,
    /// Runs the task that sweeps forwarded leases.
    environment: Arc<dyn Environment>,
}

/// What this end has lent, and the table in which the peer returns it.
#[derive(Debug)]
struct Lent {
    slots: Vec<LeaseSlot>,
    free: Vec<u32>,
    /// Slots in use, oldest first.
    out: VecDeque<u32>,
    /// The generations that the peer has returned.
    returned: LeaseTable,
    /// The peer returned a lease that it did not hold. The byte stream then ends the link.
    violated: Arc<AtomicBool>,
    /// Hangs up once no process holds anything that was lent.
    holders: OwnedFd,
    /// The link has ended: leases still out are in quarantine.
    ended: bool,
}

#[derive(Debug, Default)]
struct LeaseSlot {
    generation: u64,
    lent: Option<(LentMemory, SegmentNumber)>,
}

/// The lent memory, held until the lease is returned.
#[derive(Debug)]
enum LentMemory {
    Own(FrameLease),
    Forwarded(#[expect(dead_code, reason = "held")] Forwarded),
}

/// What the peer has lent to this end.
#[derive(Debug)]
struct BorrowState {
    imports: Imports,
    /// The last generation received for each slot.
    generations: Vec<u64>,
    borrower: Arc<Borrower>,
}

/// Returns leases; exists while any is out.
#[derive(Debug)]
struct Borrower {
    table: LeaseTable,
    process: Process,
}

/// One borrowed lease, returned on drop.
#[derive(Debug)]
struct BorrowLease {
    borrower: Arc<Borrower>,
    slot: usize,
    generation: u64,
}

impl Drop for BorrowLease {
    fn drop(&mut self) {
        // A forked child's copy must not return the lease: the parent may still read.
        if self.borrower.process.is_this() {
            self.borrower.table.give_back(self.slot, self.generation);
        }
    }
}

impl ArenaLender {
    /// `ours` and `theirs` are the lease tables of both segments. `holders` hangs up with the peer's last
    /// holder; `holder` is our write end of the peer's pipe.
    pub(super) fn new(
        socket: OwnedFd,
        bounce_arena: BounceArena,
        (ours, theirs): (LeaseTable, LeaseTable),
        (holders, holder): (OwnedFd, OwnedFd),
        environment: Arc<dyn Environment>,
    ) -> Self {
        arena::reclaim_by(reclaim);
        let lent = Lent {
            slots: Vec::new(),
            free: Vec::new(),
            out: VecDeque::new(),
            returned: theirs,
            violated: Arc::default(),
            holders,
            ended: false,
        };
        let lent = Arc::new(Mutex::new(lent));
        lock(LENT_BY_LINK.get()).push(lent.clone());
        let borrower = Arc::new(Borrower { table: ours, process: Process::current() });
        let borrowed = BorrowState { imports: Imports::new(holder), generations: Vec::new(), borrower };
        Self { socket, bounce_arena, lent, exports: Exports::default(), borrowed, environment }
    }

    /// Becomes true when the peer returns a lease that it did not hold.
    pub(super) fn violated(&self) -> Arc<AtomicBool> {
        lock(&self.lent).violated.clone()
    }
}

impl Lender for ArenaLender {
    fn lend(&mut self, frame: &Buffer) -> Option<LentFrame> {
        let Self { socket, exports, lent, environment, .. } = self;
        let (memory, number, offset) = if let Some((segment, offset)) = lendable(frame) {
            let number = exports.export_own(socket, segment)?;
            (LentMemory::Own(FrameLease::of(frame.clone())?), number, offset)
        } else {
            let (memory, offset) = borrowed_from(frame)?;
            let number = exports.export_borrowed(socket, memory.origin())?;
            (LentMemory::Forwarded(Forwarded::new(memory.lease().clone())), number, offset)
        };
        let (segment, is_forwarded) = (*number, matches!(memory, LentMemory::Forwarded(_)));
        let lease = lock(lent).grant((memory, number))?;
        if is_forwarded {
            keep_sweeping(environment, reclaim);
        }
        let is_foreign = frame.access() == Access::Foreign;
        Some(LentFrame { segment, offset: offset as u64, lease, is_foreign })
    }

    fn bounce_copy(&mut self, len: usize) -> Option<BufferMut> {
        // The lock is released first: a full bounce arena reclaims what was lent, which takes the lock again.
        let has_lease = lock(&self.lent).has_lease();
        if has_lease { self.bounce_arena.take(len) } else { None }
    }

    fn take_back(&mut self, lent_frame: LentFrame) {
        lock(&self.lent).take_back(lent_frame.lease);
    }

    fn borrow(&mut self, lent_frame: LentFrame, len: usize, place: Place) -> Result<Buffer> {
        let BorrowState { imports, generations, borrower } = &mut self.borrowed;
        let (slot, generation) = parts(lent_frame.lease);
        if generations.len() <= slot {
            generations.resize(slot + 1, 0);
        }
        // A slot is granted again only after its lease was returned.
        let last = generations[slot];
        if generation != last + 1 || borrower.table.returned(slot) != last {
            return Err(corrupt("a lease that is out, was used before, or is out of sequence"));
        }
        let segment = imports.find(&self.socket, lent_frame.segment)?;
        generations[slot] = generation;
        let lease = BorrowLease { borrower: borrower.clone(), slot, generation };
        let offset =
            usize::try_from(lent_frame.offset).map_err(|_| corrupt("a lease beyond the address space"))?;
        let access = if lent_frame.is_foreign { Access::Foreign } else { Access::Owned };
        borrowing::borrow(segment, (offset, len), (place, access), Arc::new(lease))
    }

    fn tend(&mut self) -> Result<()> {
        self.exports.retract(&self.socket);
        keep_sweeping(&self.environment, reclaim);
        self.borrowed.imports.receive_pending(&self.socket)
    }
}

impl Lent {
    /// Returns true if a lease is free. First frees returned leases among the oldest.
    fn has_lease(&mut self) -> bool {
        self.sweep(SWEPT_AT_ONCE);
        if self.free.is_empty() && self.slots.len() < LEASES {
            self.free.push(self.slots.len() as u32);
            self.slots.push(LeaseSlot::default());
        }
        if self.free.is_empty() {
            self.sweep(LEASES);
        }
        !self.free.is_empty()
    }

    /// Grants a lease for a frame, if a slot is free.
    fn grant(&mut self, lent: (LentMemory, SegmentNumber)) -> Option<u64> {
        if !self.has_lease() {
            return None;
        }
        let number = self.free.pop()?;
        let slot = &mut self.slots[number as usize];
        if self.returned.returned(number as usize) != slot.generation {
            self.violated.store(true, Ordering::Relaxed);
            return None;
        }
        slot.generation += 1;
        slot.lent = Some(lent);
        self.out.push_back(number);
        Some(u64::from(number) | slot.generation << SLOT_BITS)
    }

    fn take_back(&mut self, lease: u64) {
        let (number, _) = parts(lease);
        self.out.retain(|out| *out as usize != number);
        let slot = &mut self.slots[number];
        slot.lent = None;
        // The peer never receives this generation, so the next grant reuses it.
        slot.generation -= 1;
        self.free.push(number as u32);
    }

    /// Frees the returned leases among the `count` oldest.
    fn sweep(&mut self, count: usize) {
        for _ in 0..count.min(self.out.len()) {
            let Some(number) = self.out.pop_front() else { return };
            let slot = &mut self.slots[number as usize];
            let generation = self.returned.returned(number as usize);
            if generation == slot.generation {
                slot.lent = None;
                self.free.push(number);
                continue;
            }
            // An invalid generation returns nothing.
            self.out.push_back(number);
            if generation != slot.generation - 1 {
                self.violated.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Ends the link: leases not returned by now are in quarantine.
    fn end(&mut self) {
        self.ended = true;
        self.sweep(LEASES);
        for number in &self.out {
            if let Some((LentMemory::Own(frame), _)) = &mut self.slots[*number as usize].lent {
                frame.quarantine();
            }
        }
    }

    /// Returns true if the link has ended and no process can hold anything that was lent.
    fn is_over(&mut self) -> bool {
        self.sweep(LEASES);
        self.ended && (self.out.is_empty() || pipe::has_hung_up(&self.holders))
    }
}

impl Drop for ArenaLender {
    fn drop(&mut self) {
        lock(&self.lent).end();
        reclaim();
    }
}

/// What this process has lent on each link, including ended links whose peers may still hold something.
static LENT_BY_LINK: PerProcess<Mutex<Vec<Arc<Mutex<Lent>>>>> = PerProcess::new(Mutex::default);

/// Frees memory whose leases were returned, or that no process can hold any more.
fn reclaim() {
    let (mut live, mut over) = (lock(LENT_BY_LINK.get()), Vec::new());
    live.retain(|lent| {
        let is_over = lock(lent).is_over();
        if is_over {
            over.push(lent.clone());
        }
        !is_over
    });
    drop(live);
    drop(over); // after the lock: freeing memory takes its time
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

fn parts(lease: u64) -> (usize, u64) {
    ((lease & (LEASES as u64 - 1)) as usize, lease >> SLOT_BITS)
}

fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
