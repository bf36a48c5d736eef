//! Parcels that leave and come by themselves, beside the stream, which then carries records alone: each is one chunk of bulk
//! behind its own head, and they overtake each other and the records as they like. So may the peer's word on one overtake the
//! news that it has left.
//!
//! Whoever moves their bytes has the memory meanwhile, ours and that of landings, and gives each part of it back exactly once.

use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::memory::{Buffer, BufferMut};
use crate::wire::chunks::Chunk;
use crate::wire::integrity::{self, Check};
use crate::wire::outbox::Ending;
use crate::wire::record::{self, HEAD_LEN, Head, Transfer, corrupt};
use crate::wire::spreads::{NextChunk, Spreads};

/// One end's parcels, both ways.
#[derive(Debug)]
pub(super) struct Parcels {
    parcel_len: usize,
    pub(super) spreads: Spreads,
    /// How many were handed out, and how many of them have not left.
    pub(super) handed_out: u64,
    leaving: u64,
    /// How many came, how many of them have not landed, and how many there are, once the peer's good-bye says so.
    came: u64,
    landing: u64,
    expected: u64,
}

/// What leaves by itself: a head and its bulk.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// Stays where it is when the parcel is moved.
    pub(crate) head: Vec<u8>,
    pub(crate) bytes: Vec<Buffer>,
    transfer: Transfer,
    spread: u64,
}

impl Parcel {
    /// Bytes of its bulk.
    pub(crate) fn len(&self) -> usize {
        self.bytes.iter().map(Buffer::len).sum()
    }
}

/// What becomes of a parcel that arrives.
#[derive(Debug)]
pub(crate) enum Came {
    /// It overtook its message's announcement: to be asked again, in the same words, after more records came.
    Early,
    Here(Landing),
}

/// The memory that a parcel's bytes go to.
#[derive(Debug)]
pub(crate) struct Landing {
    chunk: Chunk,
    check: Check,
}

impl Landing {
    /// Where they go, in order: buffers, and how many bytes each takes behind what it holds.
    pub(crate) fn parts(&mut self) -> &mut [(BufferMut, usize)] {
        &mut self.chunk.parts
    }
}

impl Parcels {
    /// Whether every one that was handed out has left.
    pub(super) fn have_left(&self) -> bool {
        self.leaving == 0
    }

    /// Whether all of the peer's, which has said good-bye, are here.
    pub(super) fn have_landed(&self) -> bool {
        self.came == self.expected && self.landing == 0
    }
}

impl Session {
    /// The same with all bulk leaving by itself, in parcels of at most `parcel_len` bytes, before anything travelled. Both ends
    /// must be made with the same.
    pub(crate) fn parcelled(mut self, parcel_len: usize) -> Self {
        debug_assert!((1..=u32::MAX as usize).contains(&parcel_len), "a head has 32 bits for it");
        debug_assert!(self.strands.is_none() && self.fetcher.is_none(), "bulk has one way");
        self.receives.stripe(parcel_len);
        self.one_sided.stripe(parcel_len);
        self.sends.leave_late();
        self.one_sided.leave_late();
        let spreads = Spreads::new(parcel_len, true);
        let parcels =
            Parcels { parcel_len, spreads, handed_out: 0, leaving: 0, came: 0, landing: 0, expected: 0 };
        self.parcels = Some(Box::new(parcels));
        self
    }

    /// Whether there is a parcel to hand out.
    pub(crate) fn has_parcel(&self) -> bool {
        // A peer that has closed acts on none, nor on what follows our own good-bye.
        let may_leave = matches!(self.closing, Closing::No | Closing::Wanted) && !self.has_peer_closed();
        let spreads = self.parcels.as_ref().map(|parcels| &parcels.spreads);
        spreads.is_some_and(|spreads| !self.bulks.is_empty() || !spreads.is_empty()) && may_leave
    }

    /// How long the head of a parcel is.
    pub(crate) fn parcel_head_len(&self) -> usize {
        record::head_len(self.inlet.check.is_on(), true)
    }

    /// The next parcel, transfers taking turns. It comes back by [`parcel_left`](Self::parcel_left) or
    /// [`parcel_lost`](Self::parcel_lost).
    pub(crate) fn next_parcel(&mut self) -> Option<Parcel> {
        if !self.has_parcel() {
            return None;
        }
        let parcels = self.parcels.as_mut()?;
        self.bulks.drain(..).for_each(|bulk| parcels.spreads.push(bulk));
        let NextChunk { spread, transfer, offset, bytes, is_last } = parcels.spreads.next_large()?;
        if is_last && matches!(transfer, Transfer::Get(_)) {
            // The peer may have it, and ask for more, before this end learns that it has left.
            self.one_sided.replied(1);
        }
        parcels.handed_out += 1;
        parcels.leaving += 1;
        let head = head_of(transfer, offset, &bytes, self.inlet.check.is_on());
        Some(Parcel { head, bytes, transfer, spread })
    }

