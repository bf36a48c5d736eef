//! What is on its way to the socket: one batch of packets, as entries to gather and as endings to run once they left.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::error::Error;
use crate::memory::Buffer;
use crate::transfer::message::Message;
use crate::transfer::operation::Operation;
use crate::transfer::region::ReadLease;
use crate::wire::integrity;
use crate::wire::record::{self, DATA_LEN_MAX, HEAD_LEN, Head, Transfer};

/// A batch is closed when it holds this much.
const BATCH_LEN: usize = 1 << 20;
/// A packet's data is cut after so many frames, so that a batch fits the operating system's vectors.
const DATA_PIECES_MAX: usize = 256;
/// A batch is closed when it has so many entries.
const BATCH_PIECES_MAX: usize = 512;

/// One batch, being written.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// The bytes of our own making; entries point into them.
    encoded: Vec<u8>,
    entries: VecDeque<Entry>,
    len: usize,
    /// The packet being made: where its head is in `encoded`, and how many bytes of its records are payload.
    open: Option<(usize, usize)>,
    /// How many entries were there before it.
    earlier: usize,
    /// Heads carry checksums.
    checked: bool,
    /// Heads carry offsets.
    striped: bool,
    /// How much of `encoded` is queued by entries.
    queued: usize,
}

#[derive(Debug)]
enum Entry {
    Encoded(std::ops::Range<usize>),
    Bytes(Buffer),
    End(Ending),
}

/// What is due when everything before it has been handed to the operating system.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The message's memory can be reused.
    Sent(u64, Operation<Message>),
    /// The answer to one request of the peer's left.
    Replied(#[expect(dead_code, reason = "held until the bytes have left")] Option<ReadLease>),
    /// A chunk of a transfer that several streams carry left.
    Chunk(u64),
    /// The good-bye left.
    Closed,
}

impl SendQueue {
    /// Heads are `checked` where they carry checksums, `striped` where they carry offsets.
    pub(crate) fn new(checked: bool, striped: bool) -> Self {
        Self { checked, striped, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether another packet may join the batch.
    pub(crate) fn has_room(&self) -> bool {
        self.entries.is_empty() || (self.len < BATCH_LEN && self.entries.len() < BATCH_PIECES_MAX)
    }

    /// Begins a packet.
    pub(crate) fn begin(&mut self) {
        if self.entries.is_empty() {
            self.encoded.clear();
            self.queued = 0;
            self.len = 0;
        }
        self.open = Some((self.encoded.len(), 0));
        self.earlier = self.entries.len();
        self.encoded.resize(self.encoded.len() + self.head_len(), 0);
    }

    fn head_len(&self) -> usize {
        record::head_len(self.checked, self.striped)
    }

    /// Where records are written.
    pub(crate) fn encoded(&mut self) -> &mut Vec<u8> {
        &mut self.encoded
    }

    /// Bytes of the open packet's records.
    pub(crate) fn records_len(&self) -> usize {
        self.open.map_or(0, |(head, payload)| self.encoded.len() - head - self.head_len() + payload)
    }

    /// Payload within the records.
    pub(crate) fn payload(&mut self, frames: impl Iterator<Item = Buffer>) {
        self.queue_encoded();
        for frame in frames.filter(|frame| !frame.is_empty()) {
            if let Some((_, payload)) = &mut self.open {
                *payload += frame.len();
            }
            self.len += frame.len();
            self.entries.push_back(Entry::Bytes(frame));
        }
    }

    /// What is due after everything so far.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.queue_encoded();
        self.entries.push_back(Entry::End(ending));
    }

    /// Closes the packet with data of `transfer`; an empty packet is taken back.
    pub(crate) fn finish(&mut self, transfer: Transfer, data: Vec<Buffer>) {
        if data.is_empty() && self.records_len() == 0 {
            let Some((head, _)) = self.open.take() else { return };
            self.encoded.truncate(head);
            return;
        }
        self.finish_at(transfer, 0, data);
    }

    /// Closes the packet, empty or not, with data that begins at that offset of `transfer`.
    pub(crate) fn finish_at(&mut self, transfer: Transfer, offset: u64, data: Vec<Buffer>) {
        let records_len = self.records_len();
        let Some((head, _)) = self.open.take() else { return };
        let data_len = data.iter().map(Buffer::len).sum();
        self.encoded[head..head + HEAD_LEN]
            .copy_from_slice(&Head { records_len, data_len, transfer }.encode());
        if self.striped {
            record::put_offset(&mut self.encoded[head..], offset);
        }
        self.queue_encoded();
        if self.checked {
            let records = integrity::of_slices(self.records_of(head));
            let data = integrity::of_buffers(&data);
            let head_len = self.head_len();
            integrity::seal(&mut self.encoded[head..head + head_len], records, data);
        }
        self.len += data_len;
        self.entries.extend(data.into_iter().map(Entry::Bytes));
    }

    /// The records of the packet being closed, whose head is at `head`.
    fn records_of(&self, head: usize) -> impl Iterator<Item = IoSlice<'_>> {
        let records = head + self.head_len();
        self.entries.range(self.earlier..).filter_map(move |entry| match entry {
            Entry::Encoded(range) => Some(IoSlice::new(&self.encoded[range.start.max(records)..range.end])),
            Entry::Bytes(buffer) => buffer.as_slice().map(IoSlice::new),
            Entry::End(_) => None,
        })
    }

