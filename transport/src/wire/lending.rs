//! Frames that stay where they are: a peer that reaches our arenas by itself is lent a frame in them, and gives it back.
//!
//! The session writes and reads what is said about loans, and the link brings a [`Lender`], which knows the memory. How a
//! frame comes back is between the two lenders: it is no business of the session's.

#[cfg(any(test, feature = "internals"))]
pub(crate) mod model;

use std::fmt::Debug;

use crate::error::Result;
use crate::memory::{Buffer, BufferMut, Place};
use crate::transfer::message::{EAGER_LEN_MAX, FRAMES_MAX, FrameInfo, HEADER_LEN_MAX, Message};
use crate::wire::credit::WINDOW;
use crate::wire::record::cost;

/// A loan in an announcement.
pub(crate) const LENT_FRAME_LEN: usize = 20;
/// The most loans of one message.
pub(crate) const LENT_FRAMES_MAX: usize = 16_384;
/// Frames in arenas that are less than this, all together, travel as others do: a copy of so little costs less than what it
/// takes to give a loan back.
pub(crate) const LENT_LEN_MIN: u64 = 1 << 10;
/// A message of which less is to be lent is not deposited: two copies side by side take hardly longer.
pub(crate) const BOUNCED_LEN_MIN: u64 = 32 << 10;
/// What is shorter and in no arena travels beside what is deposited.
const BOUNCED_FRAME_LEN_MIN: usize = 4 << 10;

const _: () = {
    let longest = (LENT_FRAMES_MAX * LENT_FRAME_LEN) as u64 + EAGER_LEN_MAX;
    assert!(cost(HEADER_LEN_MAX, FRAMES_MAX, longest) <= WINDOW.bytes, "it could never be announced");
};

/// Where the peer finds a frame, and the number under which it gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LentFrame {
    pub(crate) segment: u32,
    pub(crate) offset: u64,
    pub(crate) lease: u64,
}

/// Which frames of a lent message have a loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those in arenas.
    Arenas,
    /// Those, and large ones that are elsewhere: they were deposited, that is copied to where they can be lent.
    Large,
}

impl Scope {
    pub(crate) fn lends(self, frame: &FrameInfo) -> bool {
        match frame.place {
            Place::Arena => frame.len > 0,
            _ => self == Self::Large && frame.len >= BOUNCED_FRAME_LEN_MIN,
        }
    }

    /// The bytes behind the header of a message that may be lent so: its loans and its other frames. `None` where it may not.
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

/// Both sides of lending: what we lend to the peer, and what it lends to us. Where it is dropped, the connection is over: it
/// sees to whatever the peer still has.
pub(crate) trait Lender: Debug + Send {
    /// Lends a frame, which stays as it is until the peer gives it back: a handle is kept here, so that its memory is not
    /// used again meanwhile. `None` if it has to travel: it is not in memory that this end lends, or no lease is free.
    fn lend(&mut self, frame: &Buffer) -> Option<LentFrame>;

    /// Room for a copy of `len` bytes, not 0, which is then lent in the stead of what is in memory that this end does not lend.
    /// `None` where there is no room now, or no lease.
    fn bounce_copy(&mut self, len: usize) -> Option<BufferMut>;

    /// Undoes a loan, the session's own of before, that the peer has not heard of and never will.
    fn take_back(&mut self, lent_frame: LentFrame);

    /// What the peer lends, as a buffer of exactly `len` bytes, not 0, in `place`, [`Place::Arena`] or [`Place::Host`], that
    /// gives it back when its last handle drops. `len` comes from the frame table; nothing of the loan was checked before.
    ///
    /// # Errors
    /// `Corrupt` for a loan that the peer cannot have made, or whatever kept us from reaching it: either ends the connection.
    fn borrow(&mut self, lent_frame: LentFrame, len: usize, place: Place) -> Result<Buffer>;

    /// Time passed. Called several times a heartbeat.
    ///
    /// # Errors
    /// `Corrupt` for what the peer cannot have said meanwhile, or whatever kept us from hearing it: either ends the connection.
    fn tend(&mut self) -> Result<()> {
        Ok(())
    }
}

impl LentFrame {
    pub(crate) fn encode(self) -> [u8; LENT_FRAME_LEN] {
        let mut bytes = [0; LENT_FRAME_LEN];
        bytes[..4].copy_from_slice(&self.segment.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..].copy_from_slice(&self.lease.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; LENT_FRAME_LEN]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        Self { segment: word(0) as u32, offset: word(4), lease: word(12) }
    }
}
