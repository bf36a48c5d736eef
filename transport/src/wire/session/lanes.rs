//! The additional streams of a connection. Lanes carry chunks of data, the main stream carries records as
//! well.

use super::decoder::{Decoder, Reading};
use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::memory::RawBytes;
use crate::wire::chunked_sends::{ChunkedSends, NextChunk};
use crate::wire::chunks::{CHUNK_LEN, Chunk};
use crate::wire::one_sided::OneSided;
use crate::wire::record::Transfer;
use crate::wire::send_queue::{DataOwner, Ending, SendQueue};
use crate::wire::sends::Sends;

/// All lanes of one end, and the transfers that are striped over them and the main stream.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) decoders: Vec<Decoder>,
    senders: Vec<LaneSender>,
    pub(super) chunked_sends: ChunkedSends,
    /// The stream that takes the next chunk of a large transfer: the first that is not full.
    next_stream: usize,
    /// The number of streams on which our close marker or `Close` has been sent.
    closed: usize,
}

#[derive(Debug)]
struct LaneSender {
    send_queue: SendQueue,
    /// Our close marker is queued or has been sent.
    close_queued: bool,
}

impl Lanes {
    /// Returns whether there is a chunk for a stream.
    pub(super) fn has_chunk_for(&self, stream: usize) -> bool {
        (self.next_stream == stream && self.chunked_sends.has_large())
            || (stream == 0 && self.chunked_sends.has_small())
    }

    /// Returns whether the peer's close marker has arrived on every lane.
    pub(super) fn have_ended(&self) -> bool {
        self.decoders.iter().all(|decoder| matches!(decoder.reading, Reading::Ended))
    }
}

/// Runs an ending, once everything before it has been sent.
pub(super) fn due(
    ending: Ending,
    (sends, one_sided): (&mut Sends, &mut OneSided),
    closing: &mut Closing,
    lanes: &mut Option<Box<Lanes>>,
) {
    let ending = match (ending, lanes.as_mut()) {
        (Ending::Chunk(chunked_send), Some(lanes)) => {
            lanes.chunked_sends.left(chunked_send).and_then(DataOwner::ending)
        }
        (ending, _) => Some(ending),
    };
    match ending {
        Some(Ending::Sent(id, message)) => sends.left(id, message),
        Some(Ending::Replied(_)) => one_sided.replied(1),
        Some(Ending::Closed) => {
            let all_closed = lanes.as_mut().is_none_or(|lanes| {
                lanes.closed += 1;
                lanes.closed > lanes.senders.len()
            });
            if all_closed {
                *closing = Closing::Left;
            }
        }
        Some(Ending::Chunk(_)) | None => {}
    }
}

impl Session {
    /// Adds `lanes` lanes to the main stream. Must be called before anything is sent.
    pub(crate) fn striped(mut self, lanes: usize) -> Self {
        if lanes == 0 {
            return self;
        }
        let checked = self.decoder.check.is_on();
        let send_queue = || SendQueue::new(checked.then(|| self.sends.copied.clone()), true);
        self.send_queue = send_queue();
        self.receives.stripe(CHUNK_LEN);
        self.one_sided.stripe(CHUNK_LEN);
        self.lanes = Some(Box::new(Lanes {
            decoders: (0..lanes).map(|_| Decoder::new(checked)).collect(),
            senders: (0..lanes)
                .map(|_| LaneSender { send_queue: send_queue(), close_queued: false })
                .collect(),
            chunked_sends: ChunkedSends::new(CHUNK_LEN, false),
            next_stream: 0,
            closed: 0,
        }));
        self
    }

    /// Returns whether a stream is to be read now.
    pub(crate) fn reads(&self, stream: usize) -> bool {
        !matches!(self.decoder(stream).reading, Reading::Parked(_) | Reading::Ended)
    }

