//! Frames that the receiver reads where the sender has them: an announcement says where they lie, and the receiver, who names
//! their landings, copies them there by itself, once.
//!
//! The session says what lies where, whose turn it is, and when the sender's memory is free. The link brings a [`Fetcher`],
//! which reaches the peer's memory. The invariant: nothing that was fetched is delivered before [`Fetcher::confirm`] said that
//! the memory had not gone back to its owner; and it goes back only after [`Fetcher::withdraw`], which makes the peer's fail.

use std::fmt::Debug;
use std::mem::MaybeUninit;

use crate::error::Result;
use crate::message::{FRAMES_MAX, HEADER_LEN_MAX, Message};
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

    /// Fills `into` from that address of the peer's memory on, where all of it can be read; otherwise it does not try again.
    /// What was read counts for nothing before it is [confirmed](Self::confirm).
    ///
    /// # Errors
    /// Whatever kept it from reading: the payload has to travel.
    fn fetch<'a>(&mut self, address: u64, into: &'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8]>;

    /// Whether the peer still had all of it as it was, when the last of what was fetched so far was read.
    ///
    /// # Errors
    /// `PeerLost`: it ended the connection, or itself.
    fn confirm(&mut self) -> Result<()>;

    /// Our memory goes back to its owners from now on: what the peer fetches and has not confirmed counts for nothing.
    fn withdraw(&mut self);
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
