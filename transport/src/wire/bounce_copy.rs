//! Bounce copies: large frames outside arenas are copied into the bounce arena, from where they are lent. The
//! receiver then needs no copy.
//!
//! A copy is made in parts, so that a poll has a bounded length. The message waits meanwhile.

use crate::memory::{Buffer, BufferMut, Place};
use crate::transfer::message::Message;
use crate::wire::lending::{Lender, Scope};

/// The most bytes that one poll copies.
pub(crate) const BOUNCED_AT_ONCE: usize = 256 << 10;

/// The bounce copies of one message.
#[derive(Debug)]
pub(crate) struct BounceCopy {
    /// The index of each frame, and its copy.
    copies: Vec<(usize, BufferMut)>,
    /// The first copy that is not complete.
    at: usize,
}

impl BounceCopy {
    /// Allocates memory for all copies. Returns `None` if the lender has not enough.
    pub(crate) fn begin(message: &Message, lender: &mut dyn Lender) -> Option<Self> {
        let frames = message.frames().iter().zip(message.table()).enumerate();
        let copied = frames.filter(|(_, (_, info))| Scope::Large.lends(info) && info.place != Place::Arena);
        let room = |(index, (frame, _)): (usize, (&Buffer, _))| {
            let copy = if frame.is_readable() { lender.bounce_copy(frame.len()) } else { None };
            Some((index, copy?))
        };
        Some(Self { copies: copied.map(room).collect::<Option<_>>()?, at: 0 })
    }

    /// Copies the next bytes of the same message, at most `len_max`. Returns how many.
    pub(crate) fn copy(&mut self, message: &Message, len_max: usize) -> usize {
        let mut room = len_max;
        while let Some((index, copy)) = self.copies.get_mut(self.at) {
            let Some(frame) = message.frames()[*index].raw_bytes() else { break };
            let (_, rest) = frame.split_at(copy.len());
            let (part, later) = rest.split_at(rest.len().min(room));
            let copied = copy.fill_with(|spare| Ok(part.copy_to(&mut spare[..part.len()])));
            copied.unwrap_or_else(|_| unreachable!("it has room for its frame"));
            room -= part.len();
            if !later.is_empty() {
                break;
            }
            self.at += 1;
        }
        len_max - room
    }

    /// Returns whether everything is copied.
    pub(crate) fn is_whole(&self) -> bool {
        self.at == self.copies.len()
    }

    /// Returns the copies, in the order of their frames.
    pub(crate) fn finish(self) -> impl Iterator<Item = Buffer> {
        self.copies.into_iter().map(|(_, copy)| copy.freeze())
    }
}
