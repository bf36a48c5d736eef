//! Transfers on their way out over several streams: each hands out chunks in order, to the stream whose turn it is, and
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
    /// Those with chunks to hand out, which take turns: small ones, for the main stream, and large ones, for any.
    small: VecDeque<u64>,
    large: VecDeque<u64>,
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
        // What is shorter than a chunk stays on the main stream: a second socket to read would only cost.
        let queue = if len < CHUNK_LEN as u64 { &mut self.small } else { &mut self.large };
        queue.push_back(self.spreads.push(Spread { bulk, len, handed_out: 0, leaving: 0 }));
    }

    /// Whether every chunk was handed out.
    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Whether a chunk of a small transfer is left to hand out.
    pub(crate) fn has_small(&self) -> bool {
        !self.small.is_empty()
    }

    /// Whether a chunk of a large transfer is left to hand out.
    pub(crate) fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// The next chunk of a small transfer.
    pub(crate) fn next_small(&mut self) -> Option<NextChunk> {
        next(&mut self.spreads, &mut self.small)
    }

    /// The next chunk of a large transfer.
    pub(crate) fn next_large(&mut self) -> Option<NextChunk> {
        next(&mut self.spreads, &mut self.large)
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
        self.small.clear();
        self.large.clear();
        self.spreads.drain().map(|spread| spread.bulk)
    }
}

/// The next chunk of the first transfer in `queue`, which goes to its end.
fn next(spreads: &mut Ledger<Spread>, queue: &mut VecDeque<u64>) -> Option<NextChunk> {
    let id = queue.pop_front()?;
    let spread = spreads.at(id)?;
    let (bytes, _) = spread.bulk.next(CHUNK_LEN, usize::MAX);
    let offset = spread.handed_out;
    spread.handed_out += bytes.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
    spread.leaving += 1;
    if spread.handed_out < spread.len {
        queue.push_back(id);
    }
    Some(NextChunk { spread: id, transfer: spread.bulk.transfer, offset, bytes })
}
