//! Encodes and decodes a data stream: packets of records and data. docs/wire.md specifies every byte.
//!
//! No length is used for an allocation before it was checked against its limit and against the bytes
//! available.

#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Place;
use crate::transfer::message::{Delivery, EAGER_LEN_MAX, FRAMES_MAX, FrameInfo, Table, check_limits};
use crate::wire::cursor::Cursor;
use crate::wire::fetching::{ADDRESS_LEN, FETCHED_FRAMES_MAX};
use crate::wire::lending::{LENT_FRAME_LEN, LENT_FRAMES_MAX, Scope};

/// A packet's head: the length of its records, the length of its data, and the transfer of the data.
pub(crate) const HEAD_LEN: usize = 16;
/// Added to the head if the connection has several streams: the offset of the data in its transfer.
const OFFSET_LEN: usize = 8;
/// Added to the head if the stream has checksums: those of the records, of the data and of the head before
/// them.
const SUMS_LEN: usize = 12;
/// A record's head: kind, flags, two reserved zero bytes, the body's length, a number.
const RECORD_HEAD_LEN: usize = 16;
/// The most bytes of records in one packet.
pub(crate) const RECORDS_LEN_MAX: usize = 2 << 20;
/// The most bytes of data in one packet of a stream.
pub(crate) const DATA_LEN_MAX: usize = 1 << 20;
/// The names of the structures, for errors.
const HEAD: &str = "a packet's head";
const RECORD: &str = "a record";
/// The longest reason that a refusal carries, in bytes.
const REASON_LEN_MAX: usize = 1024;

const MESSAGE: u8 = 1;
const ACCEPT: u8 = 2;
const ACK: u8 = 3;
const PREGRANT: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const GET: u8 = 7;
const PUT: u8 = 8;
const READY_TO_RECEIVE: u8 = 9;
const DONE: u8 = 10;
const REFUSED: u8 = 11;
const CLOSE: u8 = 12;

/// Message: the sender waits for the acknowledgement.
const ACK_NOW: u8 = 1;
/// Message: the payload follows as data at once. Put: the payload is in the record.
const STREAMS: u8 = 2;
/// Message: the payload is in the record.
const EAGER: u8 = 4;
/// Message: frames in arenas are lent; the payload of the other frames is in the record.
const LENT: u8 = 8;
/// Message: the payload waits for the receiver, which may read it from the sender's memory.
const FETCHABLE: u8 = 16;
/// Message, together with `LENT`: large frames outside arenas were copied into the bounce arena.
const BOUNCED: u8 = 32;
/// Ack: rejected.
const REJECTED: u8 = 1;

/// A packet's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) records_len: usize,
    pub(crate) data_len: usize,
    pub(crate) transfer: Transfer,
}

/// The transfer that a packet's data belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transfer {
    /// Payload of the sender's message.
    Message(u64),
    /// The answer to the receiver's get.
    Get(u64),
    /// The payload of the sender's put.
    Put(u64),
}

impl Head {
    pub(crate) fn encode(self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..4].copy_from_slice(&(self.records_len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.data_len as u32).to_le_bytes());
        let transfer = match self.transfer {
            Transfer::Message(id) => id << 2,
            Transfer::Get(id) => id << 2 | 1,
            Transfer::Put(id) => id << 2 | 2,
        };
        bytes[8..].copy_from_slice(&transfer.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], data_len_max: usize) -> Result<Self> {
        let mut fields = Cursor::new(bytes, HEAD);
        let (records_len, data_len) = (fields.u32()? as usize, fields.u32()? as usize);
        let transfer = fields.u64()?;
        if records_len > RECORDS_LEN_MAX || data_len > data_len_max {
            return Err(corrupt(format!(
                "a packet of {records_len} and {data_len} bytes exceeds the limits"
            )));
        }
        let transfer = match transfer & 3 {
            0 => Transfer::Message(transfer >> 2),
            1 => Transfer::Get(transfer >> 2),
            2 => Transfer::Put(transfer >> 2),
            _ => return Err(corrupt("a packet's data has an unknown transfer kind")),
        };
        Ok(Self { records_len, data_len, transfer })
    }
}

/// Returns the length of a head, with or without checksums and an offset.
pub(crate) const fn head_len(checked: bool, striped: bool) -> usize {
    HEAD_LEN + if striped { OFFSET_LEN } else { 0 } + if checked { SUMS_LEN } else { 0 }
}