    /// Returns whether a lane has bytes to write, or a chunk to take.
    pub(crate) fn lane_is_due(&self, stream: usize) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let sender = &lanes.senders[stream - 1];
        !sender.send_queue.is_empty()
            || match self.closing {
                Closing::No | Closing::Wanted => lanes.has_chunk_for(stream),
                Closing::InBatch | Closing::Left => !sender.close_queued,
            }
    }

    /// Returns the bytes to write next on a lane. Takes a chunk if the lane has none.
    pub(crate) fn lane_gather<'a>(
        &'a mut self,
        stream: usize,
        pieces: &mut Vec<RawBytes<'a>>,
        pieces_max: usize,
    ) {
        let is_empty = |lanes: &Lanes| lanes.senders[stream - 1].send_queue.is_empty();
        if self.lanes.as_deref().is_some_and(is_empty) && !self.chunk_to(stream) {
            self.queue_lane_close(stream);
        }
        if let Some(lanes) = &self.lanes {
            lanes.senders[stream - 1].send_queue.gather(pieces, pieces_max);
        }
    }

    /// Records that `written` of the bytes gathered for a lane are in the kernel's buffers.
    pub(crate) fn lane_wrote(&mut self, stream: usize, written: usize) {
        let Self { sends, one_sided, closing, lanes, .. } = self;
        let Some(sender) = lanes.as_mut().map(|lanes| &mut lanes.senders[stream - 1]) else { return };
        let mut send_queue = std::mem::take(&mut sender.send_queue);
        send_queue.advance(written, |ending| due(ending, (sends, one_sided), closing, lanes));
        if let Some(lanes) = lanes {
            lanes.senders[stream - 1].send_queue = send_queue;
        }
    }

    /// Queues newly granted data, and gives the next chunk to the first stream that is not in the set `full`.
    /// Must be called before anything is written.
    pub(crate) fn choose_stream(&mut self, full: u32) {
        self.chunked_send();
        if let Some(lanes) = &mut self.lanes {
            let first = full.trailing_ones() as usize;
            lanes.next_stream = if first <= lanes.senders.len() { first } else { 0 };
        }
    }

    /// Queues granted data to be striped over all streams.
    fn chunked_send(&mut self) {
        if let Some(lanes) = &mut self.lanes {
            self.data_queue.drain(..).for_each(|data| lanes.chunked_sends.push(data));
        }
    }

    /// Adds the next chunk to a stream's queue if the stream is next. On the main stream, a packet is open
    /// for it.
    pub(super) fn chunk_to(&mut self, stream: usize) -> bool {
        self.chunked_send();
        let may_take = matches!(self.closing, Closing::No | Closing::Wanted);
        let Some(lanes) = self.lanes.as_mut().filter(|_| may_take) else { return false };
        let small = if stream == 0 { lanes.chunked_sends.next_small() } else { None };
        let chunk = match small {
            None if lanes.next_stream == stream => lanes.chunked_sends.next_large(),
            small => small,
        };
        let Some(NextChunk { chunked_send, transfer, offset, bytes, .. }) = chunk else { return false };
        let send_queue = match stream {
            0 => &mut self.send_queue,
            _ => {
                let send_queue = &mut lanes.senders[stream - 1].send_queue;
                send_queue.begin();
                send_queue
            }
        };
        send_queue.finish_at(transfer, offset, bytes);
        send_queue.end(Ending::Chunk(chunked_send));
        true
    }

    /// Queues a lane's close marker: a head without data.
    fn queue_lane_close(&mut self, stream: usize) {
        let is_due = matches!(self.closing, Closing::InBatch | Closing::Left);
        let sender = self.lanes.as_mut().map(|lanes| &mut lanes.senders[stream - 1]);
        if let Some(sender) = sender.filter(|sender| is_due && !sender.close_queued) {
            sender.close_queued = true;
            sender.send_queue.begin();
            sender.send_queue.finish_at(Transfer::Message(0), 0, Vec::new());
            sender.send_queue.end(Ending::Closed);
        }
    }

    /// Resumes parked lanes whose messages have been announced.
    pub(crate) fn unpark(&mut self) -> Result<()> {
        let lanes = self.lanes.as_ref().map_or(0, |lanes| lanes.decoders.len());
        for stream in 1..=lanes {
            if let Reading::Parked(data) = self.decoder(stream).reading {
                self.begin_chunk(stream, data)?;
            }
        }
        Ok(())
    }

    /// Handles the end of a stream. Returns false if the connection ends with it. After the peer's `Close`,
    /// the main stream may end before the last chunks arrive on lanes.
    pub(crate) fn continues_without(&mut self, stream: usize) -> bool {
        let goes_on = stream == 0 && self.peer_closed && !self.has_peer_closed();
        if goes_on {
            self.decoder.reading = Reading::Ended;
        }
        goes_on
    }

    /// Completes a chunk that has arrived and been verified.
    pub(super) fn chunk_landed(&mut self, chunk: Chunk) {
        if let Transfer::Message(id) = chunk.transfer {
            return self.receives.chunk_landed(id, chunk.offset, chunk.parts);
        }
        let waiting = self.records.len();
        self.one_sided.chunk_landed(chunk, &mut self.records);
        self.answers += usize::from(self.records.len() > waiting);
    }

    /// Returns the buffers being read into, and fails the transfers being written.
    pub(super) fn give_up_lanes(&mut self, why: &Error) {
        let Some(lanes) = self.lanes.as_ref().map(|lanes| lanes.decoders.len()) else { return };
        for stream in 0..=lanes {
            let reading = std::mem::replace(&mut self.decoder_mut(stream).reading, Reading::Ended);
            if let Reading::Chunk(chunk) = reading {
                self.put_back(chunk);
            }
        }
        let Some(lanes) = &mut self.lanes else { return };
        for sender in &mut lanes.senders {
            sender.send_queue.give_up().for_each(drop);
        }
        lanes.chunked_sends.give_up().for_each(|data| data.fail(why));
    }

    /// Returns the buffers of a claimed chunk that will not arrive.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        match chunk.transfer {
            Transfer::Message(id) => self.receives.put_back(id, chunk.offset, chunk.parts),
            Transfer::Get(_) | Transfer::Put(_) => self.one_sided.put_back(chunk),
        }
    }
}
