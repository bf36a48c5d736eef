//! Payload that arrives in chunks, in any order.

use super::{Filling, IncomingMessage, ReceiveState, Receives};
use crate::error::Result;
use crate::memory::{BufferMut, Pool};
use crate::wire::chunks::ChunkParts;
use crate::wire::credit::WINDOW;
use crate::wire::record::corrupt;

impl Receives {
    /// Makes payload arrive in chunks of `chunk_len` bytes, in any order.
    pub(crate) fn stripe(&mut self, chunk_len: usize) {
        self.chunk_len = Some(chunk_len);
    }

    /// Allocates a staging buffer for a chunk.
    pub(crate) fn staging(&self, len: usize) -> Result<BufferMut> {
        self.pool.take(len).or_else(|_| Pool::new(0).take(len))
    }

    /// Returns whether a message with this number may still be announced.
    pub(crate) fn may_come(&self, id: u64) -> bool {
        (self.messages.next()..self.messages.next() + WINDOW.messages).contains(&id)
    }

    /// Claims the buffers of an arriving chunk.
    pub(crate) fn claim(&mut self, id: u64, offset: u64, len: usize) -> Result<ChunkParts> {
        match self.messages.at(id) {
            Some(IncomingMessage {
                state: ReceiveState::Filling(Filling { chunks: Some(chunks), .. }),
                ..
            }) => chunks.claim(offset, len),
            _ => Err(corrupt(format!("{len} bytes of unexpected data for message {id}"))),
        }
    }

    /// Returns the frame that a message's payload at `at` belongs to, and the offset in it.
    pub(crate) fn frame_at(&mut self, id: u64, mut at: u64) -> (usize, u64) {
        let Some(IncomingMessage { lens, state: ReceiveState::Filling(filling), .. }) = self.messages.at(id)
        else {
            return (0, at);
        };
        for (frame, (buffer, len)) in filling.buffers().iter().zip(lens).enumerate() {
            let len = if buffer.is_some() { *len as u64 } else { 0 };
            if at < len {
                return (frame, at);
            }
            at -= len;
        }
        (0, at)
    }

    /// Completes a chunk.
    pub(crate) fn chunk_landed(&mut self, id: u64, offset: u64, parts: ChunkParts) {
        let Some(IncomingMessage { state: ReceiveState::Filling(filling), .. }) = self.messages.at(id) else {
            return;
        };
        if filling.chunks.as_mut().is_some_and(|chunks| chunks.landed(offset, parts)) {
            self.complete(id);
        }
    }

    /// Returns the buffers of a chunk that will not arrive.
    pub(crate) fn put_back(&mut self, id: u64, offset: u64, parts: ChunkParts) {
        if let Some(IncomingMessage {
            state: ReceiveState::Filling(Filling { chunks: Some(chunks), .. }),
            ..
        }) = self.messages.at(id)
        {
            chunks.put_back(offset, parts);
        }
    }
}
