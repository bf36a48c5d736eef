//! Places arriving data: returns where it goes, and completes transfers once it is there.

use super::Session;
use super::decoder::{Decoder, Reading};
use crate::error::Result;
use crate::memory::BufferMut;
use crate::transfer::region::WriteLease;
use crate::wire::chunks::Chunk;
use crate::wire::integrity::Sum;
use crate::wire::one_sided::RequestTarget;
use crate::wire::record::{Transfer, corrupt};

/// Where the next data is written.
#[derive(Debug)]
pub(crate) enum DataTarget<'a> {
    /// These buffers, in order, each with the number of bytes it still takes.
    Buffers(Vec<(&'a mut BufferMut, usize)>),
    /// A region's range from this offset on; discarded if the region was revoked.
    Region(&'a WriteLease, usize),
}

impl Session {
    /// Returns where a stream's next data goes, how many bytes remain, and the checksum to update. Returns
    /// `None` if something other than data comes next.
    pub(crate) fn target(
        &mut self,
        stream: usize,
        buffers_max: usize,
    ) -> Option<(DataTarget<'_>, usize, Sum<'_>)> {
        let Self { decoder, lanes, receives, one_sided, .. } = self;
        let Decoder { reading, check, .. } = Decoder::of(decoder, lanes, stream);
        let sum = check.sum();
        let (target, remaining) = match reading {
            Reading::Data { remaining, transfer: Transfer::Message(id) } => {
                let mut room = Vec::with_capacity(8);
                receives.room(*id, &mut room, buffers_max);
                (DataTarget::Buffers(room), *remaining)
            }
            Reading::Data { remaining, transfer } => match one_sided.room(*transfer)? {
                RequestTarget::Buffer(buffer, missing) => {
                    (DataTarget::Buffers(vec![(buffer, missing)]), *remaining)
                }
                RequestTarget::Region(lease, at) => (DataTarget::Region(lease, at), *remaining),
            },
            Reading::Chunk(chunk) => {
                let (at, remaining) = (chunk.at(), chunk.remaining);
                match chunk.transfer {
                    Transfer::Put(id) if chunk.parts.is_empty() => {
                        (DataTarget::Region(one_sided.lease(id)?, at), remaining)
                    }
                    Transfer::Put(_) | Transfer::Message(_) | Transfer::Get(_) => {
                        (DataTarget::Buffers(chunk.room(buffers_max)), remaining)
                    }
                }
            }
            _ => return None,
        };
        Some((target, remaining, sum))
    }

    /// Records that `len` bytes were written to a stream's target, or discarded because the region was
    /// `revoked`. The caller has already added them to the checksum.
    pub(crate) fn landed(&mut self, stream: usize, len: usize, revoked: bool) -> Result<()> {
        let decoder = Decoder::of(&mut self.decoder, &mut self.lanes, stream);
        let (remaining, transfer) = match &mut decoder.reading {
            Reading::Data { remaining, transfer } => (*remaining, *transfer),
            Reading::Chunk(chunk) => {
                chunk.advance(len, revoked);
                if chunk.remaining > 0 {
                    return Ok(());
                }
                decoder.check.end(chunk.transfer)?;
                if let Reading::Chunk(chunk) = std::mem::replace(&mut decoder.reading, Reading::Head) {
                    return self.chunk_is_right(chunk);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        if remaining == len {
            decoder.check.end(transfer)?;
        }
        decoder.reading = match remaining - len {
            0 => Reading::Head,
            remaining => Reading::Data { remaining, transfer },
        };
        match transfer {
            Transfer::Message(id) => self.receives.landed(id, len as u64),
            Transfer::Get(_) | Transfer::Put(_) => {
                let waiting = self.records.len();
                self.one_sided.landed(transfer, len as u64, revoked, &mut self.records);
                self.answers += usize::from(self.records.len() > waiting);
            }
        }
        Ok(())
    }

    /// Gives a put's chunk a staging buffer: its bytes are copied to the region once all have arrived and
    /// been verified.
    pub(super) fn staged(&mut self, mut chunk: Chunk) -> Result<Chunk> {
        if let Transfer::Put(_) = chunk.transfer {
            match self.receives.staging(chunk.len) {
                Ok(staging) => chunk.parts.push((staging, chunk.len)),
                Err(error) => {
                    self.put_back(chunk);
                    return Err(error);
                }
            }
        }
        Ok(chunk)
    }

    /// Completes a chunk that has arrived and passed its checksum.
    pub(super) fn chunk_is_right(&mut self, mut chunk: Chunk) -> Result<()> {
        if let Err(error) = self.write_to_region(&mut chunk) {
            self.put_back(chunk);
            return Err(error);
        }
        self.chunk_landed(chunk);
        Ok(())
    }

    /// Copies the staged bytes of a put to its region, unless the region was revoked.
    fn write_to_region(&mut self, chunk: &mut Chunk) -> Result<()> {
        let Transfer::Put(id) = chunk.transfer else { return Ok(()) };
        let staged = std::mem::take(&mut chunk.parts);
        let (Some(lease), Some((bytes, len))) = (self.one_sided.lease(id), staged.first()) else {
            return Ok(());
        };
        let write = |region: &mut [u8]| bytes.copy_to(&mut region[..*len]);
        chunk.revoked = lease.with(chunk.offset as usize, write).transpose()?.is_none();
        self.one_sided.copied.add(*len as u64);
        Ok(())
    }

    /// Copies data that was read together with the bytes before it. This happens if a peer violates the
    /// protocol, or if its credit was used before our read began.
    pub(super) fn copy_data(&mut self, stream: usize, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let Some((target, _, mut sum)) = self.target(stream, 1) else {
                return Err(corrupt("data out of turn"));
            };
            let (len, revoked) = match target {
                DataTarget::Buffers(mut buffers) => {
                    let Some((buffer, missing)) = buffers.first_mut() else {
                        return Err(corrupt("more data than its frames hold"));
                    };
                    let len = data.len().min(*missing);
                    buffer.extend_from_slice(&data[..len])?;
                    sum.add(&data[..len]);
                    (len, false)
                }
                DataTarget::Region(lease, at) => {
                    sum.add(data);
                    let write = |bytes: &mut [u8]| bytes[..data.len()].copy_from_slice(data);
                    (data.len(), lease.with(at, write).is_none())
                }
            };
            self.one_sided.copied.add(len as u64);
            self.landed(stream, len, revoked)?;
            data = &data[len..];
        }
        Ok(())
    }
}
