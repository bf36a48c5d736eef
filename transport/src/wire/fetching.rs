//! Frames that the receiver reads where the sender has them: an announcement says where they lie, and the receiver, who names
//! their destinations, copies them there by itself, once.
//!
//! The session says what lies where, whose turn it is, and when the sender's memory is free. The link brings a [`Fetcher`],
//! which reaches the peer's memory. The invariant: nothing that was fetched is delivered before its last part was confirmed:
//! the memory had not gone back to its owner; and it goes back only after [`Fetcher::retract`], which makes the peer's fail.

use std::fmt::Debug;
use std::mem::MaybeUninit;

use crate::error::{Error, Result};
use crate::memory::BufferMut;
use crate::transfer::message::{FRAMES_MAX, HEADER_LEN_MAX, Message};
use crate::wire::credit::WINDOW;
use crate::wire::record::cost;

/// An address in an announcement.
pub(crate) const ADDRESS_LEN: usize = 8;
/// The most frames of a message that may be fetched.
pub(crate) const FETCHED_FRAMES_MAX: usize = 1024;
/// Payload from so much on may be fetched: below, the two copies by way of the link cost less than asking the kernel.
pub(crate) const FETCH_LEN_MIN: u64 = 256 << 10;
/// And so much for each of its frames, as each takes a call.
const FETCH_LEN_MIN_A_FRAME: u64 = 64 << 10;
/// What is fetched in one go, before others have their turn.
pub(crate) const FETCHED_AT_ONCE: usize = 512 << 10;

const _: () = {
    let longest = cost(HEADER_LEN_MAX, FETCHED_FRAMES_MAX, (FETCHED_FRAMES_MAX * ADDRESS_LEN) as u64);
    assert!(longest <= WINDOW.bytes && FETCHED_FRAMES_MAX <= FRAMES_MAX, "it could never be announced");
};

/// Both sides of fetching: what reads the peer's memory, and what tells the peer that it may not read ours any more. Where it
/// is dropped, it has withdrawn.
pub(crate) trait Fetcher: Debug + Send {
    /// Whether it reaches the peer's memory, as far as it knows.
    fn fetches(&self) -> bool;

    /// Begins to read a part, elsewhere: this never waits for the peer's memory. One part at a time.
    ///
    /// # Errors
    /// The part, where it cannot be read: the payload has to travel.
    fn begin(&mut self, part: Part) -> Result<(), Part>;

    /// What became of the part, once that is known. Where reading failed, it does not try again.
    fn finished(&mut self) -> Option<PartEnd>;

    /// Nobody waits for the part any more: calls `then` with it once its memory is free, or with none where it is not within
    /// the time of a read.
    fn abandon(&mut self, then: Box<dyn FnOnce(Option<Part>) + Send>);

    /// Our memory goes back to its owners from now on: what the peer fetches and has not confirmed counts for nothing.
    fn retract(&mut self);
}

/// What is read in one go: pieces of frames, with the memory that they land in.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) pieces: Vec<Piece>,
    /// The message is whole with it: what was read is then confirmed.
    pub(crate) is_last: bool,
}

/// So many bytes of a frame, from an address of the peer's on, to the end of what the buffer has.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) frame: usize,
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) into: BufferMut,
}

/// What became of a part.
#[derive(Debug)]
pub(crate) enum PartEnd {
    /// It was read, and the last one of a message confirmed.
    Read(Part),
    /// It could not be read: the payload has to travel.
    Failed(Part),
    /// The peer ended the connection, or itself, before: what was read counts for nothing.
    Lost(Part, Error),
    /// The read did not return in time, and keeps its memory until it does.
    Stuck(Error),
}

impl PartEnd {
    /// The part, unless it is still being read.
    pub(crate) fn into_part(self) -> Option<Part> {
        match self {
            Self::Read(part) | Self::Failed(part) | Self::Lost(part, _) => Some(part),
            Self::Stuck(_) => None,
        }
    }
}

impl Part {
    /// Reads all of it by `fetch`, which fills memory from an address on.
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

/// The addresses of a message's frames, if it may be fetched; otherwise it travels.
pub(crate) fn addresses(message: &Message) -> Option<Vec<u64>> {
    if len_if_fetchable(message) == 0 {
        return None;
    }
    message.frames().iter().map(|frame| Some(frame.as_slice()?.as_ptr().addr() as u64)).collect()
}

/// The bytes behind the header of a message that may be fetched, at most.
pub(crate) fn len_if_fetchable(message: &Message) -> u64 {
    let frames = message.frames().len();
    let worth_it = message.payload_len() >= FETCH_LEN_MIN.max(frames as u64 * FETCH_LEN_MIN_A_FRAME);
    if worth_it && frames <= FETCHED_FRAMES_MAX { (frames * ADDRESS_LEN) as u64 } else { 0 }
}

/// The addresses in an announcement.
pub(crate) fn addresses_in(addresses: &[[u8; ADDRESS_LEN]]) -> Vec<u64> {
    addresses.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}
