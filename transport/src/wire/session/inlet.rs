//! What arrives, stream by stream: heads, records, and bulk for the right place.

use std::time::Duration;

use super::{Session, Strands};
use crate::error::Result;
use crate::wire::chunks::{Chunk, Parts};
use crate::wire::integrity::Check;
use crate::wire::record::{self, BULK_LEN_MAX, Head, Transfer, corrupt};

/// How far one stream was read.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) reading: Reading,
    pub(super) check: Check,
    /// The start of a head or of records whose rest has not come.
    partial: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Reading {
    Head,
    Records {
        len: usize,
        bulk: Bulk,
    },
    Bulk {
        remaining: usize,
        transfer: Transfer,
    },
    /// Bulk, where the connection has several streams, or of a put that is checked.
    Chunk(Chunk),
    /// A chunk whose message was not announced yet.
    Parked(Bulk),
    /// Nothing more comes here.
    Ended,
}

/// The bulk that a head announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bulk {
    len: usize,
    transfer: Transfer,
    /// 0 where the connection has one stream.
    offset: u64,
}

impl Inlet {
    pub(super) fn new(checked: bool) -> Self {
        Self { reading: Reading::Head, check: Check::new(checked), partial: Vec::new() }
    }

    /// One of the connection's streams, the main one or a strand.
    pub(super) fn of<'a>(
        main: &'a mut Self,
        strands: &'a mut Option<Box<Strands>>,
        stream: usize,
    ) -> &'a mut Self {
        match (stream, strands) {
            (1.., Some(strands)) => &mut strands.inlets[stream - 1],
            _ => main,
        }
    }
}

impl Session {
    pub(super) fn inlet(&self, stream: usize) -> &Inlet {
        match (stream, &self.strands) {
            (1.., Some(strands)) => &strands.inlets[stream - 1],
            _ => &self.inlet,
        }
    }

    pub(super) fn inlet_mut(&mut self, stream: usize) -> &mut Inlet {
        Inlet::of(&mut self.inlet, &mut self.strands, stream)
    }

    /// How many bytes may be read before the next must go to a target: as many as one likes where no bulk can come.
    pub(crate) fn bytes_wanted(&self, stream: usize) -> usize {
        let expect_bulk = || self.receives.expect_bulk() || self.one_sided.expect_bulk();
        if stream == 0 && (!expect_bulk() || self.parcels.is_some()) {
            return usize::MAX;
        }
        self.needed(stream) - self.inlet(stream).partial.len()
    }

    /// The length of a parcel's head.
    pub(crate) fn head_len(&self) -> usize {
        record::head_len(self.inlet.check.is_on(), self.strands.is_some())
    }

    fn needed(&self, stream: usize) -> usize {
        match self.inlet(stream).reading {
            Reading::Head => self.head_len(),
            Reading::Records { len, .. } => len,
            Reading::Bulk { .. } | Reading::Chunk(_) | Reading::Parked(_) | Reading::Ended => 0,
        }
    }

    /// Something came from the peer.
    pub(crate) fn heard(&mut self, now: Duration) {
        self.liveness.heard(now);
    }

