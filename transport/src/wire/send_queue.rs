//! The send queue: one batch of packets, as entries to gather and endings to run once they have left.

use std::collections::VecDeque;

use crate::error::Error;
use crate::memory::{Buffer, RawBytes};
use crate::transfer::message::Message;
use crate::transfer::operation::Operation;
use crate::transfer::region::ReadLease;
use crate::wire::count::Count;
use crate::wire::integrity;
use crate::wire::record::{self, DATA_LEN_MAX, HEAD_LEN, Head, Transfer};

/// A batch is closed at this length, in bytes.
const BATCH_LEN: usize = 1 << 20;
/// A packet's data is cut after this many frames, so that a batch fits the kernel's I/O vectors.
const DATA_PIECES_MAX: usize = 256;
/// A batch is closed at this many entries.
const BATCH_PIECES_MAX: usize = 512;

/// One batch that is being written.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// Heads and records encoded by this end; entries refer to ranges of it.
    encoded: Vec<u8>,
    entries: VecDeque<QueueEntry>,
    len: usize,
    /// The open packet: the position of its head in `encoded`, and how many bytes of its records are payload.
    open: Option<(usize, usize)>,
    /// The number of entries before it.
    earlier: usize,
    /// Heads carry checksums. Counts the bytes copied for them.
    checked: Option<Count>,
    /// Heads carry offsets.
    striped: bool,
    /// The length of the part of `encoded` that entries already refer to.
    queued: usize,
}

#[derive(Debug)]
enum QueueEntry {
    Encoded(std::ops::Range<usize>),
    Bytes(Buffer),
    End(Ending),
}

/// An action to run once everything before it has been handed to the kernel.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The message's memory is free.
    Sent(u64, Operation<Message>),
    /// The answer to one of the peer's requests has been sent.
    Replied(#[expect(dead_code, reason = "held until the bytes have left")] Option<ReadLease>),
    /// A chunk of a striped transfer has been sent.
    Chunk(u64),
    /// Our `Close` or close marker has been sent.
    Closed,
}

impl SendQueue {
    /// Creates an empty queue. With `checked`, heads carry checksums; it counts the foreign memory that is
    /// copied for them. With `striped`, heads carry offsets.
    pub(crate) fn new(checked: Option<Count>, striped: bool) -> Self {
        Self { checked, striped, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns whether the batch can take another packet.
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
        record::head_len(self.checked.is_some(), self.striped)
    }

    /// Returns the buffer that records are encoded into.
    pub(crate) fn encoded(&mut self) -> &mut Vec<u8> {
        &mut self.encoded
    }

    /// Returns the length of the open packet's records.
    pub(crate) fn records_len(&self) -> usize {
        self.open.map_or(0, |(head, payload)| self.encoded.len() - head - self.head_len() + payload)
    }

    /// Appends payload to the open packet's records.
    pub(crate) fn payload(&mut self, frames: impl Iterator<Item = Buffer>) {
        self.queue_encoded();
        for mut frame in frames.filter(|frame| !frame.is_empty()) {
            if let Some(copied) = &self.checked {
                integrity::copy_foreign(std::slice::from_mut(&mut frame), copied);
            }
            if let Some((_, payload)) = &mut self.open {
                *payload += frame.len();
            }
            self.len += frame.len();
            self.entries.push_back(QueueEntry::Bytes(frame));
        }
    }

    /// Adds an ending, to run after everything queued so far.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.queue_encoded();
        self.entries.push_back(QueueEntry::End(ending));
    }

    /// Closes the packet with data of `transfer`. An empty packet is removed.
    pub(crate) fn finish(&mut self, transfer: Transfer, data: Vec<Buffer>) {
        if data.is_empty() && self.records_len() == 0 {
            let Some((head, _)) = self.open.take() else { return };
            self.encoded.truncate(head);
            return;
        }
        self.finish_at(transfer, 0, data);
    }

    /// Closes the packet, even if it is empty, with data at `offset` of `transfer`.
    pub(crate) fn finish_at(&mut self, transfer: Transfer, offset: u64, mut data: Vec<Buffer>) {
        let records_len = self.records_len();
        let Some((head, _)) = self.open.take() else { return };
        let data_len = data.iter().map(Buffer::len).sum();
        self.encoded[head..head + HEAD_LEN]
            .copy_from_slice(&Head { records_len, data_len, transfer }.encode());
        if self.striped {
            record::put_offset(&mut self.encoded[head..], offset);
        }
        self.queue_encoded();
        if let Some(copied) = &self.checked {
            integrity::copy_foreign(&mut data, copied);
            let records = integrity::of_slices(self.records_of(head));
            let data = integrity::of_buffers(&data);
            let head_len = self.head_len();
            integrity::seal(&mut self.encoded[head..head + head_len], records, data);
        }
        self.len += data_len;
        self.entries.extend(data.into_iter().map(QueueEntry::Bytes));
    }