    /// A parcel is on its way, and its memory is not read any more.
    pub(crate) fn parcel_left(&mut self, parcel: Parcel) {
        let Some(parcels) = &mut self.parcels else { return };
        let Parcel { transfer, spread, bytes, .. } = parcel;
        // Whoever waits for its memory finds itself the only one who has it.
        drop(bytes);
        parcels.leaving -= 1;
        let Some(source) = parcels.spreads.left(spread) else { return };
        match (transfer, source.ending()) {
            (_, Some(Ending::Sent(id, message))) => self.sends.left(id, message),
            (Transfer::Put(id), _) => self.one_sided.put_left(id),
            _ => {}
        }
    }

    /// A parcel may not arrive, and its memory is not read any more. Its transfer fails with all others: what follows is
    /// [`give_up`](Self::give_up).
    pub(crate) fn parcel_lost(&mut self, parcel: Parcel) {
        drop(parcel);
        if let Some(parcels) = &mut self.parcels {
            parcels.leaving -= 1;
        }
    }

    /// A parcel arrives, with that head and so many bytes of bulk. A landing comes back by
    /// [`parcel_landed`](Self::parcel_landed) or [`parcel_failed`](Self::parcel_failed).
    ///
    /// # Errors
    /// `Corrupt` for whatever was not granted.
    pub(crate) fn parcel_came(&mut self, head: &[u8], len: usize) -> Result<Came> {
        let Some(parcels) = &self.parcels else { return Err(corrupt("a parcel where none is expected")) };
        let head_len = self.parcel_head_len();
        if head.len() != head_len {
            return Err(corrupt(format!("a parcel's head of {} bytes, not {head_len}", head.len())));
        }
        let mut check = self.inlet.check.of_parcel(head)?;
        let Head { records_len, bulk_len, transfer } = Head::decode(head, parcels.parcel_len)?;
        let offset = record::offset_of(head)?;
        if records_len > 0 || bulk_len != len {
            return Err(corrupt(format!(
                "a parcel of {len} bytes that announces {records_len} of records and {bulk_len} of bulk"
            )));
        }
        if self.peer_closed && parcels.came == parcels.expected {
            return Err(corrupt("a parcel more than the good-bye says"));
        }
        if self.is_early(transfer) {
            return Ok(Came::Early);
        }
        let (parts, (frame, at)) = self.claim(transfer, offset, len)?;
        // A region may be revoked while its bytes are on their way.
        let chunk = self.staged(Chunk::new(transfer, offset, len, parts))?;
        check.begin(frame, at);
        if let Some(parcels) = &mut self.parcels {
            parcels.came += 1;
            parcels.landing += 1;
        }
        Ok(Came::Here(Landing { chunk, check }))
    }

    /// All bytes of a parcel are in the buffers of `landing`, whose lengths have grown.
    ///
    /// # Errors
    /// `Corrupt` if they are not what left.
    pub(crate) fn parcel_landed(&mut self, landing: Landing) -> Result<()> {
        let Landing { chunk, mut check } = landing;
        debug_assert!(chunk.parts.iter().all(|(part, len)| part.len() == *len), "all of it is there");
        let mut sum = check.sum();
        for (part, _) in &chunk.parts {
            sum.add(part.as_slice().unwrap_or_default());
        }
        if let Some(parcels) = &mut self.parcels {
            parcels.landing -= 1;
        }
        if let Err(error) = check.end(chunk.transfer) {
            self.put_back(chunk);
            return Err(error);
        }
        self.chunk_is_right(chunk)
    }

    /// The bytes of a parcel that came will not: what follows is [`give_up`](Self::give_up).
    pub(crate) fn parcel_failed(&mut self, landing: Landing) {
        if let Some(parcels) = &mut self.parcels {
            parcels.landing -= 1;
        }
        self.put_back(landing.chunk);
    }

    /// The peer's last record, which says how many parcels left it before.
    pub(super) fn hear_good_bye(&mut self, expected: u64) -> Result<()> {
        self.peer_closed = true;
        let came = self.parcels.as_ref().map_or(0, |parcels| parcels.came);
        match &mut self.parcels {
            Some(parcels) if came <= expected => parcels.expected = expected,
            None if expected == 0 => {}
            _ => return Err(corrupt(format!("a good-bye that says {expected} parcels where {came} came"))),
        }
        Ok(())
    }

    /// Fails what has not left.
    pub(super) fn give_up_parcels(&mut self, why: &Error) {
        let Some(parcels) = &mut self.parcels else { return };
        debug_assert_eq!((parcels.leaving, parcels.landing), (0, 0), "memory comes back before the end");
        parcels.spreads.give_up().for_each(|bulk| bulk.fail(why));
    }
}

/// The head of bulk that leaves by itself.
fn head_of(transfer: Transfer, offset: u64, bytes: &[Buffer], checked: bool) -> Vec<u8> {
    let mut head = vec![0; record::head_len(checked, true)];
    let bulk_len = bytes.iter().map(Buffer::len).sum();
    head[..HEAD_LEN].copy_from_slice(&Head { records_len: 0, bulk_len, transfer }.encode());
    record::put_offset(&mut head, offset);
    if checked {
        integrity::seal(&mut head, 0, integrity::of_buffers(bytes));
    }
    head
}
