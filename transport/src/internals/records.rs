//! Encodes and decodes the records of a data stream.

use crate::backend::{Delivery, FrameInfo};
use crate::error::Result;
use crate::memory::Place;
use crate::wire::record::{self, Announcement, Payload, Record};

/// Sample records of one kind.
#[derive(Clone, Debug)]
pub enum Sample {
    /// An eager message of one frame, and its payload.
    Announcement(Vec<u8>),
    /// A message that waits for its accept, with these frames.
    Table(Vec<FrameInfo>),
    /// This many acknowledgements of messages that are not consecutive.
    Acks(u64),
    /// A get.
    Get,
    /// A small put, and its payload.
    Put(Vec<u8>),
}

impl Sample {
    /// Appends the encoded records to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Announcement(payload) => {
                let frame = FrameInfo { len: payload.len(), place: Place::Host };
                let (table, len) = ([frame].into_iter(), payload.len() as u64);
                record::put_message(out, 0, true, Payload::Eager(&[]), b"", table, len);
                out.extend_from_slice(payload);
            }
            Self::Table(frames) => {
                record::put_message(out, 0, true, Payload::Waits, b"", frames.iter().copied(), 0);
            }
            Self::Acks(count) => {
                for first in 0..*count {
                    let ack = Record::Ack { first: 2 * first, count: 1, delivery: Delivery::Delivered };
                    record::put(out, &ack);
                }
            }
            Self::Get => record::put(out, &Record::Get { id: 0, key: [7; 16], offset: 0, len: 1 << 20 }),
            Self::Put(payload) => {
                record::put_put(out, 0, &[7; 16], 0, payload.len() as u64, true);
                out.extend_from_slice(payload);
            }
        }
    }
}

/// Decodes records, and returns their number.
pub fn decode(mut records: &[u8]) -> Result<usize> {
    let mut count = 0;
    while !records.is_empty() {
        std::hint::black_box(record::take(&mut records)?);
        count += 1;
    }
    Ok(count)
}

/// Decodes records, and encodes them again.
pub fn decoded_and_encoded(mut records: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(records.len());
    while !records.is_empty() {
        match record::take(&mut records)? {
            Record::Message(message) => put_message(&mut out, &message),
            Record::Put { id, key, offset, len, payload } => {
                record::put_put(&mut out, id, &key, offset, len, payload.is_some());
                out.extend_from_slice(payload.unwrap_or_default());
            }
            other => record::put(&mut out, &other),
        }
    }
    Ok(out)
}

fn put_message(out: &mut Vec<u8>, message: &Announcement<'_>) {
    let Announcement { id, ack_now, payload, header, frames } = message;
    let len = payload.len_in_record();
    record::put_message(out, *id, *ack_now, *payload, header, frames.iter().copied(), len);
    match payload {
        Payload::Eager(payload) => out.extend_from_slice(payload),
        Payload::Lent(_, lent_frames, payload) => {
            out.extend_from_slice(lent_frames.as_flattened());
            out.extend_from_slice(payload);
        }
        Payload::Fetchable(addresses) => out.extend_from_slice(addresses.as_flattened()),
        Payload::Streams | Payload::Waits => {}
    }
}
