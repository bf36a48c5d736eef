//! Messages of any number of frames: small frames share one buffer, large ones travel by themselves.
//!
//! ```
//! use towline::Buffer;
//! use towline::packing::{Packer, unpack};
//!
//! let mut packer = Packer::new();
//! for number in 0..100_000_u32 {
//!     packer.copy(&number.to_le_bytes());
//! }
//! packer.push(Buffer::from(vec![7; 1 << 20]))?; // not copied
//! let message = packer.finish();
//! assert_eq!(message.frames().len(), 2);
//!
//! // At the receiver: all frames, in their order.
//! let frames = unpack(message)?;
//! assert_eq!((frames.len(), frames[3].as_slice()), (100_001, Some(&3_u32.to_le_bytes()[..])));
//! # Ok::<(), towline::Error>(())
//! ```
//!
//! # Bytes
//!
//! A **body** is the number of frames (4 bytes), one entry of 8 bytes for each (its length times 2, plus 1 if it
//! travels by itself), and the bytes of the packed frames. All integers are little-endian. A message whose body
//! is short has it in its header, after the four bytes `TLP` and the version, 1. Otherwise its header is these
//! four bytes, and the body is the first frame.

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Buffer;
use crate::transfer::message::{FRAMES_MAX, Message};

/// Frames below this length, in bytes, cost less to copy than to send by themselves.
pub const PACKED_BELOW: usize = 16 << 10;

/// A body up to this length, in bytes, travels in the header.
const BODY_IN_HEADER_MAX: usize = 12 << 10;
const MAGIC: [u8; 4] = *b"TLP\x01";
const COUNT_LEN: usize = 4;
const ENTRY_LEN: usize = 8;

/// Builds a message of any number of frames. See the [module](self).
#[derive(Debug, Default)]
pub struct Packer {
    entries: Vec<u8>,
    packed: Vec<u8>,
    own: Vec<Buffer>,
}

impl Packer {
    /// Begins a message without frames.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame of these bytes, which are copied.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.entry(bytes.len(), false);
        self.packed.extend_from_slice(bytes);
    }

    /// Appends a frame that travels by itself. It is copied if it is short, or if the message has no room for
    /// one more such frame ([`FRAMES_MAX`]).
    ///
    /// # Errors
    /// As [`Buffer::copy_to`].
    pub fn push(&mut self, frame: Buffer) -> Result<()> {
        // One frame is the body's.
        let travels = frame.len() >= PACKED_BELOW && self.own.len() < FRAMES_MAX - 1;
        if travels {
            self.entry(frame.len(), true);
            self.own.push(frame);
        } else {
            self.packed.extend_from_slice(&frame.to_vec()?);
            self.entry(frame.len(), false);
        }
        Ok(())
    }

    /// Returns the message.
    pub fn finish(self) -> Message {
        let count = (self.entries.len() / ENTRY_LEN) as u32;
        let body_len = COUNT_LEN + self.entries.len() + self.packed.len();
        let in_header = body_len <= BODY_IN_HEADER_MAX;
        let mut body = Vec::with_capacity(MAGIC.len() + body_len);
        if in_header {
            body.extend_from_slice(&MAGIC);
        }
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(&self.entries);
        body.extend_from_slice(&self.packed);
        if in_header {
            return Message::from_parts(body, self.own);
        }
        let mut frames = self.own;
        frames.insert(0, Buffer::from(body));
        Message::from_parts(&MAGIC[..], frames)
    }

    fn entry(&mut self, len: usize, is_own: bool) {
        let entry = (len as u64) << 1 | u64::from(is_own);
        self.entries.extend_from_slice(&entry.to_le_bytes());
    }
}

