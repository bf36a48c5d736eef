//! The examples of docs/wire.md, byte for byte.

use super::*;
use crate::wire::lending::LentFrame;

/// The first example of docs/wire.md.
#[test]
fn encoding_matches_the_documented_example() {
    let table = [FrameInfo { len: 5, place: Place::Host }];
    let mut message = Vec::new();
    put_message(&mut message, 0, true, Payload::Eager(&[]), b"hi", table.into_iter(), 5);
    message.extend_from_slice(b"hello");
    assert_eq!(
        packet(&message),
        hex("27000000 00000000 0000000000000000 01050000 17000000 0000000000000000 \
             02000000 01000000 0500000000000000 6869 68656c6c6f")
    );
    assert_eq!(message.len() as u64, cost(2, 1, 5));
    let record = take(&mut &message[..]).unwrap();
    let Record::Message(announced) = record else { panic!("{record:?}") };
    assert_eq!((announced.payload, announced.header), (Payload::Eager(b"hello"), &b"hi"[..]));
    assert_eq!(announced.frames[..], table);
    let mut word = Vec::new();
    put(&mut word, &Record::Ack { first: 0, count: 1, delivery: Delivery::Delivered });
    assert_eq!(
        packet(&word),
        hex("14000000 00000000 0000000000000000 03000000 04000000 0000000000000000 01000000")
    );
    let mut close = Vec::new();
    put(&mut close, &Record::Close { packets: 0 });
    assert_eq!(packet(&close), hex("10000000 00000000 0000000000000000 0c000000 00000000 0000000000000000"));
}

/// The second example of docs/wire.md.
#[test]
fn lent_frame_encoding_matches_the_documented_example() {
    let table = [FrameInfo { len: 1 << 30, place: Place::Arena }, FrameInfo { len: 5, place: Place::Host }];
    let lent_frame = LentFrame { segment: 2, offset: 0x4000_0000, lease: 9, is_foreign: false };
    let mut message = Vec::new();
    let lent = Payload::Lent(Scope::Arenas, &[], &[]);
    put_message(&mut message, 1, false, lent, b"hi", table.into_iter(), LENT_FRAME_LEN as u64 + 5);
    message.extend_from_slice(&lent_frame.encode());
    message.extend_from_slice(b"hello");
    assert_eq!(
        packet(&message),
        hex("43000000 00000000 0000000000000000 01080000 33000000 0100000000000000 \
             02000000 02000000 0000004000000200 0500000000000000 6869 \
             02000000 0000004000000000 0900000000000000 68656c6c6f")
    );
    let record = take(&mut &message[..]).unwrap();
    let Record::Message(announced) = record else { panic!("{record:?}") };
    assert_eq!((announced.cost(), announced.payload_len()), (message.len() as u64, (1 << 30) + 5));
    let Payload::Lent(Scope::Arenas, [found], b"hello") = announced.payload else { panic!("{announced:?}") };
    assert_eq!(LentFrame::decode(found), lent_frame);
}

fn packet(records: &[u8]) -> Vec<u8> {
    let head = Head { records_len: records.len(), data_len: 0, transfer: Transfer::Message(0) };
    [&head.encode(), records].concat()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
