//! Transfers on their way out in chunks: each hands them out in order, to the stream whose turn it is or to leave by
//! themselves, and has left when all of them have.

use std::collections::VecDeque;

use crate::memory::Buffer;
use crate::wire::record::Transfer;
use crate::wire::send_queue::{DataSource, Source};
use crate::wire::sequence_window::SequenceWindow;

#[derive(Debug)]
pub(crate) struct Spreads {
    spreads: SequenceWindow<Spread>,
    chunk_len: usize,
    /// What is shorter is small.
    large_len_min: u64,
    /// Those with chunks to hand out, which take turns: small ones, for the main stream, and large ones, for any.
    small: VecDeque<u64>,
    large: VecDeque<u64>,
}

#[derive(Debug)]
struct Spread {
    data: DataSource,
    len: u64,
    handed_out: u64,
    /// Chunks that were handed out and have not left.
    leaving: usize,
}

/// What one stream shall carry, or leaves by itself.
#[derive(Debug)]
pub(crate) struct NextChunk {
    /// Whom to tell that it left.
    pub(crate) spread: u64,
    pub(crate) transfer: Transfer,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<Buffer>,
    pub(crate) is_last: bool,
}

impl Spreads {
    /// Over streams, or, `beside` them, to leave by themselves.
    pub(crate) fn new(chunk_len: usize, beside: bool) -> Self {
        // What is shorter than a chunk stays on the main stream: a second socket to read would only cost.
        let large_len_min = if beside { 0 } else { chunk_len as u64 };
        let (small, large) = (VecDeque::new(), VecDeque::new());
        Self { spreads: SequenceWindow::default(), chunk_len, large_len_min, small, large }
    }

    pub(crate) fn push(&mut self, data: DataSource) {
        let len = data.len();
        let queue = if len < self.large_len_min { &mut self.small } else { &mut self.large };
        queue.push_back(self.spreads.push(Spread { data, len, handed_out: 0, leaving: 0 }));
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
        next(&mut self.spreads, &mut self.small, self.chunk_len)
    }

    /// The next chunk of a large transfer.
    pub(crate) fn next_large(&mut self) -> Option<NextChunk> {
        next(&mut self.spreads, &mut self.large, self.chunk_len)
    }

    /// A chunk left; hands out the transfer's source if it was the last.
    pub(crate) fn left(&mut self, id: u64) -> Option<Source> {
        let spread = self.spreads.at(id)?;
        spread.leaving -= 1;
        if spread.leaving > 0 || spread.handed_out < spread.len {
            return None;
        }
        self.spreads.remove(id).map(|spread| spread.data.source)
    }

    /// Gives everything up.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = DataSource> + '_ {
        self.small.clear();
        self.large.clear();
        self.spreads.drain().map(|spread| spread.data)
    }
}

/// The next chunk of the first transfer in `queue`, which goes to its end.
fn next(
    spreads: &mut SequenceWindow<Spread>,
    queue: &mut VecDeque<u64>,
    chunk_len: usize,
) -> Option<NextChunk> {
    let id = queue.pop_front()?;
    let spread = spreads.at(id)?;
    let (bytes, _) = spread.data.next(chunk_len, usize::MAX);
    let offset = spread.handed_out;
    spread.handed_out += bytes.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
    spread.leaving += 1;
    let is_last = spread.handed_out == spread.len;
    if !is_last {
        queue.push_back(id);
    }
    Some(NextChunk { spread: id, transfer: spread.data.transfer, offset, bytes, is_last })
}