/// Writes the offset after the head at the start of `bytes`.
pub(crate) fn put_offset(bytes: &mut [u8], offset: u64) {
    bytes[HEAD_LEN..HEAD_LEN + OFFSET_LEN].copy_from_slice(&offset.to_le_bytes());
}

/// Reads the offset after the head at the start of `bytes`.
pub(crate) fn offset_of(bytes: &[u8]) -> Result<u64> {
    Cursor::new(bytes.get(HEAD_LEN..).unwrap_or_default(), HEAD).u64()
}

/// A decoded record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Message(Announcement<'a>),
    /// The sender may send a message's payload, except the discarded frames (a bitmap; empty discards none).
    Accept {
        id: u64,
        discarded: &'a [u8],
    },
    /// Acknowledges `count` messages from `first` on.
    Ack {
        first: u64,
        count: u32,
        delivery: Delivery,
    },
    /// Sets how many bytes of payload the peer may stream without an accept.
    Pregrant {
        bytes: u64,
    },
    Ping,
    Pong,
    Get {
        id: u64,
        key: [u8; 16],
        offset: u64,
        len: u64,
    },
    /// Carries its payload, or requests to send it as data.
    Put {
        id: u64,
        key: [u8; 16],
        offset: u64,
        len: u64,
        payload: Option<&'a [u8]>,
    },
    /// The peer may send the payload of its put.
    ReadyToReceive {
        id: u64,
    },
    /// A put's bytes are in place, or a get of length 0 is complete.
    Done {
        id: u64,
    },
    /// Refuses a get or put.
    Refused {
        id: u64,
        reason: String,
    },
    /// The sender's last record, with the number of packets sent as direct transfers.
    Close {
        packets: u64,
    },
}

/// A message as announced on the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announcement<'a> {
    pub(crate) id: u64,
    pub(crate) ack_now: bool,
    pub(crate) payload: Payload<'a>,
    pub(crate) header: &'a [u8],
    pub(crate) frames: Table,
}

/// How a message's payload is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload<'a> {
    /// In the record.
    Eager(&'a [u8]),
    /// As data, at once.
    Streams,
    /// As data, after the receiver's accept.
    Waits,
    /// As `Waits`, or not sent: the receiver may read each frame at its address in the sender's memory.
    Fetchable(&'a [[u8; ADDRESS_LEN]]),
    /// Lent frames are not sent: the leases follow in the order of their frames. The payload of the other
    /// frames is in the record.
    Lent(Scope, &'a [[u8; LENT_FRAME_LEN]], &'a [u8]),
}

impl Payload<'_> {
    /// Returns how many bytes of the payload are in the record.
    pub(crate) fn len_in_record(&self) -> u64 {
        let len = match self {
            Self::Eager(payload) => payload.len(),
            Self::Streams | Self::Waits => 0,
            Self::Fetchable(addresses) => addresses.as_flattened().len(),
            Self::Lent(_, lent_frames, payload) => lent_frames.as_flattened().len() + payload.len(),
        };
        len as u64
    }
}

impl Announcement<'_> {
    pub(crate) fn payload_len(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len as u64).sum()
    }

    /// Returns what the message costs in the window: record head, header, table, and the payload bytes in the
    /// record.
    pub(crate) fn cost(&self) -> u64 {
        cost(self.header.len(), self.frames.len(), self.payload.len_in_record())
    }
}

/// Returns what a message costs in the window, given the bytes after its header in the record.
pub(crate) const fn cost(header_len: usize, frames: usize, len_in_record: u64) -> u64 {
    (RECORD_HEAD_LEN + 8 + header_len + 8 * frames) as u64 + len_in_record
}

/// Writes an announcement up to the `len_in_record` bytes that follow the header. The caller appends those
/// for `Eager`, `Fetchable` and `Lent`; the bytes inside `payload` are ignored.
pub(crate) fn put_message(
    out: &mut Vec<u8>,
    id: u64,
    ack_now: bool,
    payload: Payload<'_>,
    header: &[u8],
    frames: impl ExactSizeIterator<Item = FrameInfo>,
    len_in_record: u64,
) {
    let ack_now = if ack_now { ACK_NOW } else { 0 };
    let flags = ack_now
        | match payload {
            Payload::Eager(_) => EAGER,
            Payload::Streams => STREAMS,
            Payload::Waits => 0,
            Payload::Fetchable(_) => FETCHABLE,
            Payload::Lent(Scope::Arenas, ..) => LENT,
            Payload::Lent(Scope::Large, ..) => LENT | BOUNCED,
        };
    let body_len = 8 + header.len() + 8 * frames.len() + len_in_record as usize;
    put_head(out, MESSAGE, flags, body_len, id);
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    for frame in frames {
        out.extend_from_slice(&(frame.len as u64 | u64::from(frame.place.code()) << 48).to_le_bytes());
    }
    out.extend_from_slice(header);
}

