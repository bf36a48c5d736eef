//! Transfers that arrive in chunks, in any order. Each chunk is claimed once by the stream that reads it,
//! which owns the chunk's part of the destination until the chunk is complete.

use crate::error::Result;
use crate::memory::BufferMut;
use crate::wire::record::{DATA_LEN_MAX, Transfer, corrupt};

/// The length of a chunk if there are several streams, in bytes. Short in tests and fuzzing, so that their
/// payload has several chunks as well.
pub(crate) const CHUNK_LEN: usize = if cfg!(any(test, fuzzing)) { 16 << 10 } else { DATA_LEN_MAX };

/// The destination of one chunk: parts of buffers, each with the number of bytes to append. Empty if the
/// chunk goes to a region.
pub(crate) type ChunkParts = Vec<(BufferMut, usize)>;

/// A destination, split into chunks of one length; the last one may be shorter.
#[derive(Debug)]
pub(crate) struct Chunks {
    chunk_len: usize,
    states: Vec<ChunkState>,
    len: u64,
    missing: u64,
}

#[derive(Debug)]
enum ChunkState {
    Free(ChunkParts),
    /// A stream is reading the chunk.
    Claimed,
    Landed(ChunkParts),
}

impl Chunks {
    /// Splits buffers into chunks. Each buffer takes the given number of bytes after those it holds.
    /// [`join`](Self::join) rejoins them.
    pub(crate) fn cut<'a>(
        buffers: impl Iterator<Item = (&'a mut BufferMut, usize)>,
        chunk_len: usize,
    ) -> Self {
        let (mut states, mut parts, mut room, mut len) = (Vec::new(), Vec::new(), chunk_len, 0);
        for (buffer, mut wanted) in buffers.filter(|(_, wanted)| *wanted > 0) {
            len += wanted as u64;
            let mut rest = buffer.split_off(buffer.len());
            while wanted > 0 {
                let part_len = wanted.min(room);
                // Capacity beyond the frame stays with the last part.
                let more = rest.split_off(if part_len == wanted { rest.capacity() } else { part_len });
                parts.push((std::mem::replace(&mut rest, more), part_len));
                wanted -= part_len;
                room -= part_len;
                if room == 0 {
                    states.push(ChunkState::Free(std::mem::take(&mut parts)));
                    room = chunk_len;
                }
            }
        }
        if !parts.is_empty() {
            states.push(ChunkState::Free(parts));
        }
        Self { chunk_len, states, len, missing: len }
    }

    /// Returns the chunks of a region range of `len` bytes.
    pub(crate) fn of_region(len: usize, chunk_len: usize) -> Self {
        let states = (0..len.div_ceil(chunk_len)).map(|_| ChunkState::Free(ChunkParts::new())).collect();
        Self { chunk_len, states, len: len as u64, missing: len as u64 }
    }

    /// Claims a chunk. Fails if the offset and length are not those of a chunk, or if it was claimed before.
    pub(crate) fn claim(&mut self, offset: u64, len: usize) -> Result<ChunkParts> {
        let fits = offset.is_multiple_of(self.chunk_len as u64)
            && offset < self.len
            && len as u64 == self.len_at(offset);
        if !fits {
            return Err(corrupt(format!(
                "{len} bytes at offset {offset} are not a chunk of a transfer of {} bytes",
                self.len
            )));
        }
        let state = self.state_at(offset);
        match std::mem::replace(state, ChunkState::Claimed) {
            ChunkState::Free(parts) => Ok(parts),
            other => {
                *state = other;
                Err(corrupt(format!("the chunk at offset {offset} arrived twice")))
            }
        }
    }

    /// Returns whether no chunk was claimed yet.
    pub(crate) fn are_untouched(&self) -> bool {
        self.states.iter().all(|state| matches!(state, ChunkState::Free(_)))
    }

    /// Completes a claimed chunk. Returns true if it was the last one.
    pub(crate) fn landed(&mut self, offset: u64, parts: ChunkParts) -> bool {
        self.missing -= self.len_at(offset);
        self.put_back(offset, parts);
        self.missing == 0
    }

    /// Returns the parts of a claimed chunk that will not arrive.
    pub(crate) fn put_back(&mut self, offset: u64, parts: ChunkParts) {
        *self.state_at(offset) = ChunkState::Landed(parts);
    }

    /// Returns the length of the chunk at `offset`, a multiple of the chunk length.
    fn len_at(&self, offset: u64) -> u64 {
        (self.len - offset).min(self.chunk_len as u64)
    }

    fn state_at(&mut self, offset: u64) -> &mut ChunkState {
        &mut self.states[(offset / self.chunk_len as u64) as usize]
    }

    /// Rejoins the buffers: filled if every chunk has arrived, otherwise unchanged.
    pub(crate) fn join<'a>(self, buffers: impl Iterator<Item = (&'a mut BufferMut, usize)>) {
        let is_whole = self.missing == 0;
        let mut parts = self.states.into_iter().flat_map(|state| match state {
            ChunkState::Free(parts) | ChunkState::Landed(parts) => parts,
            ChunkState::Claimed => unreachable!("a claimed chunk is returned first"),
        });
        for (buffer, mut wanted) in buffers {
            while wanted > 0 {
                let Some((mut part, len)) = parts.next() else { return };
                if !is_whole {
                    part.clear();
                }
                let joined = buffer.rejoin(part);
                assert!(joined.is_ok(), "parts are joined in the order they were cut");
                wanted -= len;
            }
        }
    }
}