    fn queue_encoded(&mut self) {
        if self.queued < self.encoded.len() {
            self.len += self.encoded.len() - self.queued;
            self.entries.push_back(Entry::Encoded(self.queued..self.encoded.len()));
            self.queued = self.encoded.len();
        }
    }

    /// The bytes to write next.
    pub(crate) fn gather<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>, slices_max: usize) {
        for entry in &self.entries {
            if slices.len() == slices_max {
                return;
            }
            match entry {
                Entry::Encoded(range) => slices.push(IoSlice::new(&self.encoded[range.clone()])),
                Entry::Bytes(buffer) => slices.extend(buffer.as_slice().map(IoSlice::new)),
                Entry::End(_) => {}
            }
        }
    }

    /// `written` bytes left; hands out the endings that are due now.
    pub(crate) fn advance(&mut self, mut written: usize, mut due: impl FnMut(Ending)) {
        while let Some(entry) = self.entries.front_mut() {
            let len = match entry {
                Entry::Encoded(range) => range.len(),
                Entry::Bytes(buffer) => buffer.len(),
                Entry::End(_) => 0,
            };
            if written < len {
                match entry {
                    Entry::Encoded(range) => range.start += written,
                    Entry::Bytes(buffer) => drop(buffer.split_to(written)),
                    Entry::End(_) => {}
                }
                return;
            }
            written -= len;
            if let Some(Entry::End(ending)) = self.entries.pop_front() {
                due(ending);
            }
        }
    }

    /// Gives everything up, and hands out the endings that will never be due.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Ending> + '_ {
        self.open = None;
        self.entries.drain(..).filter_map(|entry| match entry {
            Entry::End(ending) => Some(ending),
            _ => None,
        })
    }
}

/// Frames that leave as data, a packet at a time.
#[derive(Debug)]
pub(crate) struct DataSource {
    pub(crate) transfer: Transfer,
    pub(crate) owner: DataOwner,
    /// The first frame that has not left entirely, and how much of it has.
    frame: usize,
    offset: usize,
}

/// Whose frames they are.
#[derive(Debug)]
pub(crate) enum DataOwner {
    /// A message's, but for those that the receiver discards (by bitmap).
    Message(u64, Operation<Message>, Vec<u8>),
    /// A put's: the operation waits elsewhere for the peer's word.
    Put(Buffer),
    /// A region's.
    Region(ReadLease),
}

impl DataSource {
    pub(crate) fn new(transfer: Transfer, owner: DataOwner) -> Self {
        Self { transfer, owner, frame: 0, offset: 0 }
    }

    /// A packet's worth, and whether it is the last.
    pub(crate) fn next_packet(&mut self) -> (Vec<Buffer>, bool) {
        self.next(DATA_LEN_MAX, DATA_PIECES_MAX)
    }

    /// The next bytes, in so many entries at most, and whether they are the last.
    pub(crate) fn next(&mut self, len_max: usize, pieces_max: usize) -> (Vec<Buffer>, bool) {
        let (frames, discarded) = self.owner.frames();
        let mut data = Vec::new();
        let mut room = len_max;
        while let Some(frame) = frames.get(self.frame) {
            let skipped = frame.len() == self.offset || is_set(discarded, self.frame);
            if !skipped {
                if room == 0 || data.len() == pieces_max {
                    return (data, false);
                }
                let len = room.min(frame.len() - self.offset);
                data.push(frame.slice(self.offset..self.offset + len));
                room -= len;
                self.offset += len;
                if self.offset < frame.len() {
                    return (data, false);
                }
            }
            self.frame += 1;
            self.offset = 0;
        }
        (data, true)
    }

    /// Fails whose frames they are, where that does not wait elsewhere.
    pub(crate) fn fail(self, why: &Error) {
        if let DataOwner::Message(_, message, _) = self.owner {
            message.fail(why.clone());
        }
    }

    /// Its bytes, all together.
    pub(crate) fn len(&self) -> u64 {
        let (frames, discarded) = self.owner.frames();
        let kept = frames.iter().enumerate().filter(|(index, _)| !is_set(discarded, *index));
        kept.map(|(_, frame)| frame.len() as u64).sum()
    }
}

impl DataOwner {
    /// The frames, and which of them are discarded.
    fn frames(&self) -> (&[Buffer], &[u8]) {
        match self {
            Self::Message(_, message, discarded) => (message.memory().frames(), discarded),
            Self::Put(buffer) => (std::slice::from_ref(buffer), &[]),
            Self::Region(lease) => (std::slice::from_ref(lease.bytes()), &[]),
        }
    }

    /// What is due when its last byte has left.
    pub(crate) fn ending(self) -> Option<Ending> {
        match self {
            Self::Message(id, message, _) => Some(Ending::Sent(id, message)),
            Self::Region(lease) => Some(Ending::Replied(Some(lease))),
            Self::Put(_) => None,
        }
    }
}

/// Whether bit `index` is set in a bitmap that may be shorter.
pub(crate) fn is_set(bitmap: &[u8], index: usize) -> bool {
    bitmap.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}
