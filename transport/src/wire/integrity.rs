//! Checksums of a data stream, if both ends agreed on them. Each packet's head carries those of the head, the
//! records and the data.
//!
//! Nothing is acted on before its checksum is verified: records before they are decoded, a packet's data
//! before its transfer continues. Checksums are computed over memory that was just read or is about to be
//! written, so nothing is copied for them, except foreign memory.

use crc32c::{crc32c, crc32c_append};

use crate::error::Result;
use crate::memory::{Buffer, BufferMut};
use crate::wire::count::Count;
use crate::wire::record::{Transfer, corrupt};

/// Writes the checksums of the records, of the data and of the head itself to the end of a head.
pub(crate) fn seal(head: &mut [u8], records: u32, data: u32) {
    let sums = head.len() - 12;
    head[sums..sums + 4].copy_from_slice(&records.to_le_bytes());
    head[sums + 4..sums + 8].copy_from_slice(&data.to_le_bytes());
    let sum = crc32c(&head[..sums + 8]);
    head[sums + 8..].copy_from_slice(&sum.to_le_bytes());
}

/// Returns the checksums of records and data that [`seal`] wrote, or `None` if the head is damaged.
fn unseal(head: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let sums = head.len() - 12;
    (crc32c(&head[..sums + 8]) == word(sums + 8)).then(|| (word(sums), word(sums + 4)))
}

/// Replaces foreign memory by private copies: its owner may write it after the checksum and before the bytes
/// leave. Counts the copies.
pub(crate) fn copy_foreign(buffers: &mut [Buffer], copied: &Count) {
    let len: usize = buffers.iter_mut().map(Buffer::copy_if_foreign).sum();
    if len > 0 {
        copied.add(len as u64);
    }
}

/// Returns the checksum of data that only this process can write.
pub(crate) fn of_buffers(buffers: &[Buffer]) -> u32 {
    of_slices(buffers.iter().filter_map(Buffer::as_slice))
}

/// Returns the checksum of consecutive slices.
pub(crate) fn of_slices<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    slices.into_iter().fold(0, crc32c_append)
}

/// Verifies the checksums of one incoming stream.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// Both ends agreed on checksums.
    on: bool,
    /// The current packet's checksums, and the sum of its data so far.
    records: u32,
    data: u32,
    sum: u32,
    /// Where the packet's data belongs: the frame, and the offset in it.
    frame: usize,
    offset: u64,
    /// Positions in the stream: the packet's start, the start of its records, and its end.
    start: u64,
    records_at: u64,
    end: u64,
}

impl Check {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    /// Returns a verifier for one packet of a direct transfer, with that head.
    pub(crate) fn of_packet(&self, head: &[u8]) -> Result<Self> {
        let mut check = Self::new(self.on);
        if self.on {
            let sums = unseal(head).ok_or_else(|| corrupt("damaged in transit: the head of a packet"))?;
            (check.records, check.data) = sums;
        }
        Ok(check)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Verifies a packet's head.
    pub(crate) fn head(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        self.start = self.end;
        let Some((records, data)) = unseal(bytes) else {
            return Err(corrupt(format!(
                "damaged in transit: the head at byte {} of the stream",
                self.start
            )));
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (self.records, self.data, self.sum) = (records, data, 0);
        self.records_at = self.start + bytes.len() as u64;
        self.end += bytes.len() as u64 + u64::from(word(0)) + u64::from(word(4));
        Ok(())
    }

    /// Verifies a packet's records. `next` is the number of the next message to be announced.
    pub(crate) fn records(&self, bytes: &[u8], next: u64) -> Result<()> {
        if !self.on || crc32c(bytes) == self.records {
            return Ok(());
        }
        let (len, offset) = (bytes.len(), self.records_at);
        Err(corrupt(format!(
            "damaged in transit: {len} bytes of records at byte {offset} of the stream, where message {next} is next"
        )))
    }

    /// Sets where the data that follows belongs.
    pub(crate) fn begin(&mut self, frame: usize, offset: u64) {
        (self.frame, self.offset) = (frame, offset);
    }

    /// Returns the sum to add arriving bytes to.
    pub(crate) fn sum(&mut self) -> Sum<'_> {
        Sum(self.on.then_some(&mut self.sum))
    }

    /// Verifies a packet's data once all of it has arrived.
    pub(crate) fn end(&self, transfer: Transfer) -> Result<()> {
        if !self.on || self.sum == self.data {
            return Ok(());
        }
        let (frame, offset) = (self.frame, self.offset);
        let whose = match transfer {
            Transfer::Message(id) => format!("message {id}, frame {frame}, the chunk at offset {offset}"),
            Transfer::Get(id) => format!("the answer to get {id}, the chunk at offset {offset}"),
            Transfer::Put(id) => format!("put {id}, the chunk at offset {offset}"),
        };
        Err(corrupt(format!("damaged in transit: {whose}")))
    }
}

/// The checksum of a packet's data, if checksums are on.
#[derive(Debug)]
pub(crate) struct Sum<'a>(Option<&'a mut u32>);

impl Sum<'_> {
    /// Adds bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        if let Some(sum) = &mut self.0 {
            **sum = crc32c_append(**sum, bytes);
        }
    }

    /// Adds `len` bytes that were appended to `buffers`, each of which took at most its given number.
    pub(crate) fn add_filled(&mut self, buffers: &[(&mut BufferMut, usize)], mut len: usize) {
        for (buffer, room) in buffers {
            let filled = len.min(*room);
            let bytes = buffer.as_slice().unwrap_or_default();
            self.add(&bytes[bytes.len().saturating_sub(filled)..]);
            len -= filled;
        }
    }
}
