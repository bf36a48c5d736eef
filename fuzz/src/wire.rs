//! The bytes of a data stream as in docs/wire.md, encoded without the library, and a hostile peer that sends
//! them.

use crate::script::Script;

/// The length of a chunk with several streams, in a library built for fuzzing.
pub const CHUNK_LEN: u64 = 16 << 10;
/// The limit of eager payload: shorter payload travels in a record.
pub const EAGER_LEN_MAX: u64 = 16 << 10;
/// The length of each frame that a hostile peer can lend.
pub const LENT_LEN: u64 = 20_000;
/// The record kind of a message; see docs/wire.md.
pub const MESSAGE: u8 = 1;
/// The record kind of a get; see docs/wire.md.
pub const GET: u8 = 7;
/// The record kind of a put; see docs/wire.md.
pub const PUT: u8 = 8;

/// A peer that knows the protocol and the keys it was given, and violates the protocol.
#[derive(Debug, Default)]
pub struct HostilePeer {
    /// Its packets carry checksums, mostly valid ones.
    pub checked: bool,
    /// Number of additional lanes.
    pub lanes: usize,
    /// The id of its next message.
    pub messages: u64,
    /// The id of its next request.
    pub requests: u64,
    /// The keys that it was given.
    pub keys: Vec<[u8; 16]>,
    /// The ranges of all its put requests: key, offset, length.
    pub written: Vec<([u8; 16], u64, u64)>,
    /// The leases that it can offer, each of `LENT_LEN` bytes.
    pub lent_frames: Vec<[u8; 20]>,
    /// True once a packet was altered after it was encoded, so that its requests are not known.
    pub altered: bool,
}

impl HostilePeer {
    /// Returns its next packet and the stream it belongs to: up to four records of these kinds, and sometimes
    /// data.
    pub fn packet(&mut self, script: &mut Script<'_>, kinds: &[u8]) -> (usize, Vec<u8>) {
        let striped = self.lanes > 0;
        let stream = if striped { usize::from(script.byte()) % (self.lanes + 1) } else { 0 };
        let mut records = Vec::new();
        if stream == 0 || script.byte() >= 250 {
            for _ in 0..script.byte() % 5 {
                self.record(script, kinds, &mut records);
            }
        }
        let (mut transfer, mut offset, mut data) = (0, 0, Vec::new());
        let has_data = script.byte();
        // A packet without data on a lane ends the lane.
        if has_data % 2 == 1 || (stream > 0 && has_data >= 16) {
            transfer = script.number() << 2 | script.number() & 3;
            if striped {
                let chunk = script.byte();
                offset = if chunk < 240 { u64::from(chunk % 6) * CHUNK_LEN } else { script.number() };
            }
            data = filler(script, striped);
        }
        let mut packet = packet(self.checked, striped.then_some(offset), &records, transfer, &data);
        if script.byte() >= 240 {
            self.altered = true;
            let at = script.below(packet.len().min(80));
            packet[at] ^= 1 << (script.byte() % 8);
            if self.checked && script.byte() >= 64 {
                seal(&mut packet, records.len(), striped);
            }
        }
        (stream, packet)
    }

    fn record(&mut self, script: &mut Script<'_>, kinds: &[u8], out: &mut Vec<u8>) {
        let kind = script.one_of(kinds);
        let flags = if script.byte() >= 250 { script.byte() } else { 0 };
        match kind {
            MESSAGE => self.message(script, flags, out),
            2 => {
                let len = usize::from(script.byte() % 4);
                record(out, kind, flags, script.number(), script.take(len));
            }
            3 => {
                let (first, count) = (script.number(), script.number() as u32);
                record(out, kind, flags | script.byte() & 1, first, &count.to_le_bytes());
            }
            4 => record(out, kind, flags, script.number(), &[]),
            GET | PUT => self.request(script, kind, flags, out),
            9..=10 => record(out, kind, flags, script.number(), &[]),
            11 => {
                let len = usize::from(script.byte());
                record(out, kind, flags, script.number(), script.take(len));
            }
            _ => record(out, kind, flags, 0, &[]),
        }
    }

    fn message(&mut self, script: &mut Script<'_>, flags: u8, out: &mut Vec<u8>) {
        if !self.lent_frames.is_empty() && script.byte() >= 128 {
            return self.lent(script, flags, out);
        }
        let header_len = script.byte() % 8;
        let header = script.take(header_len.into());
        let frames: Vec<u64> = (0..script.byte() % 4).map(|_| frame(script)).collect();
        let (count, header_len) = match script.byte() {
            250.. => (script.number() as u32, script.number() as u32),
            _ => (frames.len() as u32, header.len() as u32),
        };
        let payload_len = frames.iter().fold(0_u64, |sum, len| sum.saturating_add(*len));
        let eager = payload_len < EAGER_LEN_MAX;
        let flags = flags | if eager { 4 } else { script.byte() & 3 };
        let mut body = [header_len.to_le_bytes(), count.to_le_bytes()].concat();
        for len in &frames {
            body.extend(len.to_le_bytes());
        }
        body.extend(header);
        if eager {
            body.resize(body.len() + payload_len as usize, 0x5a);
        }
        let id = if script.byte() >= 250 { script.number() } else { self.messages };
        self.messages += 1;
        record(out, MESSAGE, flags, id, &body);
    }

