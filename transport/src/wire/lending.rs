//! Lending: a peer that can map our arenas borrows a frame in place, and returns it later.
//!
//! The session encodes and decodes lent frames. The link provides a [`Lender`], which manages the memory. The
//! two lenders return leases between them, without the session.

#[cfg(any(test, feature = "internals"))]
pub(crate) mod model;

use std::fmt::Debug;

use crate::error::Result;
use crate::memory::{Buffer, BufferMut, Place};
use crate::transfer::message::{EAGER_LEN_MAX, FRAMES_MAX, FrameInfo, HEADER_LEN_MAX, Message};
use crate::wire::credit::WINDOW;
use crate::wire::record::cost;

/// The length of a lent frame in an announcement, in bytes.
pub(crate) const LENT_FRAME_LEN: usize = 20;
/// The bit beside a segment's number that says that others may write the frame. Numbers are below it.
const FOREIGN: u32 = 1 << 31;
/// The highest number of a segment.
pub(crate) const SEGMENT_MAX: u32 = FOREIGN - 1;
/// The most lent frames of one message.
pub(crate) const LENT_FRAMES_MAX: usize = 16_384;
/// Arena frames with a total below this are sent as payload: a copy this short costs less than returning a
/// lease.
pub(crate) const LENT_LEN_MIN: u64 = 1 << 10;
/// A message with less to lend gets no bounce copy: copying at both ends in parallel takes hardly longer.
pub(crate) const BOUNCED_LEN_MIN: u64 = 32 << 10;
/// Shorter frames outside arenas are sent as payload, next to the bounce copies.
const BOUNCED_FRAME_LEN_MIN: usize = 4 << 10;

const _: () = {
    let longest = (LENT_FRAMES_MAX * LENT_FRAME_LEN) as u64 + EAGER_LEN_MAX;
    assert!(cost(HEADER_LEN_MAX, FRAMES_MAX, longest) <= WINDOW.bytes, "a message must fit the window");
};

/// Where the peer finds a frame, and the lease number under which the peer returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LentFrame {
    pub(crate) segment: u32,
    pub(crate) offset: u64,
    pub(crate) lease: u64,
    /// Others may write the frame while it is lent.
    pub(crate) is_foreign: bool,
}

/// Which frames of a lent message are lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those in arenas.
    Arenas,
    /// Those in arenas, and large frames elsewhere, which are copied into the bounce arena.
    Large,
}

impl Scope {
    pub(crate) fn lends(self, frame: &FrameInfo) -> bool {
        match frame.place {
            Place::Arena => frame.len > 0,
            _ => self == Self::Large && frame.len >= BOUNCED_FRAME_LEN_MIN,
        }
    }

    /// Returns the length in the record after the header of a message lent in this scope: its lent frames,
    /// and the payload of the other frames. Returns `None` if it cannot be lent.
    pub(crate) fn len_of(self, message: &Message) -> Option<u64> {
        let (mut lent_frames, mut lent, mut rest) = (0, 0, 0);
        for frame in message.table() {
            if self.lends(&frame) {
                lent_frames += 1;
                lent += frame.len as u64;
            } else {
                rest += frame.len as u64;
            }
        }
        let lent_min = match self {
            Self::Arenas => LENT_LEN_MIN,
            Self::Large => BOUNCED_LEN_MIN,
        };
        let may_be = lent >= lent_min && lent_frames <= LENT_FRAMES_MAX && rest < EAGER_LEN_MAX;
        may_be.then_some((lent_frames * LENT_FRAME_LEN) as u64 + rest)
    }
}

/// Lends our frames to the peer, and borrows the peer's. Dropped when the connection ends: the lender then
/// recovers what the peer still has.
pub(crate) trait Lender: Debug + Send {
    /// Lends a frame. The lender keeps a handle, so the memory stays in use, and unchanged unless it is foreign,
    /// until the peer returns the lease. Returns `None` if the frame must be sent: it is not in lendable memory, or no lease is free.
    fn lend(&mut self, frame: &Buffer) -> Option<LentFrame>;

    /// Allocates memory for a bounce copy of `len` bytes, not 0, to be lent instead of a frame that cannot
    /// be. Returns `None` if there is no memory or no lease now.
    fn bounce_copy(&mut self, len: usize) -> Option<BufferMut>;

    /// Takes back a frame that this session lent, but whose announcement the peer has not received and never
    /// will.
    fn take_back(&mut self, lent_frame: LentFrame);

    /// Borrows a frame of the peer as a buffer of exactly `len` bytes, not 0, in `place`, [`Place::Arena`] or
    /// [`Place::Host`]. The last handle of the buffer returns the lease. `len` comes from the frame table;
    /// the lent frame is not validated before.
    ///
    /// # Errors
    /// `Corrupt` if the peer cannot have lent such a frame, or the error that kept this end from mapping it.
    /// Either ends the connection.
    fn borrow(&mut self, lent_frame: LentFrame, len: usize, place: Place) -> Result<Buffer>;

    /// Checks leases. Called several times a heartbeat.
    ///
    /// # Errors
    /// `Corrupt` if the peer violated the lending protocol, or the error that kept this end from reading its
    /// state. Either ends the connection.
    fn tend(&mut self) -> Result<()> {
        Ok(())
    }
}

impl LentFrame {
    pub(crate) fn encode(self) -> [u8; LENT_FRAME_LEN] {
        let mut bytes = [0; LENT_FRAME_LEN];
        let foreign = if self.is_foreign { FOREIGN } else { 0 };
        bytes[..4].copy_from_slice(&(self.segment | foreign).to_le_bytes());
        bytes[4..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..].copy_from_slice(&self.lease.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; LENT_FRAME_LEN]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let segment = word(0) as u32;
        let is_foreign = segment & FOREIGN != 0;
        Self { segment: segment & !FOREIGN, offset: word(4), lease: word(12), is_foreign }
    }
}
