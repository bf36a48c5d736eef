//! The further streams of a connection: they carry chunks of data, beside the main one.

use std::io::IoSlice;

use super::decoder::{Decoder, Reading};
use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::wire::chunks::{CHUNK_LEN, Chunk};
use crate::wire::one_sided::OneSided;
use crate::wire::record::Transfer;
use crate::wire::send_queue::{Ending, SendQueue, Source};
use crate::wire::sends::Sends;
use crate::wire::spreads::{NextChunk, Spreads};

/// All lanes of one end, and what is spread over them and the main stream.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) decoders: Vec<Decoder>,
    outlets: Vec<Outlet>,
    pub(super) spreads: Spreads,
    /// The stream that takes the next chunk of a large transfer: the first that is not full.
    turn: usize,
    /// Streams that our good-bye has left on.
    closed: usize,
}

#[derive(Debug)]
struct Outlet {
    send_queue: SendQueue,
    /// Our good-bye is in it, or has left.
    closes: bool,
}

impl Lanes {
    /// Whether a stream could take a chunk on.
    pub(super) fn has_chunk_for(&self, stream: usize) -> bool {
        (self.turn == stream && self.spreads.has_large()) || (stream == 0 && self.spreads.has_small())
    }

    /// Whether the peer's good-bye has come on each.
    pub(super) fn have_ended(&self) -> bool {
        self.decoders.iter().all(|decoder| matches!(decoder.reading, Reading::Ended))
    }
}

/// What is due once all before it left.
pub(super) fn due(
    ending: Ending,
    (sends, one_sided): (&mut Sends, &mut OneSided),
    closing: &mut Closing,
    lanes: &mut Option<Box<Lanes>>,
) {
    let ending = match (ending, lanes.as_mut()) {
        (Ending::Chunk(spread), Some(lanes)) => lanes.spreads.left(spread).and_then(Source::ending),
        (ending, _) => Some(ending),
    };
    match ending {
        Some(Ending::Sent(id, message)) => sends.left(id, message),
        Some(Ending::Replied(_)) => one_sided.replied(1),
        Some(Ending::Closed) => {
            let all_closed = lanes.as_mut().is_none_or(|lanes| {
                lanes.closed += 1;
                lanes.closed > lanes.outlets.len()
            });
            if all_closed {
                *closing = Closing::Left;
            }
        }
        Some(Ending::Chunk(_)) | None => {}
    }
}

impl Session {
    /// The same with so many lanes beside its main stream, before anything travelled.
    pub(crate) fn striped(mut self, lanes: usize) -> Self {
        if lanes == 0 {
            return self;
        }
        let checked = self.decoder.check.is_on();
        self.send_queue = SendQueue::new(checked, true);
        self.receives.stripe(CHUNK_LEN);
        self.one_sided.stripe(CHUNK_LEN);
        self.lanes = Some(Box::new(Lanes {
            decoders: (0..lanes).map(|_| Decoder::new(checked)).collect(),
            outlets: (0..lanes)
                .map(|_| Outlet { send_queue: SendQueue::new(checked, true), closes: false })
                .collect(),
            spreads: Spreads::new(CHUNK_LEN, false),
            turn: 0,
            closed: 0,
        }));
        self
    }

    /// Whether a stream is to be read now.
    pub(crate) fn reads(&self, stream: usize) -> bool {
        !matches!(self.decoder(stream).reading, Reading::Parked(_) | Reading::Ended)
    }

