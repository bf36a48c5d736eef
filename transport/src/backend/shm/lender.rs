//! Frames that stay where they are: what this end lends to its peer, and what it borrows.
//!
//! The invariant (M11): a lent block is held until its lease is back, or until nobody can hold it any more. The second is told
//! by a pipe, whose writing end every buffer of the borrower keeps open, and every process that inherited one: never by the
//! silence of a peer, who may only be stopped.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::borrowing;
use super::pipe;
use super::table::{LEASES, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::arena::{self, lendable};
use crate::memory::{Buffer, PeerSegment, Segment};
use crate::process::{PerProcess, Process};
use crate::wire::lending::{Lender, Loan};

/// Bits of a lease's number that say which of the table it is; those above count its turns.
const SLOT_BITS: u32 = 12;
const _: () = assert!(LEASES == 1 << SLOT_BITS, "a slot's number has its bits");
/// Leases that are looked at, oldest first, whenever another is given.
const SWEPT_AT_ONCE: usize = 4;
/// Segments that a peer may show.
const SEGMENTS_MAX: usize = 4096;

/// Both sides of lending on one link between peers that trust each other.
#[derive(Debug)]
pub(super) struct ArenaLender {
    /// Where descriptors travel.
    socket: OwnedFd,
    lent: Arc<Mutex<Lent>>,
    /// Of our segments, which the peer was shown.
    shown: HashSet<u32>,
    borrowed: Borrowed,
}

/// What this end lent, and what tells that it is back.
#[derive(Debug)]
struct Lent {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots in use, oldest first.
    out: VecDeque<u32>,
    /// The peer's words about them.
    returned: Table,
    /// Ends when no process has anything of it any more.
    holders: OwnedFd,
    /// The link has ended: what is out is in quarantine.
    ended: bool,
}

#[derive(Debug, Default)]
struct Slot {
    turn: u64,
    frame: Option<Buffer>,
}

/// What the peer lent.
#[derive(Debug)]
struct Borrowed {
    segments: HashMap<u32, Arc<PeerSegment>>,
    /// The last turn of each slot that came.
    turns: Vec<u64>,
    borrower: Arc<Borrower>,
}

/// What gives leases back, as long as any is out.
#[derive(Debug)]
struct Borrower {
    table: Table,
    _holder: OwnedFd,
    process: Process,
}

/// One loan; it is back when this drops.
#[derive(Debug)]
struct Lease {
    borrower: Arc<Borrower>,
    slot: usize,
    turn: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A forked child's copy says nothing for its parent, who may still read.
        if self.borrower.process.is_this() {
            self.borrower.table.give_back(self.slot, self.turn);
        }
    }
}

impl ArenaLender {
    /// `ours` and `theirs` are the tables of both segments; `holders` ends with the peer's last holder, `holder` is our own part
    /// of its.
    pub(super) fn new(
        socket: OwnedFd,
        (ours, theirs): (Table, Table),
        (holders, holder): (OwnedFd, OwnedFd),
    ) -> Self {
        arena::reclaim_by(reclaim);
        let lent = Lent {
            slots: Vec::new(),
            free: Vec::new(),
            out: VecDeque::new(),
            returned: theirs,
            holders,
            ended: false,
        };
        let lent = Arc::new(Mutex::new(lent));
        lock(LEDGERS.get()).push(lent.clone());
        let borrower = Arc::new(Borrower { table: ours, _holder: holder, process: Process::current() });
        let borrowed = Borrowed { segments: HashMap::new(), turns: Vec::new(), borrower };
        Self { socket, lent, shown: HashSet::new(), borrowed }
    }

    /// Shows the peer a segment, once. False where there is no room for that now.
    fn show(&mut self, segment: &Segment) -> bool {
        if self.shown.contains(&segment.id()) {
            return true;
        }
        let id = segment.id().to_le_bytes();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [segment.descriptor()];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = control.push(SendAncillaryMessage::ScmRights(&descriptors))
            && rustix::net::sendmsg(&self.socket, &[IoSlice::new(&id)], &mut control, flags) == Ok(id.len());
        if sent {
            self.shown.insert(segment.id());
        }
        sent
    }
}

impl Lender for ArenaLender {
    fn lend(&mut self, frame: &Buffer) -> Option<Loan> {
        let (segment, offset) = lendable(frame)?;
        let id = segment.id();
        if !self.show(segment) {
            return None;
        }
        let lease = lock(&self.lent).give(frame.clone())?;
        Some(Loan { segment: id, offset: offset as u64, lease })
    }

    fn take_back(&mut self, loan: Loan) {
        lock(&self.lent).take_back(loan.lease);
    }

