//! Bytes with a position: shifted, swapped or torn payload does not pass for the right one.

use std::sync::LazyLock;

use towline::{Buffer, Message};

/// Prime, so that no power of two maps a position onto an equal one.
const BLOCK_LEN: usize = 1_048_573;

// Each case's process computes it, without optimization, so its loop is short.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = vec![[0; 8]; BLOCK_LEN.div_ceil(8)];
    for word in &mut words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    let mut block = words.into_flattened();
    block.truncate(BLOCK_LEN);
    block
});

/// Returns `len` bytes, different for each `seed`.
pub(crate) fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for run in runs(seed, 0, len) {
        bytes.extend_from_slice(run);
    }
    bytes
}

/// Asserts that these are the bytes of `seed` from `offset` on.
#[track_caller]
pub(crate) fn assert_bytes(actual: &[u8], seed: usize, offset: usize) {
    let mut rest = actual;
    for run in runs(seed, offset, actual.len()) {
        let (here, more) = rest.split_at(run.len());
        if here != run {
            let wrong = here.iter().zip(run).position(|(is, should)| is != should).unwrap_or_default();
            let at = actual.len() - rest.len() + wrong;
            panic!("byte {at} of {} is wrong (seed {seed}, offset {offset})", actual.len());
        }
        rest = more;
    }
}

/// Asserts that `frame` holds all bytes of `seed`, in any place.
#[track_caller]
pub(crate) fn assert_frame(frame: &Buffer, seed: usize, len: usize) {
    assert_eq!(frame.len(), len, "the frame's length (seed {seed})");
    match frame.as_slice() {
        Some(actual) => assert_bytes(actual, seed, 0),
        None => assert_bytes(&frame.to_vec().unwrap(), seed, 0),
    }
}

/// Returns a message with its number as header, and a frame of each length.
pub(crate) fn message(number: usize, lengths: &[usize]) -> Message {
    let frame = |(at, len): (usize, &usize)| Buffer::from(bytes(number + at, *len));
    let frames = lengths.iter().enumerate().map(frame).collect();
    Message::from_parts((number as u64).to_le_bytes().to_vec(), frames)
}

/// Returns the number of a message.
#[track_caller]
pub(crate) fn number(header: &[u8]) -> usize {
    u64::from_le_bytes(header.try_into().expect("the header is a number")) as usize
}

/// Asserts that [`message`] made this message.
#[track_caller]
pub(crate) fn assert_message(message: &Message, number: usize, lengths: &[usize]) {
    assert_eq!(self::number(message.header()), number, "the message's number");
    assert_eq!(message.frames().len(), lengths.len(), "frames of message {number}");
    for (at, (frame, len)) in message.frames().iter().zip(lengths).enumerate() {
        assert_frame(frame, number + at, *len);
    }
}

fn runs(seed: usize, offset: usize, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let mut at = (seed.wrapping_mul(7919) + offset) % BLOCK_LEN;
    let mut left = len;
    std::iter::from_fn(move || {
        let run = left.min(BLOCK_LEN - at);
        let bytes = &BLOCK[at..at + run];
        (left, at) = (left - run, 0);
        (run > 0).then_some(bytes)
    })
}