    /// Encodes a message of one small frame and some lent ones, mostly with one lease each.
    fn lent(&mut self, script: &mut Script<'_>, flags: u8, out: &mut Vec<u8>) {
        let frames = u32::from(script.byte() % 4);
        let mut body = [0_u32.to_le_bytes(), (frames + 1).to_le_bytes()].concat();
        for _ in 0..frames {
            let len = if script.byte() < 230 { LENT_LEN } else { script.number() };
            body.extend((len | 2 << 48).to_le_bytes());
        }
        body.extend(5_u64.to_le_bytes());
        let lent_frames = if script.byte() < 230 { frames } else { u32::from(script.byte() % 5) };
        for _ in 0..lent_frames {
            let mut lent_frame = script.one_of(&self.lent_frames);
            if script.byte() >= 230 {
                lent_frame[script.below(20)] ^= script.byte();
            }
            body.extend(lent_frame);
        }
        body.extend([0x5a; 5]);
        let id = if script.byte() >= 250 { script.number() } else { self.messages };
        self.messages += 1;
        record(out, MESSAGE, flags | 8, id, &body);
    }

    fn request(&mut self, script: &mut Script<'_>, kind: u8, flags: u8, out: &mut Vec<u8>) {
        let key = match script.byte() {
            0..240 if !self.keys.is_empty() => script.one_of(&self.keys),
            _ => script.array(),
        };
        let (offset, len) = (script.number(), script.number());
        let mut body = [&key[..], &offset.to_le_bytes(), &len.to_le_bytes()].concat();
        let mut flags = flags;
        if kind == PUT {
            self.written.push((key, offset, len));
            if len < EAGER_LEN_MAX && script.byte() < 250 {
                flags |= 2;
                body.resize(body.len() + len as usize, 0x5a);
            }
        }
        let id = if script.byte() >= 240 { script.number() } else { self.requests };
        self.requests += 1;
        record(out, kind, flags, id, &body);
    }
}

/// Returns an entry of a frame table.
fn frame(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        0..150 => u64::from(script.byte()),
        150..230 => script.one_of(&[0, 0x3fff, 0x4000, 20_000, 70_000]),
        _ => script.number(),
    }
}

/// Returns data of a length that a destination may have.
fn filler(script: &mut Script<'_>, striped: bool) -> Vec<u8> {
    let len = match script.byte() {
        0..100 => usize::from(script.byte()),
        // A chunk, and the rest of the longer frames.
        100..240 if striped => script.one_of(&[0x4000, 0x4000, 20_000 - 0x4000, 70_000 - 4 * 0x4000]),
        100..240 => script.one_of(&[0x4000, 0x4000, 20_000, 70_000, 8192, 0x4001]),
        _ => script.below(1 << 16),
    };
    vec![0x5a; len]
}

/// Encodes a packet. With several streams, its head holds the offset of its data.
pub fn packet(checked: bool, offset: Option<u64>, records: &[u8], transfer: u64, data: &[u8]) -> Vec<u8> {
    let head_len = head_len(checked, offset.is_some());
    let mut packet = Vec::with_capacity(head_len + records.len() + data.len());
    packet.extend((records.len() as u32).to_le_bytes());
    packet.extend((data.len() as u32).to_le_bytes());
    packet.extend(transfer.to_le_bytes());
    packet.extend(offset.into_iter().flat_map(u64::to_le_bytes));
    packet.resize(head_len, 0);
    packet.extend(records);
    packet.extend(data);
    if checked {
        seal(&mut packet, records.len(), offset.is_some());
    }
    packet
}

/// Returns the length of a packet's head, which has an offset if it is `striped`.
pub fn head_len(checked: bool, striped: bool) -> usize {
    16 + if striped { 8 } else { 0 } + if checked { 12 } else { 0 }
}

/// Computes the checksums.
fn seal(packet: &mut [u8], records_len: usize, striped: bool) {
    let (head, rest) = packet.split_at_mut(head_len(true, striped));
    let (records, data) = rest.split_at(records_len);
    let (before, sums) = head.split_at_mut(head_len(false, striped));
    sums[..4].copy_from_slice(&crc32c::crc32c(records).to_le_bytes());
    sums[4..8].copy_from_slice(&crc32c::crc32c(data).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &sums[..8]);
    sums[8..].copy_from_slice(&sum.to_le_bytes());
}

fn record(out: &mut Vec<u8>, kind: u8, flags: u8, number: u64, body: &[u8]) {
    out.extend([kind, flags, 0, 0]);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend(body);
}