/// Returns the frames of a message that [`Packer`] built. Packed frames are parts of one buffer, which their
/// last handle frees.
///
/// # Errors
/// `Corrupt` if the message was not packed, if its version is not this one's, or if its table contradicts it.
pub fn unpack(message: Message) -> Result<Vec<Buffer>> {
    let (header, frames) = message.into_parts();
    let in_header =
        header.strip_prefix(&MAGIC[..]).ok_or_else(|| match header.strip_prefix(&MAGIC[..3]) {
            Some(version) => {
                corrupt(format!("its frames are packed by version {:?}, and this is 1", version.first()))
            }
            None => corrupt("its frames are not packed"),
        })?;
    let mut own = frames.into_iter();
    let body = if in_header.is_empty() {
        own.next().ok_or_else(|| corrupt("it has no body"))?
    } else {
        Buffer::from(header.slice(MAGIC.len()..))
    };
    let bytes = body.as_slice().ok_or_else(|| corrupt("its body is not in host memory"))?;
    let (count, rest) = bytes.split_first_chunk().ok_or_else(|| corrupt("its body is truncated"))?;
    let count = u32::from_le_bytes(*count) as usize;
    let (entries, packed) = count
        .checked_mul(ENTRY_LEN)
        .and_then(|len| rest.split_at_checked(len))
        .ok_or_else(|| corrupt("its table is truncated"))?;
    let mut at = bytes.len() - packed.len();
    let mut unpacked = Vec::with_capacity(count);
    for entry in entries.as_chunks().0 {
        let entry = u64::from_le_bytes(*entry);
        let len = usize::try_from(entry >> 1).map_err(|_| corrupt("a frame is too long"))?;
        if entry & 1 == 1 {
            let frame = own.next().filter(|frame| frame.len() == len);
            unpacked.push(frame.ok_or_else(|| corrupt("its table contradicts its frames"))?);
            continue;
        }
        let end = at.checked_add(len).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(|| corrupt("its packed frames are truncated"))?;
        unpacked.push(body.slice(at..end));
        at = end;
    }
    if at != bytes.len() || own.next().is_some() {
        return Err(corrupt("it has more than its table names"));
    }
    Ok(unpacked)
}

#[cold]
fn corrupt(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the message does not unpack: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(frames: &[&[u8]]) -> Message {
        let mut packer = Packer::new();
        for frame in frames {
            if frame.len() < PACKED_BELOW {
                packer.copy(frame);
            } else {
                packer.push(Buffer::from(frame.to_vec())).expect("host memory");
            }
        }
        packer.finish()
    }

    fn bytes_of(frames: &[Buffer]) -> Vec<&[u8]> {
        frames.iter().map(|frame| frame.as_slice().expect("host memory")).collect()
    }

    #[test]
    fn frames_of_all_lengths_come_back_in_order() {
        let large = vec![5; PACKED_BELOW];
        let medium = vec![6; PACKED_BELOW - 1];
        let lists: [&[&[u8]]; 6] = [
            &[],
            &[b""],
            &[b"a", b"", b"bc"],
            &[&large],
            &[b"x", &large, b"y", &large],
            &[&medium, &large, b"z"],
        ];
        for frames in lists {
            let message = packed(frames);
            let own = frames.iter().filter(|frame| frame.len() >= PACKED_BELOW).count();
            let body = usize::from(frames.iter().any(|frame| frame.len() == medium.len()));
            assert_eq!(message.frames().len(), own + body, "{} frames", frames.len());
            assert_eq!(bytes_of(&unpack(message).expect("it is packed")), frames);
        }
    }

    #[test]
    fn a_large_frame_is_not_copied() {
        let mut packer = Packer::new();
        let frame = Buffer::from(vec![1; PACKED_BELOW]);
        packer.push(frame.clone()).expect("host memory");
        let frames = unpack(packer.finish()).expect("it is packed");
        assert_eq!(frames[0].as_ptr(), frame.as_ptr());
    }

    #[test]
    fn more_large_frames_than_a_message_has_are_packed() {
        let mut packer = Packer::new();
        let frame = Buffer::from(vec![1; PACKED_BELOW]);
        for _ in 0..=FRAMES_MAX {
            packer.push(frame.clone()).expect("host memory");
        }
        let message = packer.finish();
        assert_eq!(message.frames().len(), FRAMES_MAX);
        message.check().expect("it can be sent");
        let frames = unpack(message).expect("it is packed");
        assert_eq!(frames.len(), FRAMES_MAX + 1);
        assert!(frames.iter().all(|unpacked| unpacked.len() == frame.len()));
    }

    #[test]
    fn a_message_that_contradicts_itself_is_refused() {
        let good = packed(&[b"abc", &vec![5; PACKED_BELOW]]);
        let (header, frames) = good.into_parts();
        for at in 0..header.len() {
            for flip in [1, 2, 128] {
                let mut bad = header.to_vec();
                bad[at] ^= flip;
                let is_content = at >= header.len() - 3;
                let result = unpack(Message::from_parts(bad, frames.clone()));
                assert_eq!(result.is_ok(), is_content, "byte {at} ^ {flip}");
            }
            let cut = unpack(Message::from_parts(header.slice(..at), frames.clone()));
            assert_eq!(cut.expect_err("it is cut").kind(), ErrorKind::Corrupt, "at {at}");
        }
        unpack(Message::from_parts(header.clone(), Vec::new())).expect_err("a frame is missing");
        let doubled = [frames.clone(), frames].concat();
        unpack(Message::from_parts(header, doubled)).expect_err("there is a frame too many");
        let huge = [&MAGIC[..], &u32::MAX.to_le_bytes()].concat();
        unpack(Message::new(huge)).expect_err("the count is checked before memory is taken for it");
    }
}
