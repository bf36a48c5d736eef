//! The messages of a hostile peer, byte for byte: docs/handshake.md and docs/wire.md.

/// The first bytes of every handshake message.
pub const MAGIC: &[u8] = b"TOWLINE\x1a";

/// Encodes a handshake message.
pub fn hand(kind: u8, body: &[u8]) -> Vec<u8> {
    [MAGIC, &[kind, 0, 0, 0], &(body.len() as u32).to_le_bytes(), body].concat()
}

/// Encodes a `Hello` of version 1, without features or a token, with these offers.
pub fn hello(nonce: [u8; 32], identity: &[u8; 56], offers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut hello = vec![1, 0, 1, 0];
    hello.extend([0; 8]);
    hello.extend(nonce);
    hello.extend(identity);
    hello.extend([0, offers.len() as u8]);
    for (name, offer) in offers {
        hello.push(name.len() as u8);
        hello.extend(name.as_bytes());
        hello.extend((offer.len() as u16).to_le_bytes());
        hello.extend(*offer);
    }
    hand(1, &hello)
}

/// Encodes a packet of the data stream.
pub fn packet(records: &[u8], transfer: u64, data: &[u8]) -> Vec<u8> {
    let lens = [records.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
    [&lens[..], &transfer.to_le_bytes(), records, data].concat()
}

/// Encodes a record of the data stream.
pub fn record(kind: u8, flags: u8, number: u64, body: &[u8]) -> Vec<u8> {
    [&[kind, flags, 0, 0][..], &(body.len() as u32).to_le_bytes(), &number.to_le_bytes(), body].concat()
}

/// Encodes a message record with a header and one host frame.
pub fn announcement(number: u64, flags: u8, header: &[u8], frame_len: u64, payload: &[u8]) -> Vec<u8> {
    let lens = [header.len() as u32, 1].map(u32::to_le_bytes).concat();
    record(1, flags, number, &[&lens[..], &frame_len.to_le_bytes(), header, payload].concat())
}
