//! Payload that this end fetches from the sender's memory, one part at a time. The fetcher owns the
//! destination memory of a part while it reads.

use super::{Buffers, Filling, ReceiveState, Receives, discarded_and_remaining};
use crate::error::{Error, Result};
use crate::memory::BufferMut;
use crate::transfer::message::Delivery;
use crate::wire::fetching::{FETCHED_AT_ONCE, Fetcher, Part, PartEnd, Piece};
use crate::wire::record::{Record, put};

impl Receives {
    /// Returns whether a message is being fetched.
    pub(crate) fn is_fetching(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// Returns whether a message is being fetched and no read is in flight whose completion would wake this
    /// end.
    pub(crate) fn has_to_fetch(&self) -> bool {
        self.is_fetching() && !self.part_in_flight
    }

    /// Continues with the next part of the message whose turn it is. Returns whether anything progressed. A
    /// message that cannot be fetched is requested from its first byte.
    ///
    /// # Errors
    /// `PeerLost` if the data read may not have been the message.
    pub(crate) fn fetch(&mut self, fetcher: &mut dyn Fetcher, records: &mut Vec<u8>) -> Result<bool> {
        let Some(&id) = self.fetching.front() else { return Ok(false) };
        let begins = !self.part_in_flight;
        if begins && !self.begin_part(id, fetcher) {
            self.fetching.pop_front();
            self.request_payload(id, records);
            return Ok(true);
        }
        let Some(fetched) = fetcher.finished() else { return Ok(begins) };
        self.part_in_flight = false;
        self.fetching.pop_front();
        match fetched {
            PartEnd::Read(part) => {
                let read = part.pieces.iter().map(|piece| piece.len as u64).sum();
                self.copied.add(read);
                let is_last = part.is_last;
                if let Some(filling) = self.take_back(id, part) {
                    filling.remaining -= read;
                }
                match is_last {
                    true => self.fetched(id),
                    false => self.fetching.push_back(id),
                }
            }
            PartEnd::Failed(part) => {
                self.take_back(id, part);
                self.request_payload(id, records);
            }
            PartEnd::Lost(part, why) => {
                self.take_back(id, part);
                return Err(why);
            }
            PartEnd::Stuck(why) => {
                if let Some(ReceiveState::Fetching(filling, _)) = self.replace(id, ReceiveState::Complete)
                    && let Buffers::FromApplication(operation) = filling.buffers
                {
                    operation.fail(why);
                }
                self.ack(id, Delivery::Rejected, true);
            }
        }
        Ok(true)
    }

    /// Begins to read the next part of a message. Returns false if it cannot be read.
    fn begin_part(&mut self, id: u64, fetcher: &mut dyn Fetcher) -> bool {
        let Some(incoming) = self.messages.at(id) else { return false };
        let ReceiveState::Fetching(filling, addresses) = &mut incoming.state else { return false };
        let part = filling.next_part(&incoming.lens, addresses);
        match fetcher.begin(part) {
            Ok(()) => self.part_in_flight = true,
            Err(part) => drop(self.take_back(id, part)),
        }
        self.part_in_flight
    }

    /// Returns the memory of a part to its message.
    fn take_back(&mut self, id: u64, part: Part) -> Option<&mut Filling> {
        let ReceiveState::Fetching(filling, _) = &mut self.messages.at(id)?.state else { return None };
        filling.put_back(part);
        Some(filling)
    }

    fn replace(&mut self, id: u64, state: ReceiveState) -> Option<ReceiveState> {
        Some(std::mem::replace(&mut self.messages.at(id)?.state, state))
    }

    /// Completes a message that was fetched.
    fn fetched(&mut self, id: u64) {
        if let Some(ReceiveState::Fetching(filling, _)) = self.replace(id, ReceiveState::Complete)
            && let Buffers::FromApplication(operation) = filling.buffers
        {
            operation.finish(super::freeze);
        }
        // The sender keeps its memory until this acknowledgement arrives.
        self.ack(id, Delivery::Delivered, true);
    }

    /// Requests the payload of a message that cannot be fetched.
    fn request_payload(&mut self, id: u64, records: &mut Vec<u8>) {
        let Some(incoming) = self.messages.at(id) else { return };
        let ReceiveState::Fetching(mut filling, _) =
            std::mem::replace(&mut incoming.state, ReceiveState::Complete)
        else {
            return;
        };
        filling.buffers().iter_mut().flatten().for_each(BufferMut::clear);
        let (discarded, remaining) = discarded_and_remaining(&incoming.lens, filling.buffers());
        (filling.frame, filling.remaining) = (0, remaining);
        put(records, &Record::Accept { id, discarded: &discarded });
        incoming.state = ReceiveState::Filling(filling);
        self.filling += 1;
    }

    /// Fails the message being fetched, once its memory is free or the time limit of a read is over.
    pub(super) fn give_up_part(&mut self, fetcher: &mut dyn Fetcher, why: &Error) {
        if !std::mem::take(&mut self.part_in_flight) {
            return;
        }
        let filling =
            self.fetching.front().and_then(|id| self.messages.at(*id)).map(|incoming| &mut incoming.state);
        let Some(state @ ReceiveState::Fetching(..)) = filling else { return };
        let ReceiveState::Fetching(mut filling, _) = std::mem::replace(state, ReceiveState::Complete) else {
            return;
        };
        let why = why.clone();
        fetcher.abandon(Box::new(move |part| {
            part.into_iter().for_each(|part| filling.put_back(part));
            if let Buffers::FromApplication(operation) = filling.buffers {
                operation.fail(why);
            }
        }));
    }
}

impl Filling {
    /// Returns the next part to read, with its memory.
    fn next_part(&mut self, lens: &[usize], addresses: &[u64]) -> Part {
        let (mut room, mut pieces) = (FETCHED_AT_ONCE, Vec::new());
        while let (Some(frame_len), Some(address)) = (lens.get(self.frame), addresses.get(self.frame)) {
            let frame = self.frame;
            if let Some(into) = self.buffers()[frame].take_if(|buffer| buffer.len() < *frame_len) {
                let left = frame_len - into.len();
                let (len, address) = (room.min(left), address.wrapping_add(into.len() as u64));
                pieces.push(Piece { frame, address, len, into });
                room -= len;
                if len < left || room == 0 {
                    break;
                }
            }
            self.frame += 1;
        }
        let len: usize = pieces.iter().map(|piece| piece.len).sum();
        Part { is_last: len as u64 == self.remaining, pieces }
    }

    fn put_back(&mut self, part: Part) {
        for Piece { frame, into, .. } in part.pieces {
            self.buffers()[frame] = Some(into);
        }
    }
}
