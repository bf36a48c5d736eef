//! Decodes what arrives on each stream: heads, records and data.

use std::time::Duration;

use super::{Lanes, Session};
use crate::error::Result;
use crate::wire::chunks::{Chunk, ChunkParts};
use crate::wire::integrity::Check;
use crate::wire::record::{self, DATA_LEN_MAX, Head, Transfer, corrupt};

/// The read state of one stream.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) reading: Reading,
    pub(super) check: Check,
    /// The start of a head or of records whose rest has not arrived.
    partial: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Reading {
    Head,
    Records {
        len: usize,
        data: AnnouncedData,
    },
    Data {
        remaining: usize,
        transfer: Transfer,
    },
    /// A chunk: data of a connection with several streams, or of a put with checksums.
    Chunk(Chunk),
    /// A chunk of a message that is not announced yet.
    Parked(AnnouncedData),
    /// Nothing more is read from this stream.
    Ended,
}

/// The data that a head announces.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnnouncedData {
    len: usize,
    transfer: Transfer,
    /// 0 if the connection has one stream.
    offset: u64,
}

impl Decoder {
    pub(super) fn new(checked: bool) -> Self {
        Self { reading: Reading::Head, check: Check::new(checked), partial: Vec::new() }
    }

    /// Returns the decoder of a stream, the main one or a lane.
    pub(super) fn of<'a>(
        main: &'a mut Self,
        lanes: &'a mut Option<Box<Lanes>>,
        stream: usize,
    ) -> &'a mut Self {
        match (stream, lanes) {
            (1.., Some(lanes)) => &mut lanes.decoders[stream - 1],
            _ => main,
        }
    }
}

impl Session {
    pub(super) fn decoder(&self, stream: usize) -> &Decoder {
        match (stream, &self.lanes) {
            (1.., Some(lanes)) => &lanes.decoders[stream - 1],
            _ => &self.decoder,
        }
    }

    pub(super) fn decoder_mut(&mut self, stream: usize) -> &mut Decoder {
        Decoder::of(&mut self.decoder, &mut self.lanes, stream)
    }

    /// Returns how many bytes may be read before the next ones must go to a target; `usize::MAX` if no data
    /// can arrive.
    pub(crate) fn bytes_wanted(&self, stream: usize) -> usize {
        let expect_data = || self.receives.expect_data() || self.one_sided.expect_data();
        if stream == 0 && (!expect_data() || self.packets.is_some()) {
            return usize::MAX;
        }
        self.needed(stream) - self.decoder(stream).partial.len()
    }

    /// Returns the length of a packet's head.
    pub(crate) fn head_len(&self) -> usize {
        record::head_len(self.decoder.check.is_on(), self.lanes.is_some())
    }

    fn needed(&self, stream: usize) -> usize {
        match self.decoder(stream).reading {
            Reading::Head => self.head_len(),
            Reading::Records { len, .. } => len,
            Reading::Data { .. } | Reading::Chunk(_) | Reading::Parked(_) | Reading::Ended => 0,
        }
    }

    /// Records that bytes arrived from the peer.
    pub(crate) fn record_activity(&mut self, now: Duration) {
        self.liveness.record_activity(now);
    }

    /// Decodes bytes that were read outside a target.
    pub(crate) fn received(&mut self, stream: usize, mut bytes: &[u8]) -> Result<()> {
        loop {
            let remaining = match &self.decoder(stream).reading {
                Reading::Data { remaining, .. } => Some(*remaining),
                Reading::Chunk(chunk) => Some(chunk.remaining),
                Reading::Parked(_) | Reading::Ended if bytes.is_empty() => return Ok(()),
                Reading::Parked(_) | Reading::Ended => {
                    return Err(corrupt("bytes on a stream that is parked or has ended"));
                }
                Reading::Head | Reading::Records { .. } => None,
            };
            if let Some(remaining) = remaining {
                if bytes.is_empty() {
                    return Ok(());
                }
                let (data, rest) = bytes.split_at(remaining.min(bytes.len()));
                self.copy_data(stream, data)?;
                bytes = rest;
                continue;
            }
            let needed = self.needed(stream);
            let decoder = self.decoder_mut(stream);
            if decoder.partial.is_empty() && bytes.len() >= needed {
                let (item, rest) = bytes.split_at(needed);
                self.item(stream, item)?;
                bytes = rest;
            } else {
                let (more, rest) = bytes.split_at(bytes.len().min(needed - decoder.partial.len()));
                decoder.partial.extend_from_slice(more);
                bytes = rest;
                let len = decoder.partial.len();
                if len < needed {
                    return self.unfinished.as_mut().map_or(Ok(()), |share| share.grown(len));
                }
                let item = std::mem::take(&mut decoder.partial);
                // Only the main stream carries records.
                if let (0, Some(share)) = (stream, &mut self.unfinished) {
                    share.finished();
                }
                self.item(stream, &item)?;
            }
            if bytes.is_empty() && self.needed(stream) > 0 {
                return Ok(());
            }
        }
    }

