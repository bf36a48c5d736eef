//! A message on its way into memory that is lent: its large frames beside arenas are copied there, once for both ends.
//!
//! The copy is made in parts, so that whoever polls goes on between two of them; nothing else of the message moves meanwhile.

use crate::memory::{Buffer, BufferMut, Place};
use crate::transfer::message::Message;
use crate::wire::lending::{Lender, Scope};

/// What one poll copies at most.
pub(crate) const BOUNCED_AT_ONCE: usize = 256 << 10;

/// The copies of one message's frames.
#[derive(Debug)]
pub(crate) struct BounceCopy {
    /// Which frame each is of.
    copies: Vec<(usize, BufferMut)>,
    /// The first that is not whole.
    at: usize,
}

impl BounceCopy {
    /// Room for all of them, or `None` where the lender has not that much.
    pub(crate) fn begin(message: &Message, lender: &mut dyn Lender) -> Option<Self> {
        let frames = message.frames().iter().zip(message.table()).enumerate();
        let copied = frames.filter(|(_, (_, info))| Scope::Large.lends(info) && info.place != Place::Arena);
        let room = |(index, (frame, _)): (usize, (&Buffer, _))| {
            frame.as_slice()?;
            Some((index, lender.bounce_copy(frame.len())?))
        };
        Some(Self { copies: copied.map(room).collect::<Option<_>>()?, at: 0 })
    }

    /// Copies what comes next of the same message, so much at most, and tells how much it was.
    pub(crate) fn copy(&mut self, message: &Message, len_max: usize) -> usize {
        let mut room = len_max;
        while let Some((index, copy)) = self.copies.get_mut(self.at) {
            let frame = message.frames()[*index].as_slice().unwrap_or_default();
            let rest = &frame[copy.len()..];
            let part = &rest[..rest.len().min(room)];
            copy.extend_from_slice(part).unwrap_or_else(|_| unreachable!("it has room for its frame"));
            room -= part.len();
            if part.len() < rest.len() {
                break;
            }
            self.at += 1;
        }
        len_max - room
    }

    /// Whether all of it is copied.
    pub(crate) fn is_whole(&self) -> bool {
        self.at == self.copies.len()
    }

    /// The copies, in the order of their frames.
    pub(crate) fn finish(self) -> impl Iterator<Item = Buffer> {
        self.copies.into_iter().map(|(_, copy)| copy.freeze())
    }
}