/// A chunk that is being received.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) transfer: Transfer,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) remaining: usize,
    pub(crate) parts: ChunkParts,
    /// The first part that is not full.
    first: usize,
    /// Some of its bytes were discarded because the region was revoked.
    pub(crate) revoked: bool,
}

impl Chunk {
    pub(crate) fn new(transfer: Transfer, offset: u64, len: usize, parts: ChunkParts) -> Self {
        Self { transfer, offset, len, remaining: len, parts, first: 0, revoked: false }
    }

    /// Returns the offset of the next byte in its transfer.
    pub(crate) fn at(&self) -> usize {
        self.offset as usize + self.len - self.remaining
    }

    /// Returns where the next bytes go: at most `buffers_max` buffers, each with the number of bytes it still
    /// takes.
    pub(crate) fn room(&mut self, buffers_max: usize) -> Vec<(&mut BufferMut, usize)> {
        let open = self.parts[self.first..].iter_mut().take(buffers_max);
        open.map(|(part, len)| {
            let missing = *len - part.len();
            (part, missing)
        })
        .collect()
    }

    /// Records that `len` bytes have been written or, if `revoked`, discarded.
    pub(crate) fn advance(&mut self, len: usize, revoked: bool) {
        self.remaining -= len;
        self.revoked |= revoked;
        while self.parts.get(self.first).is_some_and(|(part, len)| part.len() == *len) {
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const WANTED: [usize; 5] = [CHUNK_LEN - 1, 0, 3, 2 * CHUNK_LEN, 7];

    fn buffers() -> Vec<BufferMut> {
        // One buffer has more capacity than its frame, another is partly filled.
        let mut buffers: Vec<_> = WANTED.map(|wanted| BufferMut::with_capacity(wanted + 5)).into();
        buffers[2].extend_from_slice(b"ab").unwrap();
        buffers
    }

    fn cut(buffers: &mut [BufferMut]) -> Chunks {
        Chunks::cut(buffers.iter_mut().zip(WANTED), CHUNK_LEN)
    }

    #[test]
    fn chunks_in_any_order_fill_the_buffers() {
        let mut whole = buffers();
        let mut chunks = cut(&mut whole);
        let total: usize = WANTED.iter().sum();
        let starts: Vec<_> = (0..total).step_by(CHUNK_LEN).collect();
        for start in starts.iter().rev() {
            let len = CHUNK_LEN.min(total - start);
            let mut parts = chunks.claim(*start as u64, len).unwrap();
            let mut at = *start;
            for (part, len) in &mut parts {
                let bytes: Vec<_> = (at..at + *len).map(|at| at as u8).collect();
                part.extend_from_slice(&bytes).unwrap();
                at += *len;
            }
            assert_eq!(chunks.landed(*start as u64, parts), *start == 0);
        }
        chunks.join(whole.iter_mut().zip(WANTED));
        let mut at = 0;
        for (buffer, (index, wanted)) in whole.iter().zip(WANTED.into_iter().enumerate()) {
            assert_eq!(buffer.capacity(), wanted + 5);
            let filled = buffer.as_slice().unwrap();
            let came = filled.strip_prefix(if index == 2 { &b"ab"[..] } else { b"" }).unwrap();
            assert_eq!(came.len(), wanted);
            assert!(came.iter().enumerate().all(|(i, byte)| *byte == (at + i) as u8), "buffer {index}");
            at += wanted;
        }
    }

    #[test]
    fn buffers_return_unchanged_if_a_chunk_is_missing() {
        let mut whole = buffers();
        let mut chunks = cut(&mut whole);
        let mut parts = chunks.claim(0, CHUNK_LEN).unwrap();
        parts[0].0.extend_from_slice(b"half").unwrap();
        chunks.put_back(0, parts);
        chunks.join(whole.iter_mut().zip(WANTED));
        let found: Vec<_> = whole.iter().map(|buffer| (buffer.len(), buffer.capacity())).collect();
        let before: Vec<_> = buffers().iter().map(|buffer| (buffer.len(), buffer.capacity())).collect();
        assert_eq!(found, before);
    }

    #[test]
    fn invalid_or_repeated_chunks_are_corrupt() {
        let mut chunks = Chunks::of_region(CHUNK_LEN + 10, CHUNK_LEN);
        let chunk = CHUNK_LEN as u64;
        for (offset, len) in [
            (1, 10),
            (0, 10),
            (chunk, 9),
            (chunk, 11),
            (2 * chunk, 10),
            (u64::MAX - (chunk - 1), 10),
            (chunk, CHUNK_LEN),
        ] {
            assert_eq!(chunks.claim(offset, len).unwrap_err().kind(), ErrorKind::Corrupt, "{offset} {len}");
        }
        let parts = chunks.claim(chunk, 10).unwrap();
        assert_eq!(chunks.claim(chunk, 10).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(!chunks.landed(chunk, parts));
        assert_eq!(chunks.claim(chunk, 10).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