    fn borrow(&mut self, loan: Loan, len: usize) -> Result<Buffer> {
        let Borrowed { segments, turns, borrower } = &mut self.borrowed;
        let (slot, turn) = parts(loan.lease);
        if turns.len() <= slot {
            turns.resize(slot + 1, 0);
        }
        // A lease is given again only when it is back.
        let last = turns[slot];
        if turn <= last || borrower.table.back(slot) != last {
            return Err(corrupt("a loan under a lease that is out, or was before"));
        }
        while !segments.contains_key(&loan.segment) {
            if segments.len() >= SEGMENTS_MAX {
                return Err(corrupt("the peer shows too many segments"));
            }
            let (id, segment) = next_shown(&self.socket)?;
            if segments.insert(id, Arc::new(segment)).is_some() {
                return Err(corrupt("the peer shows a segment twice"));
            }
        }
        turns[slot] = turn;
        let lease = Lease { borrower: borrower.clone(), slot, turn };
        let offset = usize::try_from(loan.offset).map_err(|_| corrupt("a loan beyond all memory"))?;
        borrowing::borrow(segments[&loan.segment].clone(), offset, len, Box::new(lease))
    }
}

impl Lent {
    /// Lends a frame under a lease, if one is free.
    fn give(&mut self, frame: Buffer) -> Option<u64> {
        self.sweep(SWEPT_AT_ONCE);
        if self.free.is_empty() && self.slots.len() < LEASES {
            self.free.push(self.slots.len() as u32);
            self.slots.push(Slot::default());
        }
        if self.free.is_empty() {
            self.sweep(LEASES);
        }
        let number = self.free.pop()?;
        let slot = &mut self.slots[number as usize];
        slot.turn += 1;
        slot.frame = Some(frame);
        self.out.push_back(number);
        Some(u64::from(number) | slot.turn << SLOT_BITS)
    }

    fn take_back(&mut self, lease: u64) {
        let (number, _) = parts(lease);
        self.out.retain(|out| *out as usize != number);
        let slot = &mut self.slots[number];
        slot.frame = None;
        // The peer never hears of the turn: the next one follows the last that it knows.
        slot.turn -= 1;
        self.free.push(number as u32);
    }

    /// Frees what is back among the oldest of so many.
    fn sweep(&mut self, count: usize) {
        for _ in 0..count.min(self.out.len()) {
            let Some(number) = self.out.pop_front() else { return };
            let slot = &mut self.slots[number as usize];
            if self.returned.back(number as usize) == slot.turn {
                slot.frame = None;
                self.free.push(number);
            } else {
                self.out.push_back(number);
            }
        }
    }

    /// Whether it is of a link that ended, and nothing of it can be held by anybody.
    fn is_over(&mut self) -> bool {
        self.sweep(LEASES);
        self.ended && (self.out.is_empty() || pipe::has_hung_up(&self.holders))
    }
}

impl Drop for ArenaLender {
    fn drop(&mut self) {
        lock(&self.lent).ended = true;
        reclaim();
    }
}

/// What this process lent, link by link: what the peers of links that ended may still hold, too.
static LEDGERS: PerProcess<Mutex<Vec<Arc<Mutex<Lent>>>>> = PerProcess::new(Mutex::default);

/// Frees what has come back, and what nobody can hold any more.
fn reclaim() {
    let (mut kept, mut over) = (lock(LEDGERS.get()), Vec::new());
    kept.retain(|lent| {
        let is_over = lock(lent).is_over();
        if is_over {
            over.push(lent.clone());
        }
        !is_over
    });
    drop(kept);
    drop(over); // after the lock: freeing memory takes its time
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parts(lease: u64) -> (usize, u64) {
    ((lease & (LEASES as u64 - 1)) as usize, lease >> SLOT_BITS)
}

/// The next segment that the peer showed, which it did before it spoke of it.
fn next_shown(socket: &OwnedFd) -> Result<(u32, PeerSegment)> {
    let (mut id, mut shown) = ([0; 4], None);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut id)], &mut control, flags)
        .map_err(|errno| {
            corrupt("a loan in a segment that was not shown").caused_by(io::Error::from(errno))
        })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            shown = descriptors.next();
        }
    }
    match shown {
        Some(descriptor) if received.bytes == id.len() => {
            let segment = PeerSegment::map(descriptor, isize::MAX as usize / 2)?;
            segment.populate()?;
            Ok((u32::from_le_bytes(id), segment))
        }
        _ => Err(corrupt("the peer showed something that is no segment")),
    }
}

fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
