//! The payload, and its check at the receiver.
//!
//! One allocation holds a pattern; every 8-byte word follows from its position. A message is a slice of it.
//! Each round of the window starts a little later, so the same warm memory never carries the same bytes twice
//! in a row.

use towline::{Buffer, Error};

use super::place::{Place, Places};

const WORD: usize = 8;

/// Returns the word at position `index` of the pattern.
fn word(index: u64) -> u64 {
    let mut x = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x
}

/// The position of each message of a case: `buffers` slots of the pattern, used in turn, and `window` slots
/// at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Layout {
    pub(crate) size_bytes: usize,
    pub(crate) window: usize,
    pub(crate) buffers: usize,
}

impl Layout {
    /// Creates a layout in which each message in flight has its own memory.
    pub(crate) fn new(size_bytes: usize, window: usize) -> Self {
        Self { size_bytes, window, buffers: window }
    }

    /// Returns the rounds until the bytes repeat, and the bytes by which each round moves.
    fn rounds(self) -> (usize, usize) {
        if self.size_bytes < 4096 { (8, WORD) } else { (64, 64) }
    }

    pub(crate) fn stride(self) -> usize {
        let (rounds, step) = self.rounds();
        self.size_bytes.next_multiple_of(64) + rounds * step
    }

    /// Returns the length of the pattern that holds all messages.
    pub(crate) fn total_bytes(self) -> usize {
        self.stride() * self.buffers
    }

    /// Returns the offset of message `number`.
    pub(crate) fn offset(self, number: u64) -> usize {
        let (rounds, step) = self.rounds();
        let buffers = self.buffers as u64;
        let (buffer, round) = (number % buffers, (number / buffers) % rounds as u64);
        buffer as usize * self.stride() + round as usize * step
    }

    /// Returns the slot of message `number` at the destination.
    pub(crate) fn slot(self, number: u64) -> usize {
        (number % self.window as u64) as usize
    }
}

/// The messages of one case: their layout, frames, check and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MessageSpec {
    pub(crate) layout: Layout,
    /// Frames of each message.
    pub(crate) frames: usize,
    /// Which bytes the receiver checks.
    pub(crate) check: Check,
    pub(crate) places: Places,
}

/// Warm memory with the pattern. It grows to the largest layout, and all senders share it. It is never
/// written again, since a peer may still have it.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    place: Place,
    memory: Buffer,
}

impl Payload {
    /// Returns memory for `layout` in `place`, warm.
    ///
    /// # Errors
    /// The place does not have enough memory.
    pub(crate) fn prepare(&mut self, layout: Layout, place: Place) -> Result<Buffer, Error> {
        let length = layout.total_bytes().next_multiple_of(WORD);
        if self.place != place || self.memory.len() < length {
            // Free the old memory first: the machine may not have room for both.
            *self = Self { place, memory: Buffer::new() };
            self.memory = place.filled(pattern(length))?.freeze();
        }
        Ok(self.memory.slice(..layout.total_bytes()))
    }
}

/// Returns the first `length` bytes of the pattern; `length` is a multiple of 8.
fn pattern(length: usize) -> Vec<u8> {
    let mut memory = vec![0; length];
    for (index, chunk) in memory.chunks_exact_mut(WORD).enumerate() {
        chunk.copy_from_slice(&word(index as u64).to_le_bytes());
    }
    memory
}

impl MessageSpec {
    /// Returns the same spec for a receiver that has already read every byte.
    pub(crate) fn read_already(self) -> Self {
        let check = if self.check == Check::Read { Check::Edges } else { self.check };
        Self { check, ..self }
    }
}

/// Which arriving bytes are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Check {
    /// The first and last 8 bytes of each frame.
    Edges,
    /// The same, and every byte is loaded, as by an application.
    Read,
    /// Every byte.
    Whole,
}

/// Compares `bytes`, which start at `skip` in message `number`, with what was sent.
pub(crate) fn check(
    layout: Layout,
    number: u64,
    skip: usize,
    bytes: &[u8],
    how: Check,
) -> Result<(), String> {
    let begin = layout.offset(number) + skip;
    match how {
        Check::Whole => compare(begin, bytes, number),
        Check::Read => {
            read(bytes);
            check(layout, number, skip, bytes, Check::Edges)
        }
        Check::Edges => {
            compare(begin, &bytes[..bytes.len().min(WORD)], number)?;
            let last = bytes.len().saturating_sub(WORD);
            compare(begin + last, &bytes[last..], number)
        }
    }
}

/// Loads every byte into an unused sum, as fast as the memory allows.
pub(crate) fn read(bytes: &[u8]) {
    let words = bytes.chunks_exact(WORD);
    let tail = words.remainder().iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let sum = |sum: u64, word: &[u8]| sum.wrapping_add(word.try_into().map_or(0, u64::from_ne_bytes));
    std::hint::black_box(words.fold(tail, sum));
}

