//! Lending without a link, for fuzzing: one real end, and a simulated hostile peer in the same process.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, socketpair,
};

use super::duplex::{self, Doorbell, segment_len};
use super::lender::ArenaLender;
use super::pipe;
use super::table::LeaseTable;
use crate::error::{Error, Result};
use crate::memory::{Arena, BounceArena, Buffer, Place, Segment};
use crate::platform::environment::clockwork::Clockwork;
use crate::wire::lending::{LENT_FRAME_LEN, Lender, LentFrame};

const RING_LEN: usize = 4096;

/// What a peer exports.
#[derive(Clone, Copy, Debug)]
pub enum Exported {
    /// A complete, sealed segment of [`LendingHarness::SEGMENT_LEN`] bytes.
    Whole,
    /// The same as a forwarded segment, with its pipe.
    Forwarded,
    /// A number alone, which retracts.
    Retract,
    /// The write end of a pipe.
    Pipe,
    /// Two segments in one message.
    Two,
}

/// An end that lends and borrows, and its simulated peer.
#[derive(Debug)]
pub struct LendingHarness {
    lender: ArenaLender,
    arena: Arena,
    /// The peer's end of the Unix socket.
    socket: OwnedFd,
    peer_table: LeaseTable,
    segment: Segment,
    /// The end's lease table, as the peer reads it.
    end_table: LeaseTable,
    /// The peer's write end of the end's holders' pipe.
    _holder: OwnedFd,
}

impl LendingHarness {
    /// The length of the peer's segment.
    pub const SEGMENT_LEN: usize = 16 << 10;

    /// Creates two attached ends. The real end lends from an arena of `arena_len` bytes.
    pub fn new(arena_len: usize) -> Result<Self> {
        let segment = || Segment::create("towline-ring", segment_len(RING_LEN)).map(Arc::new);
        let (ours, theirs) = (segment()?, segment()?);
        let tables = |ours: &Arc<Segment>, theirs: &Arc<Segment>| -> Result<(LeaseTable, LeaseTable)> {
            let (read_end, write_end) = pipe::new()?;
            let shown = theirs.descriptor().try_clone_to_owned()?;
            let ours = (Arc::clone(ours), RING_LEN);
            Ok(duplex::map_rings(ours, (shown, RING_LEN), Doorbell { write_end, read_end })?.1)
        };
        let (peer_table, end_table) = tables(&theirs, &ours)?;
        let (near, socket) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(io_error)?;
        let environment = Arc::new(Clockwork::default());
        let ((holders, _holder), (_, holder)) = (pipe::new()?, pipe::new()?);
        Ok(Self {
            lender: ArenaLender::new(
                near,
                BounceArena::new(0),
                tables(&ours, &theirs)?,
                (holders, holder),
                environment,
            ),
            arena: Arena::new(arena_len)?,
            socket,
            peer_table,
            segment: Segment::create("towline-arena", Self::SEGMENT_LEN)?,
            end_table,
            _holder,
        })
    }

    /// Returns the arena that the end lends from.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Exports `what` from the peer under these bytes of a number, as far as the socket has room.
    pub fn export(&self, number: &[u8], what: Exported) -> Result<()> {
        let pipe = pipe::new()?.1;
        let segment = self.segment.descriptor();
        let descriptors: &[BorrowedFd<'_>] = match what {
            Exported::Whole => &[segment],
            Exported::Forwarded => &[segment, pipe.as_fd()],
            Exported::Pipe => &[pipe.as_fd()],
            Exported::Retract => &[],
            Exported::Two => &[segment, segment],
        };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(number)], &mut control, flags).map_err(io_error)?;
        Ok(())
    }

    /// Makes the end receive what was exported so far, and export what is due.
    pub fn tend(&mut self) -> Result<()> {
        self.lender.tend()
    }

    /// Makes the end borrow this frame.
    pub fn borrow(&mut self, lent_frame: &[u8; LENT_FRAME_LEN], len: usize) -> Result<Buffer> {
        self.lender.borrow(LentFrame::decode(lent_frame), len, Place::Arena)
    }

    /// Returns the generation of the slot's lease that the end returned last.
    pub fn returned(&self, slot: usize) -> u64 {
        self.end_table.returned(slot)
    }

    /// Makes the end lend this frame.
    pub fn lend(&mut self, frame: &Buffer) -> Option<[u8; LENT_FRAME_LEN]> {
        self.lender.lend(frame).map(LentFrame::encode)
    }

    /// Returns a lease of the end's, from the peer.
    pub fn give_back(&self, slot: usize, generation: u64) {
        self.peer_table.give_back(slot, generation);
    }

    /// Returns true if the end has detected an impossible return.
    pub fn has_violated(&self) -> bool {
        self.lender.violated().load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn io_error(errno: rustix::io::Errno) -> Error {
    io::Error::from(errno).into()
}