/// Writes a put up to its payload. With `eager`, the caller appends the payload to the record.
pub(crate) fn put_put(out: &mut Vec<u8>, id: u64, key: &[u8; 16], offset: u64, len: u64, eager: bool) {
    let (flags, body_len) = if eager { (STREAMS, 32 + len as usize) } else { (0, 32) };
    put_head(out, PUT, flags, body_len, id);
    put_range(out, key, offset, len);
}

/// Writes any record other than a message or a put.
pub(crate) fn put(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::Accept { id, discarded } => {
            put_head(out, ACCEPT, 0, discarded.len(), *id);
            out.extend_from_slice(discarded);
        }
        Record::Ack { first, count, delivery } => {
            let flags = if *delivery == Delivery::Rejected { REJECTED } else { 0 };
            put_head(out, ACK, flags, 4, *first);
            out.extend_from_slice(&count.to_le_bytes());
        }
        Record::Pregrant { bytes } => put_head(out, PREGRANT, 0, 0, *bytes),
        Record::Ping => put_head(out, PING, 0, 0, 0),
        Record::Pong => put_head(out, PONG, 0, 0, 0),
        Record::Get { id, key, offset, len } => {
            put_head(out, GET, 0, 32, *id);
            put_range(out, key, *offset, *len);
        }
        Record::ReadyToReceive { id } => put_head(out, READY_TO_RECEIVE, 0, 0, *id),
        Record::Done { id } => put_head(out, DONE, 0, 0, *id),
        Record::Refused { id, reason } => {
            let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_LEN_MAX)];
            put_head(out, REFUSED, 0, reason.len(), *id);
            out.extend_from_slice(reason);
        }
        Record::Close { packets } => put_head(out, CLOSE, 0, 0, *packets),
        Record::Message(_) | Record::Put { .. } => unreachable!("messages and puts have their own encoders"),
    }
}

fn put_head(out: &mut Vec<u8>, kind: u8, flags: u8, body_len: usize, id: u64) {
    out.extend_from_slice(&[kind, flags, 0, 0]);
    out.extend_from_slice(&(body_len as u32).to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
}

fn put_range(out: &mut Vec<u8>, key: &[u8; 16], offset: u64, len: u64) {
    out.extend_from_slice(key);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
}

/// Returns the length of the first record in `records`, which this end encoded.
pub(crate) fn len_of_first(records: &[u8]) -> usize {
    let mut len = [0; 4];
    len.copy_from_slice(&records[4..8]);
    RECORD_HEAD_LEN + u32::from_le_bytes(len) as usize
}

/// Decodes the next record and removes it from `records`.
pub(crate) fn take<'a>(records: &mut &'a [u8]) -> Result<Record<'a>> {
    let mut fields = Cursor::new(records, RECORD);
    let (kind, flags) = (fields.u8()?, fields.u8()?);
    if fields.take(2)? != [0, 0] {
        return Err(corrupt("a record's reserved bytes are not zero"));
    }
    let body_len = fields.u32()? as usize;
    let id = fields.u64()?;
    let mut body = Cursor::new(fields.take(body_len)?, RECORD);
    *records = fields.rest();
    let known = match kind {
        MESSAGE => ACK_NOW | STREAMS | EAGER | LENT | FETCHABLE | BOUNCED,
        ACK => REJECTED,
        PUT => STREAMS,
        _ => 0,
    };
    if flags & !known != 0 {
        return Err(corrupt(format!("a record of kind {kind} has unknown flags {flags:#x}")));
    }
    let record = match kind {
        MESSAGE => Record::Message(take_message(&mut body, id, flags)?),
        ACCEPT => Record::Accept { id, discarded: take_rest(&mut body, FRAMES_MAX / 8)? },
        ACK => {
            let delivery = if flags & REJECTED == 0 { Delivery::Delivered } else { Delivery::Rejected };
            Record::Ack { first: id, count: body.u32()?, delivery }
        }
        PREGRANT => Record::Pregrant { bytes: id },
        PING => Record::Ping,
        PONG => Record::Pong,
        GET => {
            let (key, offset, len) = take_range(&mut body)?;
            Record::Get { id, key, offset, len }
        }
        PUT => {
            let (key, offset, len) = take_range(&mut body)?;
            let payload =
                if flags & STREAMS == 0 { None } else { Some(take_rest(&mut body, EAGER_LEN_MAX as usize)?) };
            if payload.is_some_and(|payload| payload.len() as u64 != len) {
                return Err(corrupt("a put's payload does not have the announced length"));
            }
            Record::Put { id, key, offset, len, payload }
        }
        READY_TO_RECEIVE => Record::ReadyToReceive { id },
        DONE => Record::Done { id },
        REFUSED => {
            let reason = String::from_utf8_lossy(take_rest(&mut body, REASON_LEN_MAX)?);
            Record::Refused { id, reason: reason.replace(char::is_control, " ") }
        }
        CLOSE => Record::Close { packets: id },
        other => return Err(corrupt(format!("a record of unknown kind {other}"))),
    };
    match body.len() {
        0 => Ok(record),
        extra => Err(corrupt(format!("a record of kind {kind} is {extra} bytes too long"))),
    }
}