    /// Returns the records of the packet being closed, whose head is at `head`.
    fn records_of(&self, head: usize) -> impl Iterator<Item = &[u8]> {
        let records = head + self.head_len();
        self.entries.range(self.earlier..).filter_map(move |entry| match entry {
            QueueEntry::Encoded(range) => Some(&self.encoded[range.start.max(records)..range.end]),
            QueueEntry::Bytes(buffer) => buffer.as_slice(),
            QueueEntry::End(_) => None,
        })
    }

    fn queue_encoded(&mut self) {
        if self.queued < self.encoded.len() {
            self.len += self.encoded.len() - self.queued;
            self.entries.push_back(QueueEntry::Encoded(self.queued..self.encoded.len()));
            self.queued = self.encoded.len();
        }
    }

    /// Gathers the bytes to write next.
    pub(crate) fn gather<'a>(&'a self, pieces: &mut Vec<RawBytes<'a>>, pieces_max: usize) {
        for entry in &self.entries {
            if pieces.len() == pieces_max {
                return;
            }
            match entry {
                QueueEntry::Encoded(range) => pieces.push(RawBytes::from(&self.encoded[range.clone()])),
                QueueEntry::Bytes(buffer) => {
                    if let Some(bytes) = buffer.raw_bytes() {
                        pieces.push(bytes);
                    }
                }
                QueueEntry::End(_) => {}
            }
        }
    }

    /// Removes `written` bytes, and passes the endings that they complete to `due`.
    pub(crate) fn advance(&mut self, mut written: usize, mut due: impl FnMut(Ending)) {
        while let Some(entry) = self.entries.front_mut() {
            let len = match entry {
                QueueEntry::Encoded(range) => range.len(),
                QueueEntry::Bytes(buffer) => buffer.len(),
                QueueEntry::End(_) => 0,
            };
            if written < len {
                match entry {
                    QueueEntry::Encoded(range) => range.start += written,
                    QueueEntry::Bytes(buffer) => drop(buffer.split_to(written)),
                    QueueEntry::End(_) => {}
                }
                return;
            }
            written -= len;
            if let Some(QueueEntry::End(ending)) = self.entries.pop_front() {
                due(ending);
            }
        }
    }

    /// Discards the queue, and returns the endings that will never run.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Ending> + '_ {
        self.open = None;
        self.entries.drain(..).filter_map(|entry| match entry {
            QueueEntry::End(ending) => Some(ending),
            _ => None,
        })
    }
}

/// The frames of a transfer, sent as data one packet at a time.
#[derive(Debug)]
pub(crate) struct DataSource {
    pub(crate) transfer: Transfer,
    pub(crate) owner: DataOwner,
    /// The first frame that is not completely sent, and how much of it is.
    frame: usize,
    offset: usize,
}

/// The owner of the frames.
#[derive(Debug)]
pub(crate) enum DataOwner {
    /// A message, with a bitmap of the frames that the receiver discards.
    Message(u64, Operation<Message>, Vec<u8>),
    /// A put. Its operation is kept elsewhere until the peer answers.
    Put(Buffer),
    /// A region.
    Region(ReadLease),
}

impl DataSource {
    pub(crate) fn new(transfer: Transfer, owner: DataOwner) -> Self {
        Self { transfer, owner, frame: 0, offset: 0 }
    }

    /// Returns the data of the next packet, and whether it is the last.
    pub(crate) fn next_packet(&mut self) -> (Vec<Buffer>, bool) {
        self.next(DATA_LEN_MAX, DATA_PIECES_MAX)
    }

    /// Returns the next bytes, in at most `pieces_max` buffers, and whether they are the last.
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

    /// Fails the message, if the frames belong to one.
    pub(crate) fn fail(self, why: &Error) {
        if let DataOwner::Message(_, message, _) = self.owner {
            message.fail(why.clone());
        }
    }

    /// Returns the total length in bytes.
    pub(crate) fn len(&self) -> u64 {
        let (frames, discarded) = self.owner.frames();
        let kept = frames.iter().enumerate().filter(|(index, _)| !is_set(discarded, *index));
        kept.map(|(_, frame)| frame.len() as u64).sum()
    }
}

impl DataOwner {
    /// Returns the frames, and the bitmap of those to discard.
    fn frames(&self) -> (&[Buffer], &[u8]) {
        match self {
            Self::Message(_, message, discarded) => (message.memory().frames(), discarded),
            Self::Put(buffer) => (std::slice::from_ref(buffer), &[]),
            Self::Region(lease) => (std::slice::from_ref(lease.bytes()), &[]),
        }
    }

    /// Returns the ending to run once the last byte has left.
    pub(crate) fn ending(self) -> Option<Ending> {
        match self {
            Self::Message(id, message, _) => Some(Ending::Sent(id, message)),
            Self::Region(lease) => Some(Ending::Replied(Some(lease))),
            Self::Put(_) => None,
        }
    }
}

/// Returns whether bit `index` is set in a bitmap that may be shorter.
pub(crate) fn is_set(bitmap: &[u8], index: usize) -> bool {
    bitmap.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}