    /// Whether a lane has something to write, or takes something on.
    pub(crate) fn lane_is_due(&self, stream: usize) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let outlet = &lanes.outlets[stream - 1];
        !outlet.send_queue.is_empty()
            || match self.closing {
                Closing::No | Closing::Wanted => lanes.has_chunk_for(stream),
                Closing::InBatch | Closing::Left => !outlet.closes,
            }
    }

    /// The bytes to write next on a lane, for which it takes a chunk on if it has none.
    pub(crate) fn lane_gather<'a>(
        &'a mut self,
        stream: usize,
        slices: &mut Vec<IoSlice<'a>>,
        slices_max: usize,
    ) {
        let is_empty = |lanes: &Lanes| lanes.outlets[stream - 1].send_queue.is_empty();
        if self.lanes.as_deref().is_some_and(is_empty) && !self.chunk_to(stream) {
            self.say_good_bye(stream);
        }
        if let Some(lanes) = &self.lanes {
            lanes.outlets[stream - 1].send_queue.gather(slices, slices_max);
        }
    }

    /// `written` of the bytes gathered for a lane are with the operating system.
    pub(crate) fn lane_wrote(&mut self, stream: usize, written: usize) {
        let Self { sends, one_sided, closing, lanes, .. } = self;
        let Some(outlet) = lanes.as_mut().map(|lanes| &mut lanes.outlets[stream - 1]) else { return };
        let mut send_queue = std::mem::take(&mut outlet.send_queue);
        send_queue.advance(written, |ending| due(ending, (sends, one_sided), closing, lanes));
        if let Some(lanes) = lanes {
            lanes.outlets[stream - 1].send_queue = send_queue;
        }
    }

    /// Spreads what was granted since the last call, and lets the first stream that is not in this set, of those that are full,
    /// take the next chunk. To be called before anything is written.
    pub(crate) fn pass_over(&mut self, full: u32) {
        self.spread();
        if let Some(lanes) = &mut self.lanes {
            let first = full.trailing_ones() as usize;
            lanes.turn = if first <= lanes.outlets.len() { first } else { 0 };
        }
    }

    /// Data that was granted is spread over all streams.
    fn spread(&mut self) {
        if let Some(lanes) = &mut self.lanes {
            self.datas.drain(..).for_each(|data| lanes.spreads.push(data));
        }
    }

    /// Gives a stream a chunk, if it has the turn; on the main one a packet is open for it.
    pub(super) fn chunk_to(&mut self, stream: usize) -> bool {
        self.spread();
        let may_take = matches!(self.closing, Closing::No | Closing::Wanted);
        let Some(lanes) = self.lanes.as_mut().filter(|_| may_take) else { return false };
        let small = if stream == 0 { lanes.spreads.next_small() } else { None };
        let chunk = match small {
            None if lanes.turn == stream => lanes.spreads.next_large(),
            small => small,
        };
        let Some(NextChunk { spread, transfer, offset, bytes, .. }) = chunk else { return false };
        let send_queue = match stream {
            0 => &mut self.send_queue,
            _ => {
                let send_queue = &mut lanes.outlets[stream - 1].send_queue;
                send_queue.begin();
                send_queue
            }
        };
        send_queue.finish_at(transfer, offset, bytes);
        send_queue.end(Ending::Chunk(spread));
        true
    }

    /// A lane ends with a head that announces nothing.
    fn say_good_bye(&mut self, stream: usize) {
        let is_due = matches!(self.closing, Closing::InBatch | Closing::Left);
        let outlet = self.lanes.as_mut().map(|lanes| &mut lanes.outlets[stream - 1]);
        if let Some(outlet) = outlet.filter(|outlet| is_due && !outlet.closes) {
            outlet.closes = true;
            outlet.send_queue.begin();
            outlet.send_queue.finish_at(Transfer::Message(0), 0, Vec::new());
            outlet.send_queue.end(Ending::Closed);
        }
    }

    /// Goes on with the lanes whose messages were announced meanwhile.
    pub(crate) fn unpark(&mut self) -> Result<()> {
        let lanes = self.lanes.as_ref().map_or(0, |lanes| lanes.decoders.len());
        for stream in 1..=lanes {
            if let Reading::Parked(data) = self.decoder(stream).reading {
                self.begin_chunk(stream, data)?;
            }
        }
        Ok(())
    }

    /// A stream ended; false if that is the end of the connection. After its good-bye the main one may end before the
    /// last chunks have come beside it.
    pub(crate) fn goes_on_without(&mut self, stream: usize) -> bool {
        let goes_on = stream == 0 && self.peer_closed && !self.has_peer_closed();
        if goes_on {
            self.decoder.reading = Reading::Ended;
        }
        goes_on
    }

    /// A chunk is all here, and right.
    pub(super) fn chunk_landed(&mut self, chunk: Chunk) {
        if let Transfer::Message(id) = chunk.transfer {
            return self.receives.chunk_landed(id, chunk.offset, chunk.parts);
        }
        let waiting = self.records.len();
        self.one_sided.chunk_landed(chunk, &mut self.records);
        self.answers += usize::from(self.records.len() > waiting);
    }

    /// Puts back what is being read, and fails what is being written.
    pub(super) fn give_up_lanes(&mut self, why: &Error) {
        let Some(lanes) = self.lanes.as_ref().map(|lanes| lanes.decoders.len()) else { return };
        for stream in 0..=lanes {
            let reading = std::mem::replace(&mut self.decoder_mut(stream).reading, Reading::Ended);
            if let Reading::Chunk(chunk) = reading {
                self.put_back(chunk);
            }
        }
        let Some(lanes) = &mut self.lanes else { return };
        for outlet in &mut lanes.outlets {
            outlet.send_queue.give_up().for_each(drop);
        }
        lanes.spreads.give_up().for_each(|data| data.fail(why));
    }

    /// A chunk that was claimed will not come.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        match chunk.transfer {
            Transfer::Message(id) => self.receives.put_back(id, chunk.offset, chunk.parts),
            Transfer::Get(_) | Transfer::Put(_) => self.one_sided.put_back(chunk),
        }
    }
}
