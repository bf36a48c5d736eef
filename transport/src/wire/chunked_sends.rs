//! Outgoing transfers sent in chunks. Chunks are handed out in order, to the next stream or as direct
//! transfers. A transfer is complete once all its chunks have left.

use std::collections::VecDeque;

use crate::memory::Buffer;
use crate::wire::record::Transfer;
use crate::wire::send_queue::{DataOwner, DataSource};
use crate::wire::sequence_window::SequenceWindow;

#[derive(Debug)]
pub(crate) struct ChunkedSends {
    chunked_sends: SequenceWindow<ChunkedSend>,
    chunk_len: usize,
    /// Shorter transfers are small.
    large_len_min: u64,
    /// Transfers with chunks to hand out, in turns: small ones for the main stream, large ones for any
    /// stream.
    small: VecDeque<u64>,
    large: VecDeque<u64>,
}

#[derive(Debug)]
struct ChunkedSend {
    data: DataSource,
    len: u64,
    handed_out: u64,
    /// Chunks that were handed out and have not left.
    leaving: usize,
}

/// The next chunk for a stream or for a direct transfer.
#[derive(Debug)]
pub(crate) struct NextChunk {
    /// The number to pass to [`ChunkedSends::left`].
    pub(crate) chunked_send: u64,
    pub(crate) transfer: Transfer,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<Buffer>,
    pub(crate) is_last: bool,
}

impl ChunkedSends {
    /// Creates an empty queue, for several streams or, with `beside`, for direct transfers.
    pub(crate) fn new(chunk_len: usize, beside: bool) -> Self {
        // Transfers shorter than a chunk stay on the main stream: reading a second socket would only cost.
        let large_len_min = if beside { 0 } else { chunk_len as u64 };
        let (small, large) = (VecDeque::new(), VecDeque::new());
        Self { chunked_sends: SequenceWindow::default(), chunk_len, large_len_min, small, large }
    }

    pub(crate) fn push(&mut self, data: DataSource) {
        let len = data.len();
        let queue = if len < self.large_len_min { &mut self.small } else { &mut self.large };
        queue.push_back(self.chunked_sends.push(ChunkedSend { data, len, handed_out: 0, leaving: 0 }));
    }

    /// Returns whether every chunk was handed out.
    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Returns whether a small transfer has chunks to hand out.
    pub(crate) fn has_small(&self) -> bool {
        !self.small.is_empty()
    }

    /// Returns whether a large transfer has chunks to hand out.
    pub(crate) fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// Returns the next chunk of a small transfer.
    pub(crate) fn next_small(&mut self) -> Option<NextChunk> {
        next(&mut self.chunked_sends, &mut self.small, self.chunk_len)
    }

    /// Returns the next chunk of a large transfer.
    pub(crate) fn next_large(&mut self) -> Option<NextChunk> {
        next(&mut self.chunked_sends, &mut self.large, self.chunk_len)
    }

    /// Records that a chunk has left. Returns the owner of the transfer's frames if it was the last chunk.
    pub(crate) fn left(&mut self, id: u64) -> Option<DataOwner> {
        let chunked_send = self.chunked_sends.at(id)?;
        chunked_send.leaving -= 1;
        if chunked_send.leaving > 0 || chunked_send.handed_out < chunked_send.len {
            return None;
        }
        self.chunked_sends.remove(id).map(|chunked_send| chunked_send.data.owner)
    }

    /// Discards all transfers.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = DataSource> + '_ {
        self.small.clear();
        self.large.clear();
        self.chunked_sends.drain().map(|chunked_send| chunked_send.data)
    }
}

/// Returns the next chunk of the first transfer in `queue`, and moves that transfer to the end.
fn next(
    chunked_sends: &mut SequenceWindow<ChunkedSend>,
    queue: &mut VecDeque<u64>,
    chunk_len: usize,
) -> Option<NextChunk> {
    let id = queue.pop_front()?;
    let chunked_send = chunked_sends.at(id)?;
    let (bytes, _) = chunked_send.data.next(chunk_len, usize::MAX);
    let offset = chunked_send.handed_out;
    chunked_send.handed_out += bytes.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
    chunked_send.leaving += 1;
    let is_last = chunked_send.handed_out == chunked_send.len;
    if !is_last {
        queue.push_back(id);
    }
    Some(NextChunk { chunked_send: id, transfer: chunked_send.data.transfer, offset, bytes, is_last })
}