    fn item(&mut self, stream: usize, bytes: &[u8]) -> Result<()> {
        match self.decoder(stream).reading {
            Reading::Head => {
                let is_striped = self.lanes.is_some();
                let decoder = self.decoder_mut(stream);
                decoder.check.head(bytes)?;
                let Head { records_len, data_len, transfer } = Head::decode(bytes, DATA_LEN_MAX)?;
                let offset = if is_striped { record::offset_of(bytes)? } else { 0 };
                let data = AnnouncedData { len: data_len, transfer, offset };
                if stream > 0 && records_len > 0 {
                    return Err(corrupt("records on a lane"));
                }
                decoder.reading = Reading::Records { len: records_len, data };
                if records_len == 0 {
                    self.end_records(stream, data)?;
                }
            }
            Reading::Records { data, .. } => {
                self.decoder.check.records(bytes, self.receives.next())?;
                let mut records = bytes;
                while !records.is_empty() {
                    let record = record::take(&mut records)?;
                    self.handle_record(record, records.len())?;
                }
                self.receives.end_batch();
                self.end_records(stream, data)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_records(&mut self, stream: usize, data: AnnouncedData) -> Result<()> {
        let AnnouncedData { len, transfer, .. } = data;
        if len == 0 {
            // On a lane, a head without data is its close marker.
            self.decoder_mut(stream).reading = if stream > 0 { Reading::Ended } else { Reading::Head };
            return Ok(());
        }
        if self.lanes.is_some() {
            return self.begin_chunk(stream, data);
        }
        if self.packets.is_some() {
            return Err(corrupt(format!("{len} bytes of data on a stream that carries only records")));
        }
        let expected = match transfer {
            Transfer::Message(id) => self.receives.remaining(id),
            Transfer::Get(_) | Transfer::Put(_) => self.one_sided.remaining(transfer),
        };
        if expected.is_none_or(|expected| expected < len as u64) {
            return Err(corrupt(format!("{len} bytes of unexpected data ({transfer:?})")));
        }
        let (frame, offset) = match transfer {
            Transfer::Message(id) => self.receives.position(id),
            Transfer::Get(_) | Transfer::Put(_) => (0, self.one_sided.position(transfer)),
        };
        self.decoder.check.begin(frame, offset);
        self.decoder.reading = match transfer {
            Transfer::Put(_) if self.decoder.check.is_on() => {
                Reading::Chunk(self.staged(Chunk::new(transfer, offset, len, ChunkParts::new()))?)
            }
            _ => Reading::Data { remaining: len, transfer },
        };
        Ok(())
    }

    /// Begins to read a chunk, or parks its lane until the chunk's message is announced.
    pub(super) fn begin_chunk(&mut self, stream: usize, data: AnnouncedData) -> Result<()> {
        let AnnouncedData { len, transfer, offset } = data;
        if stream > 0 && self.is_early(transfer) {
            self.decoder_mut(stream).reading = Reading::Parked(data);
            return Ok(());
        }
        let (parts, (frame, at)) = self.claim(transfer, offset, len)?;
        let mut chunk = Chunk::new(transfer, offset, len, parts);
        if self.decoder.check.is_on() {
            chunk = self.staged(chunk)?;
        }
        let decoder = self.decoder_mut(stream);
        decoder.check.begin(frame, at);
        decoder.reading = Reading::Chunk(chunk);
        Ok(())
    }

    /// Returns whether data arrived before its message, which may still be announced.
    pub(super) fn is_early(&self, transfer: Transfer) -> bool {
        matches!(transfer, Transfer::Message(id) if !self.peer_closed && self.receives.may_come(id))
    }

    /// Claims the buffers of an arriving chunk. Also returns its frame, and the offset in that frame.
    pub(super) fn claim(
        &mut self,
        transfer: Transfer,
        offset: u64,
        len: usize,
    ) -> Result<(ChunkParts, (usize, u64))> {
        Ok(match transfer {
            Transfer::Message(id) => {
                let parts = self.receives.claim(id, offset, len)?;
                let is_checked = self.decoder.check.is_on();
                (parts, if is_checked { self.receives.frame_at(id, offset) } else { (0, offset) })
            }
            Transfer::Get(_) | Transfer::Put(_) => {
                (self.one_sided.claim(transfer, offset, len)?, (0, offset))
            }
        })
    }
}