fn take_message<'a>(body: &mut Cursor<'a>, id: u64, flags: u8) -> Result<Announcement<'a>> {
    let (header_len, count) = (body.u32()? as usize, body.u32()? as usize);
    check_limits(header_len, count, 0).map_err(|error| corrupt(error.detail().to_owned()))?;
    let table = body.take(8 * count)?;
    let mut frames = Table::with_capacity(count);
    let mut payload_len = 0u64;
    for entry in table.chunks_exact(8) {
        let entry = Cursor::new(entry, RECORD).u64()?;
        let (len, code) = (entry & ((1 << 48) - 1), (entry >> 48) as u16);
        let place =
            Place::from_code(code).ok_or_else(|| corrupt(format!("a frame in unknown place {code:#x}")))?;
        payload_len += len;
        frames.push(FrameInfo { len: len as usize, place });
    }
    check_limits(header_len, count, payload_len).map_err(|error| corrupt(error.detail().to_owned()))?;
    let header = body.take(header_len)?;
    let payload = match flags & (EAGER | STREAMS | LENT | FETCHABLE | BOUNCED) {
        EAGER => Payload::Eager(take_rest(body, EAGER_LEN_MAX as usize)?),
        STREAMS => Payload::Streams,
        LENT => take_lent(Scope::Arenas, body, &frames)?,
        way if way == LENT | BOUNCED => take_lent(Scope::Large, body, &frames)?,
        FETCHABLE => Payload::Fetchable(body.take(ADDRESS_LEN * count)?.as_chunks().0),
        0 => Payload::Waits,
        _ => return Err(corrupt("a message has conflicting payload flags")),
    };
    let fits = match payload {
        Payload::Eager(payload) => payload.len() as u64 == payload_len && payload_len < EAGER_LEN_MAX,
        Payload::Streams | Payload::Waits => payload_len >= EAGER_LEN_MAX,
        Payload::Fetchable(_) => payload_len >= EAGER_LEN_MAX && count <= FETCHED_FRAMES_MAX,
        Payload::Lent(scope, lent_frames, payload) => {
            let others = frames.iter().filter(|frame| !scope.lends(frame));
            let others = others.map(|frame| frame.len as u64).sum::<u64>();
            (1..=LENT_FRAMES_MAX).contains(&lent_frames.len())
                && payload.len() as u64 == others
                && others < EAGER_LEN_MAX
        }
    };
    if !fits {
        return Err(corrupt(format!("a payload of {payload_len} bytes does not match its payload flags")));
    }
    Ok(Announcement { id, ack_now: flags & ACK_NOW != 0, payload, header, frames })
}

fn take_lent<'a>(scope: Scope, body: &mut Cursor<'a>, frames: &[FrameInfo]) -> Result<Payload<'a>> {
    let lent_frames = body.take(LENT_FRAME_LEN * frames.iter().filter(|frame| scope.lends(frame)).count())?;
    Ok(Payload::Lent(scope, lent_frames.as_chunks().0, take_rest(body, EAGER_LEN_MAX as usize)?))
}

/// Reads all bytes that are left, at most `len_max`.
fn take_rest<'a>(fields: &mut Cursor<'a>, len_max: usize) -> Result<&'a [u8]> {
    match fields.len() {
        len if len > len_max => Err(corrupt(format!("{len} bytes exceed the limit of {len_max}"))),
        _ => Ok(fields.rest()),
    }
}

fn take_range(fields: &mut Cursor<'_>) -> Result<([u8; 16], u64, u64)> {
    Ok((fields.array()?, fields.u64()?, fields.u64()?))
}

pub(crate) fn corrupt(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
