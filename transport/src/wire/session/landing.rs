//! Bulk on its way into its place: where it goes, and what it was once it is there.

use super::{Reading, Session};
use crate::error::Result;
use crate::memory::BufferMut;
use crate::region::WriteLease;
use crate::wire::integrity::Sum;
use crate::wire::one_sided::Room;
use crate::wire::record::{Transfer, corrupt};

/// Where the next bulk goes.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    /// Into these buffers, in order, each taking so many bytes more.
    Buffers(Vec<(&'a mut BufferMut, usize)>),
    /// Into a region's range from this offset, or nowhere if it was revoked.
    Region(&'a WriteLease, usize),
}

impl Session {
    /// Where the next bulk goes, how much of it, and where to add it up: `None` where something else comes next.
    pub(crate) fn target(&mut self, buffers_max: usize) -> Option<(Target<'_>, usize, Sum<'_>)> {
        let Reading::Bulk { remaining, transfer } = self.reading else { return None };
        let sum = self.check.sum();
        let target = match transfer {
            Transfer::Message(id) => {
                let mut room = Vec::with_capacity(8);
                self.receives.room(id, &mut room, buffers_max);
                Target::Buffers(room)
            }
            Transfer::Get(_) | Transfer::Put(_) => match self.one_sided.room(transfer)? {
                Room::Buffer(buffer, missing) => Target::Buffers(vec![(buffer, missing)]),
                Room::Region(lease, at) => Target::Region(lease, at),
            },
        };
        Some((target, remaining, sum))
    }

    /// `len` bytes went into the target, or, as it was `revoked`, nowhere. They were added up before.
    pub(crate) fn landed(&mut self, len: usize, revoked: bool) -> Result<()> {
        let Reading::Bulk { remaining, transfer } = self.reading else { return Ok(()) };
        if remaining == len {
            self.check.end(transfer)?;
        }
        match transfer {
            Transfer::Message(id) => self.receives.landed(id, len as u64),
            Transfer::Get(_) | Transfer::Put(_) => {
                let waiting = self.records.len();
                self.one_sided.landed(transfer, len as u64, revoked, &mut self.records);
                self.answers += usize::from(self.records.len() > waiting);
            }
        }
        self.reading = match remaining - len {
            0 => Reading::Head,
            remaining => Reading::Bulk { remaining, transfer },
        };
        Ok(())
    }

    /// Bulk that was read together with what came before it: only a peer that breaks the protocol sends it so early that
    /// this happens, or one whose credit was used before our own read began.
    pub(super) fn copy_bulk(&mut self, mut bulk: &[u8]) -> Result<()> {
        while !bulk.is_empty() {
            let Some((target, _, mut sum)) = self.target(1) else { return Err(corrupt("bulk out of turn")) };
            let (len, revoked) = match target {
                Target::Buffers(mut buffers) => {
                    let Some((buffer, missing)) = buffers.first_mut() else {
                        return Err(corrupt("more bulk than its frames take"));
                    };
                    let len = bulk.len().min(*missing);
                    buffer.extend_from_slice(&bulk[..len])?;
                    sum.add(&bulk[..len]);
                    (len, false)
                }
                Target::Region(lease, at) => {
                    sum.add(bulk);
                    let write = |bytes: &mut [u8]| bytes[..bulk.len()].copy_from_slice(bulk);
                    (bulk.len(), lease.with(at, write).is_none())
                }
            };
            self.one_sided.bytes_copied += len as u64;
            self.landed(len, revoked)?;
            bulk = &bulk[len..];
        }
        Ok(())
    }
}
