//! The further streams of a connection: they carry chunks of bulk, beside the main one.

use std::io::IoSlice;

use super::inlet::{Inlet, Reading};
use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::wire::chunks::{CHUNK_LEN, Chunk};
use crate::wire::one_sided::OneSided;
use crate::wire::outbox::{Ending, Outbox, Source};
use crate::wire::record::Transfer;
use crate::wire::sends::Sends;
use crate::wire::spreads::{NextChunk, Spreads};

/// All strands of one end, and what is spread over them and the main stream.
#[derive(Debug)]
pub(super) struct Strands {
    pub(super) inlets: Vec<Inlet>,
    outlets: Vec<Outlet>,
    pub(super) spreads: Spreads,
    /// The stream that takes the next chunk of a large transfer: the first that is not full.
    turn: usize,
    /// Streams that our good-bye has left on.
    closed: usize,
}

#[derive(Debug)]
struct Outlet {
    outbox: Outbox,
    /// Our good-bye is in it, or has left.
    closes: bool,
}

impl Strands {
    /// Whether a stream could take a chunk on.
    pub(super) fn has_chunk_for(&self, stream: usize) -> bool {
        (self.turn == stream && self.spreads.has_large()) || (stream == 0 && self.spreads.has_small())
    }

    /// Whether the peer's good-bye has come on each.
    pub(super) fn have_ended(&self) -> bool {
        self.inlets.iter().all(|inlet| matches!(inlet.reading, Reading::Ended))
    }
}

/// What is due once all before it left.
pub(super) fn due(
    ending: Ending,
    (sends, one_sided): (&mut Sends, &mut OneSided),
    closing: &mut Closing,
    strands: &mut Option<Box<Strands>>,
) {
    let ending = match (ending, strands.as_mut()) {
        (Ending::Chunk(spread), Some(strands)) => strands.spreads.left(spread).and_then(Source::ending),
        (ending, _) => Some(ending),
    };
    match ending {
        Some(Ending::Sent(id, message)) => sends.left(id, message),
        Some(Ending::Replied(_)) => one_sided.replied(1),
        Some(Ending::Closed) => {
            let all_closed = strands.as_mut().is_none_or(|strands| {
                strands.closed += 1;
                strands.closed > strands.outlets.len()
            });
            if all_closed {
                *closing = Closing::Left;
            }
        }
        Some(Ending::Chunk(_)) | None => {}
    }
}

impl Session {
    /// The same with so many strands beside its main stream, before anything travelled.
    pub(crate) fn striped(mut self, strands: usize) -> Self {
        if strands == 0 {
            return self;
        }
        let checked = self.inlet.check.is_on();
        self.outbox = Outbox::new(checked, true);
        self.receives.stripe(CHUNK_LEN);
        self.one_sided.stripe(CHUNK_LEN);
        self.strands = Some(Box::new(Strands {
            inlets: (0..strands).map(|_| Inlet::new(checked)).collect(),
            outlets: (0..strands)
                .map(|_| Outlet { outbox: Outbox::new(checked, true), closes: false })
                .collect(),
            spreads: Spreads::new(CHUNK_LEN, false),
            turn: 0,
            closed: 0,
        }));
        self
    }

    /// Whether a stream is to be read now.
    pub(crate) fn reads(&self, stream: usize) -> bool {
        !matches!(self.inlet(stream).reading, Reading::Parked(_) | Reading::Ended)
    }

    /// Whether a strand has something to write, or takes something on.
    pub(crate) fn strand_is_due(&self, stream: usize) -> bool {
        let Some(strands) = &self.strands else { return false };
        let outlet = &strands.outlets[stream - 1];
        !outlet.outbox.is_empty()
            || match self.closing {
                Closing::No | Closing::Wanted => strands.has_chunk_for(stream),
                Closing::InBatch | Closing::Left => !outlet.closes,
            }
    }