    /// Bytes that arrived outside a target.
    pub(crate) fn received(&mut self, stream: usize, mut bytes: &[u8]) -> Result<()> {
        loop {
            let remaining = match &self.inlet(stream).reading {
                Reading::Bulk { remaining, .. } => Some(*remaining),
                Reading::Chunk(chunk) => Some(chunk.remaining),
                Reading::Parked(_) | Reading::Ended if bytes.is_empty() => return Ok(()),
                Reading::Parked(_) | Reading::Ended => return Err(corrupt("bytes that nobody can read yet")),
                Reading::Head | Reading::Records { .. } => None,
            };
            if let Some(remaining) = remaining {
                if bytes.is_empty() {
                    return Ok(());
                }
                let (bulk, rest) = bytes.split_at(remaining.min(bytes.len()));
                self.copy_bulk(stream, bulk)?;
                bytes = rest;
                continue;
            }
            let needed = self.needed(stream);
            let inlet = self.inlet_mut(stream);
            if inlet.partial.is_empty() && bytes.len() >= needed {
                let (item, rest) = bytes.split_at(needed);
                self.item(stream, item)?;
                bytes = rest;
            } else {
                let (more, rest) = bytes.split_at(bytes.len().min(needed - inlet.partial.len()));
                inlet.partial.extend_from_slice(more);
                bytes = rest;
                let len = inlet.partial.len();
                if len < needed {
                    return self.unfinished.as_mut().map_or(Ok(()), |share| share.grown(len));
                }
                let item = std::mem::take(&mut inlet.partial);
                // Records come by the main stream alone.
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
        match self.inlet(stream).reading {
            Reading::Head => {
                let is_striped = self.strands.is_some();
                let inlet = self.inlet_mut(stream);
                inlet.check.head(bytes)?;
                let Head { records_len, bulk_len, transfer } = Head::decode(bytes, BULK_LEN_MAX)?;
                let offset = if is_striped { record::offset_of(bytes)? } else { 0 };
                let bulk = Bulk { len: bulk_len, transfer, offset };
                if stream > 0 && records_len > 0 {
                    return Err(corrupt("records beside the main stream"));
                }
                inlet.reading = Reading::Records { len: records_len, bulk };
                if records_len == 0 {
                    self.records_are_over(stream, bulk)?;
                }
            }
            Reading::Records { bulk, .. } => {
                self.inlet.check.records(bytes, self.receives.next())?;
                let mut records = bytes;
                while !records.is_empty() {
                    let record = record::take(&mut records)?;
                    self.hear(record, records.len())?;
                }
                self.receives.batch_is_over();
                self.records_are_over(stream, bulk)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn records_are_over(&mut self, stream: usize, bulk: Bulk) -> Result<()> {
        let Bulk { len, transfer, .. } = bulk;
        if len == 0 {
            // A strand's head without bulk is its good-bye.
            self.inlet_mut(stream).reading = if stream > 0 { Reading::Ended } else { Reading::Head };
            return Ok(());
        }
        if self.strands.is_some() {
            return self.begin_chunk(stream, bulk);
        }
        if self.parcels.is_some() {
            return Err(corrupt(format!("{len} bytes of bulk in the stream of records")));
        }
        let expected = match transfer {
            Transfer::Message(id) => self.receives.remaining(id),
            Transfer::Get(_) | Transfer::Put(_) => self.one_sided.remaining(transfer),
        };
        if expected.is_none_or(|expected| expected < len as u64) {
            return Err(corrupt(format!("{len} bytes of bulk that nobody expects ({transfer:?})")));
        }
        let (frame, offset) = match transfer {
            Transfer::Message(id) => self.receives.position(id),
            Transfer::Get(_) | Transfer::Put(_) => (0, self.one_sided.position(transfer)),
        };
        self.inlet.check.begin(frame, offset);
        self.inlet.reading = match transfer {
            Transfer::Put(_) if self.inlet.check.is_on() => {
                Reading::Chunk(self.staged(Chunk::new(transfer, offset, len, Parts::new()))?)
            }
            _ => Reading::Bulk { remaining: len, transfer },
        };
        Ok(())
    }

    /// A chunk is about to be read, or waits on its strand for its message's announcement.
    pub(super) fn begin_chunk(&mut self, stream: usize, bulk: Bulk) -> Result<()> {
        let Bulk { len, transfer, offset } = bulk;
        if stream > 0 && self.is_early(transfer) {
            self.inlet_mut(stream).reading = Reading::Parked(bulk);
            return Ok(());
        }
        let (parts, (frame, at)) = self.claim(transfer, offset, len)?;
        let mut chunk = Chunk::new(transfer, offset, len, parts);
        if self.inlet.check.is_on() {
            chunk = self.staged(chunk)?;
        }
        let inlet = self.inlet_mut(stream);
        inlet.check.begin(frame, at);
        inlet.reading = Reading::Chunk(chunk);
        Ok(())
    }

    /// Whether a transfer that overtook the records is of a message that may still be announced.
    pub(super) fn is_early(&self, transfer: Transfer) -> bool {
        matches!(transfer, Transfer::Message(id) if !self.peer_closed && self.receives.may_come(id))
    }

    /// Hands out the parts of a chunk that is about to come, and where it belongs: the frame, and the offset in it.
    pub(super) fn claim(
        &mut self,
        transfer: Transfer,
        offset: u64,
        len: usize,
    ) -> Result<(Parts, (usize, u64))> {
        Ok(match transfer {
            Transfer::Message(id) => {
                let parts = self.receives.claim(id, offset, len)?;
                let is_checked = self.inlet.check.is_on();
                (parts, if is_checked { self.receives.frame_at(id, offset) } else { (0, offset) })
            }
            Transfer::Get(_) | Transfer::Put(_) => {
                (self.one_sided.claim(transfer, offset, len)?, (0, offset))
            }
        })
    }
}
