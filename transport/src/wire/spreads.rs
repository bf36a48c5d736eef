//! Transfers on their way out over several streams: each hands out chunks in order, to whichever stream takes the next, and
//! has left when all of them have.

use std::collections::VecDeque;

use crate::memory::Buffer;
use crate::wire::chunks::CHUNK_LEN;
use crate::wire::ledger::Ledger;
use crate::wire::outbox::{Bulk, Source};
use crate::wire::record::Transfer;

#[derive(Debug, Default)]
pub(crate) struct Spreads {
    spreads: Ledger<Spread>,
    /// Those with chunks to hand out, which take turns.
    queue: VecDeque<u64>,
}

#[derive(Debug)]
struct Spread {
    bulk: Bulk,
    len: u64,
    handed_out: u64,
    /// Chunks that are with a stream and have not left.
    leaving: usize,
}

/// What one stream shall carry.
#[derive(Debug)]
pub(crate) struct NextChunk {
    /// Whom to tell that it left.
    pub(crate) spread: u64,
    pub(crate) transfer: Transfer,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<Buffer>,
}

impl Spreads {
    pub(crate) fn push(&mut self, bulk: Bulk) {
        let len = bulk.len();
        self.queue.push_back(self.spreads.push(Spread { bulk, len, handed_out: 0, leaving: 0 }));
    }

    /// Whether every chunk was handed out.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a chunk is left for a strand.
    pub(crate) fn has_large(&mut self) -> bool {
        self.queue.iter().any(|id| self.spreads.at(*id).is_some_and(|spread| spread.is_large()))
    }

    /// The next chunk; for a strand, none of a small transfer.
    pub(crate) fn next(&mut self, is_strand: bool) -> Option<NextChunk> {
        let fits = |id: &u64| self.spreads.at(*id).is_some_and(|spread| !is_strand || spread.is_large());
        let at = self.queue.iter().position(fits)?;
        let id = self.queue.remove(at)?;
        let spread = self.spreads.at(id)?;
        let (bytes, _) = spread.bulk.next(CHUNK_LEN, usize::MAX);
        let offset = spread.handed_out;
        spread.handed_out += bytes.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        spread.leaving += 1;
        if spread.handed_out < spread.len {
            self.queue.push_back(id);
        }
        Some(NextChunk { spread: id, transfer: spread.bulk.transfer, offset, bytes })
    }

    /// A chunk left; hands out the transfer's source if it was the last.
    pub(crate) fn left(&mut self, id: u64) -> Option<Source> {
        let spread = self.spreads.at(id)?;
        spread.leaving -= 1;
        if spread.leaving > 0 || spread.handed_out < spread.len {
            return None;
        }
        self.spreads.remove(id).map(|spread| spread.bulk.source)
    }

    /// Gives everything up.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Bulk> + '_ {
        self.queue.clear();
        self.spreads.drain().map(|spread| spread.bulk)
    }
}

impl Spread {
    /// What is shorter than a chunk stays on the main stream: a second socket to read would only cost.
    fn is_large(&self) -> bool {
        self.len >= CHUNK_LEN as u64
    }
}