/// Compares `bytes` with the pattern from `begin` on.
fn compare(begin: usize, bytes: &[u8], number: u64) -> Result<(), String> {
    let lead = (begin.next_multiple_of(WORD) - begin).min(bytes.len());
    let (head, body) = bytes.split_at(lead);
    let words = body.chunks_exact(WORD);
    let tail_begin = begin + bytes.len() - words.remainder().len();
    let first = ((begin + lead) / WORD) as u64;
    let right = ragged(begin, head)
        && ragged(tail_begin, words.remainder())
        && words.enumerate().all(|(index, chunk)| chunk == word(first + index as u64).to_le_bytes());
    if right { Ok(()) } else { Err(describe(begin, bytes, number)) }
}

/// Compares byte by byte, for less than a word at either end.
fn ragged(begin: usize, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(index, byte)| *byte == byte_at(begin + index))
}

fn byte_at(position: usize) -> u8 {
    word((position / WORD) as u64).to_le_bytes()[position % WORD]
}

fn describe(begin: usize, bytes: &[u8], number: u64) -> String {
    let wrong = bytes.iter().enumerate().find(|(index, byte)| **byte != byte_at(begin + index));
    match wrong {
        Some((index, byte)) => format!(
            "message {number} arrived damaged: byte {index} of a checked piece of {} is {byte:#04x}, sent was {:#04x}",
            bytes.len(),
            byte_at(begin + index)
        ),
        None => format!("message {number} arrived damaged"),
    }
}

/// How a message of `size_bytes` is cut into `frames`: equal pieces, the last takes the rest.
pub(crate) fn cuts(size_bytes: usize, frames: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let piece = size_bytes / frames;
    (0..frames).map(move |index| {
        let end = if index + 1 == frames { size_bytes } else { (index + 1) * piece };
        index * piece..end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_lies_inside_and_slots_do_not_overlap() {
        for (size_bytes, window) in [(1, 1_usize), (8, 256), (100, 3), (4096, 16), (65_537, 4)] {
            for buffers in [window, window.div_ceil(2), 1] {
                let layout = Layout { buffers, ..Layout::new(size_bytes, window) };
                for number in 0..window as u64 * 70 {
                    let begin = layout.offset(number);
                    let buffer = number as usize % buffers;
                    assert_eq!(begin / layout.stride(), buffer);
                    assert_eq!((begin + size_bytes - 1) / layout.stride(), buffer);
                    assert_ne!(begin, layout.offset(number + 1), "no two in a row from the same bytes");
                }
            }
        }
    }

    #[test]
    fn one_wrong_byte_fails_the_check() {
        let layout = Layout::new(1003, 3);
        let memory = Payload::default().prepare(layout, Place::Arena).unwrap();
        let memory = memory.as_slice().unwrap();
        for number in 0..50 {
            let begin = layout.offset(number);
            let message = &memory[begin..begin + 1003];
            for range in cuts(1003, 4) {
                for how in [Check::Edges, Check::Read, Check::Whole] {
                    check(layout, number, range.start, &message[range.clone()], how).unwrap();
                }
            }
            for broken in [0, 7, 8, 500, 999, 1002] {
                let mut copy = message.to_vec();
                copy[broken] ^= 1;
                let verdict = check(layout, number, 0, &copy, Check::Whole).unwrap_err();
                assert!(verdict.contains(&format!("byte {broken} ")), "{verdict}");
                assert_eq!(
                    check(layout, number, 0, &copy, Check::Edges).is_err(),
                    !(8..995).contains(&broken),
                    "{broken}"
                );
            }
            assert!(check(layout, number + 3, 0, message, Check::Edges).is_err(), "a stale round passes");
            assert!(check(layout, number + 1, 0, message, Check::Edges).is_err(), "a wrong slot passes");
        }
    }

    #[test]
    fn tiny_messages_are_checked_too() {
        let layout = Layout::new(3, 2);
        let memory = Payload::default().prepare(layout, Place::Host).unwrap();
        let memory = memory.as_slice().unwrap();
        let begin = layout.offset(5);
        check(layout, 5, 0, &memory[begin..begin + 3], Check::Edges).unwrap();
        assert!(check(layout, 5, 0, &[0, 0, 0], Check::Edges).is_err());
        check(layout, 5, 0, &[], Check::Whole).unwrap();
    }

    #[test]
    fn cuts_cover_the_message_once() {
        for (size, frames) in [(10, 1), (10, 3), (2, 5), (64, 64)] {
            let pieces: Vec<_> = cuts(size, frames).collect();
            assert_eq!(pieces.len(), frames);
            assert_eq!(pieces[0].start, 0);
            assert_eq!(pieces[frames - 1].end, size);
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }

    #[test]
    fn memory_is_kept_between_cases() {
        let mut payload = Payload::default();
        for place in [Place::Host, Place::Arena] {
            let large = payload.prepare(Layout::new(1 << 16, 4), place).unwrap();
            let small = payload.prepare(Layout::new(8, 4), place).unwrap();
            assert_eq!((large.as_ptr(), large.place()), (small.as_ptr(), place.of_library()));
        }
    }
}
