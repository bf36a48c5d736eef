//! Payload that this end reads by itself where its sender has it, a part at a time.

use super::{Buffers, Landing, Receives, State, wanted};
use crate::error::Result;
use crate::memory::BufferMut;
use crate::message::Delivery;
use crate::wire::fetching::{FETCHED_AT_ONCE, Fetcher};
use crate::wire::record::{Record, put};

impl Receives {
    /// Whether there is something to fetch.
    pub(crate) fn is_fetching(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// Fetches the next part of a message whose turn it is. What cannot be fetched is asked for, from its first byte on.
    ///
    /// # Errors
    /// `PeerLost` if what was read may not have been the message.
    pub(crate) fn fetch(&mut self, fetcher: &mut dyn Fetcher, records: &mut Vec<u8>) -> Result<()> {
        let Some(id) = self.fetching.pop_front() else { return Ok(()) };
        let Some(held) = self.held.at(id) else { return Ok(()) };
        let State::Fetching(landing, addresses) = &mut held.state else { return Ok(()) };
        let before = landing.remaining;
        let read = landing.fetch(&held.lens, addresses, fetcher);
        self.copied.add(before - landing.remaining);
        if read.is_err() {
            self.ask_for(id, records);
            return Ok(());
        }
        if landing.remaining > 0 {
            self.fetching.push_back(id);
            return Ok(());
        }
        fetcher.confirm()?;
        if let State::Fetching(landing, _) = std::mem::replace(&mut held.state, State::Here)
            && let Buffers::Theirs(operation) = landing.buffers
        {
            operation.finish(super::freeze);
        }
        // The sender's memory waits for this word.
        self.settle(id, Delivery::Delivered, true);
        Ok(())
    }

    /// Has a message travel after all.
    fn ask_for(&mut self, id: u64, records: &mut Vec<u8>) {
        let Some(held) = self.held.at(id) else { return };
        let State::Fetching(mut landing, _) = std::mem::replace(&mut held.state, State::Here) else { return };
        landing.buffers().iter_mut().flatten().for_each(BufferMut::clear);
        let (discarded, remaining) = wanted(&held.lens, landing.buffers());
        (landing.frame, landing.remaining) = (0, remaining);
        put(records, &Record::Accept { id, discarded: &discarded });
        held.state = State::Landing(landing);
        self.landing += 1;
    }
}

impl Landing {
    /// Reads on where it stopped.
    fn fetch(&mut self, lens: &[usize], addresses: &[u64], fetcher: &mut dyn Fetcher) -> Result<()> {
        let mut room = FETCHED_AT_ONCE;
        while let (Some(len), Some(address)) = (lens.get(self.frame), addresses.get(self.frame)) {
            let frame = self.frame;
            if let Some(buffer) = &mut self.buffers()[frame] {
                let part = room.min(len - buffer.len());
                let from = address.wrapping_add(buffer.len() as u64);
                if part > 0 {
                    buffer.fill_with(|spare| fetcher.fetch(from, &mut spare[..part]))?;
                }
                let is_full = buffer.len() == *len;
                room -= part;
                self.remaining -= part as u64;
                if !is_full {
                    return Ok(());
                }
            }
            self.frame += 1;
        }
        Ok(())
    }
}