    /// The bytes to write next on a strand, for which it takes a chunk on if it has none.
    pub(crate) fn strand_gather<'a>(
        &'a mut self,
        stream: usize,
        slices: &mut Vec<IoSlice<'a>>,
        slices_max: usize,
    ) {
        let is_empty = |strands: &Strands| strands.outlets[stream - 1].outbox.is_empty();
        if self.strands.as_deref().is_some_and(is_empty) && !self.chunk_to(stream) {
            self.say_good_bye(stream);
        }
        if let Some(strands) = &self.strands {
            strands.outlets[stream - 1].outbox.gather(slices, slices_max);
        }
    }

    /// `written` of the bytes gathered for a strand are with the operating system.
    pub(crate) fn strand_wrote(&mut self, stream: usize, written: usize) {
        let Self { sends, one_sided, closing, strands, .. } = self;
        let Some(outlet) = strands.as_mut().map(|strands| &mut strands.outlets[stream - 1]) else { return };
        let mut outbox = std::mem::take(&mut outlet.outbox);
        outbox.advance(written, |ending| due(ending, (sends, one_sided), closing, strands));
        if let Some(strands) = strands {
            strands.outlets[stream - 1].outbox = outbox;
        }
    }

    /// Spreads what was granted since the last call, and lets the first stream that is not in this set, of those that are full,
    /// take the next chunk. To be called before anything is written.
    pub(crate) fn pass_over(&mut self, full: u32) {
        self.spread();
        if let Some(strands) = &mut self.strands {
            let first = full.trailing_ones() as usize;
            strands.turn = if first <= strands.outlets.len() { first } else { 0 };
        }
    }

    /// Bulk that was granted is spread over all streams.
    fn spread(&mut self) {
        if let Some(strands) = &mut self.strands {
            self.bulks.drain(..).for_each(|bulk| strands.spreads.push(bulk));
        }
    }

    /// Gives a stream a chunk, if it has the turn; on the main one a parcel is open for it.
    pub(super) fn chunk_to(&mut self, stream: usize) -> bool {
        self.spread();
        let may_take = matches!(self.closing, Closing::No | Closing::Wanted);
        let Some(strands) = self.strands.as_mut().filter(|_| may_take) else { return false };
        let small = if stream == 0 { strands.spreads.next_small() } else { None };
        let chunk = match small {
            None if strands.turn == stream => strands.spreads.next_large(),
            small => small,
        };
        let Some(NextChunk { spread, transfer, offset, bytes, .. }) = chunk else { return false };
        let outbox = match stream {
            0 => &mut self.outbox,
            _ => {
                let outbox = &mut strands.outlets[stream - 1].outbox;
                outbox.begin();
                outbox
            }
        };
        outbox.finish_at(transfer, offset, bytes);
        outbox.end(Ending::Chunk(spread));
        true
    }

    /// A strand ends with a head that announces nothing.
    fn say_good_bye(&mut self, stream: usize) {
        let is_due = matches!(self.closing, Closing::InBatch | Closing::Left);
        let outlet = self.strands.as_mut().map(|strands| &mut strands.outlets[stream - 1]);
        if let Some(outlet) = outlet.filter(|outlet| is_due && !outlet.closes) {
            outlet.closes = true;
            outlet.outbox.begin();
            outlet.outbox.finish_at(Transfer::Message(0), 0, Vec::new());
            outlet.outbox.end(Ending::Closed);
        }
    }

    /// Goes on with the strands whose messages were announced meanwhile.
    pub(crate) fn unpark(&mut self) -> Result<()> {
        let strands = self.strands.as_ref().map_or(0, |strands| strands.inlets.len());
        for stream in 1..=strands {
            if let Reading::Parked(bulk) = self.inlet(stream).reading {
                self.begin_chunk(stream, bulk)?;
            }
        }
        Ok(())
    }

    /// A stream ended; false if that is the end of the connection. After its good-bye the main one may end before the
    /// last chunks have come beside it.
    pub(crate) fn goes_on_without(&mut self, stream: usize) -> bool {
        let goes_on = stream == 0 && self.peer_closed && !self.has_peer_closed();
        if goes_on {
            self.inlet.reading = Reading::Ended;
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
    pub(super) fn give_up_strands(&mut self, why: &Error) {
        let Some(strands) = self.strands.as_ref().map(|strands| strands.inlets.len()) else { return };
        for stream in 0..=strands {
            let reading = std::mem::replace(&mut self.inlet_mut(stream).reading, Reading::Ended);
            if let Reading::Chunk(chunk) = reading {
                self.put_back(chunk);
            }
        }
        let Some(strands) = &mut self.strands else { return };
        for outlet in &mut strands.outlets {
            outlet.outbox.give_up().for_each(drop);
        }
        strands.spreads.give_up().for_each(|bulk| bulk.fail(why));
    }

    /// A chunk that was claimed will not come.
    pub(super) fn put_back(&mut self, chunk: Chunk) {
        match chunk.transfer {
            Transfer::Message(id) => self.receives.put_back(id, chunk.offset, chunk.parts),
            Transfer::Get(_) | Transfer::Put(_) => self.one_sided.put_back(chunk),
        }
    }
}
