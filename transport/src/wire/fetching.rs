//! Fetching: the announcement carries the addresses of the frames in the sender's memory. A receiver that
//! names its destinations copies the frames from there, once.
//!
//! The session schedules the fetches and tracks when the sender's memory is free. The link provides a
//! [`Fetcher`], which reads the peer's memory. Invariant: nothing fetched is delivered before its last part
//! is confirmed, that is, the memory had not gone back to its owner. It goes back only after
//! [`Fetcher::retract`], which makes the peer's confirmation fail.

use std::fmt::Debug;
use std::mem::MaybeUninit;

use crate::error::{Error, Result};
use crate::memory::BufferMut;
use crate::transfer::message::{FRAMES_MAX, HEADER_LEN_MAX, Message};
use crate::wire::credit::WINDOW;
use crate::wire::record::cost;

/// The length of an address in an announcement, in bytes.
pub(crate) const ADDRESS_LEN: usize = 8;
/// The most frames of a fetchable message.
pub(crate) const FETCHED_FRAMES_MAX: usize = 1024;
/// The least payload of a fetchable message. Below it, two copies through the link cost less than the system
/// call.
pub(crate) const FETCH_LEN_MIN: u64 = 256 << 10;
/// And the least payload for each of its frames, since each takes a system call.
const FETCH_LEN_MIN_A_FRAME: u64 = 64 << 10;
/// The most that is fetched at a time, in bytes; other messages have their turn between.
pub(crate) const FETCHED_AT_ONCE: usize = 512 << 10;

const _: () = {
    let longest = cost(HEADER_LEN_MAX, FETCHED_FRAMES_MAX, (FETCHED_FRAMES_MAX * ADDRESS_LEN) as u64);
    assert!(longest <= WINDOW.bytes && FETCHED_FRAMES_MAX <= FRAMES_MAX, "a message must fit the window");
};

/// Reads the peer's memory, and retracts ours. Dropping it retracts.
pub(crate) trait Fetcher: Debug + Send {
    /// Returns whether the peer's memory can be read, as far as is known.
    fn fetches(&self) -> bool;

    /// Begins to read a part on another thread. Never waits for the peer's memory. One part at a time.
    ///
    /// # Errors
    /// Returns the part if it cannot be read: the payload must then be sent.
    fn begin(&mut self, part: Part) -> Result<(), Part>;

    /// Returns the result of the part once it is known. A fetcher that failed does not try again.
    fn finished(&mut self) -> Option<PartEnd>;

    /// Abandons the part: calls `then` with the part once its memory is free, or with `None` if it is not
    /// free within the time limit of a read.
    fn abandon(&mut self, then: Box<dyn FnOnce(Option<Part>) + Send>);

    /// Retracts our memory, which is returned to its owners after this call. Whatever the peer fetched but
    /// has not confirmed becomes invalid.
    fn retract(&mut self);
}

/// What is read at a time: pieces of frames, with the memory they are read into.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) pieces: Vec<Piece>,
    /// The last part of the message: the data read is then confirmed.
    pub(crate) is_last: bool,
}

/// `len` bytes of a frame, read from `address` in the peer's memory and appended to `into`.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) frame: usize,
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) into: BufferMut,
}

/// The result of a part.
#[derive(Debug)]
pub(crate) enum PartEnd {
    /// The part was read. If it was the last of a message, the message is confirmed.
    Read(Part),
    /// The part could not be read: the payload must be sent.
    Failed(Part),
    /// The peer ended the connection or exited before: the data read is invalid.
    Lost(Part, Error),
    /// The read did not return in time, and keeps its memory until it does.
    Stuck(Error),
}

impl PartEnd {
    /// Returns the part, unless it is still being read.
    pub(crate) fn into_part(self) -> Option<Part> {
        match self {
            Self::Read(part) | Self::Failed(part) | Self::Lost(part, _) => Some(part),
            Self::Stuck(_) => None,
        }
    }
}

impl Part {
    /// Reads all pieces with `fetch`, which fills memory from an address on.
    ///
    /// # Errors
    /// Those of `fetch`.
    pub(crate) fn read_by<F>(&mut self, mut fetch: F) -> Result<()>
    where
        F: for<'a> FnMut(u64, &'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8]>,
    {
        self.pieces.iter_mut().try_for_each(|Piece { address, len, into, .. }| {
            into.fill_with(|spare| fetch(*address, &mut spare[..*len])).map(drop)
        })
    }
}

/// Returns the addresses of a message's frames, or `None` if the message is not fetchable.
pub(crate) fn addresses(message: &Message) -> Option<Vec<u64>> {
    if len_if_fetchable(message) == 0 {
        return None;
    }
    message.frames().iter().map(|frame| frame.is_readable().then(|| frame.as_ptr().addr() as u64)).collect()
}

/// Returns the most bytes after the header in the record of a fetchable message, or 0 if the message is not
/// fetchable.
pub(crate) fn len_if_fetchable(message: &Message) -> u64 {
    let frames = message.frames().len();
    let worth_it = message.payload_len() >= FETCH_LEN_MIN.max(frames as u64 * FETCH_LEN_MIN_A_FRAME);
    if worth_it && frames <= FETCHED_FRAMES_MAX { (frames * ADDRESS_LEN) as u64 } else { 0 }
}

/// Decodes the addresses in an announcement.
pub(crate) fn addresses_in(addresses: &[[u8; ADDRESS_LEN]]) -> Vec<u64> {
    addresses.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}
