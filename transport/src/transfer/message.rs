//! Messages: a header and frames, and the announcement of a message whose payload has no destination yet.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, Place};
use crate::transfer::operation::{Completion, Done};

/// The largest header, in bytes.
pub const HEADER_LEN_MAX: usize = 64 << 10;
/// The most frames of one message.
pub const FRAMES_MAX: usize = 65_536;
/// The largest payload of one message, all frames together, in bytes.
pub const PAYLOAD_LEN_MAX: u64 = 1 << 48;
/// Payload below this length, in bytes, is sent with its announcement. From this length on it waits for a
/// destination, and is never copied.
pub const EAGER_LEN_MAX: u64 = 16 << 10;

/// A small header and an ordered list of frames, each in its own place.
///
/// ```
/// use towline::{Buffer, Message};
///
/// let tensor = Buffer::from(vec![0; 48]);
/// let message = Message::new("tensor 3x4 f32").with_frame(tensor).with_frame("its name");
/// assert_eq!((message.header().len(), message.payload_len()), (14, 56));
///
/// // At the receiver: a clone or a slice of a frame shares its memory.
/// let (_header, frames) = message.into_parts();
/// let second_row = frames[0].slice(16..32);
/// assert_eq!(second_row.as_slice(), Some(&[0; 16][..]));
/// assert_eq!(frames[1].as_slice(), Some(&b"its name"[..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Message {
    header: Bytes,
    frames: Vec<Buffer>,
    /// The places of the frames before they were staged, if they were.
    places: Option<Vec<Place>>,
}

impl Message {
    /// Makes a message of `header` (at most 64 KiB) and no frames.
    pub fn new(header: impl Into<Bytes>) -> Self {
        Self { header: header.into(), frames: Vec::new(), places: None }
    }

    /// Makes a message of `header` and `frames`.
    pub fn from_parts(header: impl Into<Bytes>, frames: Vec<Buffer>) -> Self {
        Self { header: header.into(), frames, places: None }
    }

    /// Returns the same message with staged copies of its frames, which the link can access. Its frame table
    /// keeps the original places.
    pub(crate) fn staged(&self, frames: Vec<Buffer>) -> Self {
        let places = self.table().map(|frame| frame.place).collect();
        Self { header: self.header.clone(), frames, places: Some(places) }
    }

    /// Appends a frame.
    #[must_use]
    pub fn with_frame(mut self, frame: impl Into<Buffer>) -> Self {
        self.frames.push(frame.into());
        self.places = None;
        self
    }

    /// The header.
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// Returns the frames, in order.
    pub fn frames(&self) -> &[Buffer] {
        &self.frames
    }

    /// Returns the frame table, which the receiver gets before the payload.
    pub fn table(&self) -> impl ExactSizeIterator<Item = FrameInfo> + '_ {
        self.frames.iter().enumerate().map(|(index, frame)| FrameInfo {
            len: frame.len(),
            place: self.places.as_ref().map_or_else(|| frame.place(), |places| places[index]),
        })
    }

    /// Returns the length of all frames together, in bytes.
    pub fn payload_len(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len() as u64).sum()
    }

    /// Returns the header and the frames.
    pub fn into_parts(self) -> (Bytes, Vec<Buffer>) {
        (self.header, self.frames)
    }

    /// Checks the limits of a message.
    ///
    /// # Errors
    /// `TooLarge`, naming the limit.
    pub(crate) fn check(&self) -> Result<()> {
        check_limits(self.header.len(), self.frames.len(), self.payload_len())
    }
}

pub(crate) fn check_limits(header_len: usize, frames: usize, payload_len: u64) -> Result<()> {
    let too_large = |what: &str, is: u64, max: u64| {
        Err(Error::new(ErrorKind::TooLarge, format!("{what} is {is}, and the limit is {max}")))
    };
    if header_len > HEADER_LEN_MAX {
        return too_large("the header's length in bytes", header_len as u64, HEADER_LEN_MAX as u64);
    }
    if frames > FRAMES_MAX {
        return too_large("the number of frames", frames as u64, FRAMES_MAX as u64);
    }
    if payload_len > PAYLOAD_LEN_MAX {
        return too_large("the payload's length in bytes", payload_len, PAYLOAD_LEN_MAX);
    }
    Ok(())
}

/// One entry of a message's frame table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// The length in bytes.
    pub len: usize,
    /// The place of the frame at the sender.
    pub place: Place,
}

/// A frame table. It is stored inline for up to two frames, as most messages have.
pub type Table = SmallVec<[FrameInfo; 2]>;

/// The receiver's acknowledgement of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every byte is in the memory that the receiver chose.
    Delivered,
    /// The receiver rejected it.
    Rejected,
}

/// A small message that the link may copy instead of an [`Op::Send`](crate::backend::Op::Send), whose fields
/// these are.
#[derive(Debug)]
pub struct SmallSend {
    /// The message.
    pub message: Message,
    /// Resolved by the receiver's acknowledgement.
    pub receipt: Done<Delivery>,
    /// Whether the sender waits for the acknowledgement, so that the receiver must not delay it.
    pub ack_now: bool,
    /// Whether more may follow at once, so that the message need not leave before the next `progress`.
    pub more: bool,
}

/// A message that a link announces, in the order in which the peer sent it.
#[derive(Debug)]
pub struct Announced {
    /// The link's identifier of the message.
    pub id: u64,
    /// The header.
    pub header: Bytes,
    /// The frame table.
    pub frames: Table,
    /// Where the payload is.
    pub arrival: Arrival,
    /// The sender waits for the acknowledgement.
    pub ack_now: bool,
}

/// Where the payload of an announced message is.
#[derive(Debug)]
pub enum Arrival {
    /// It has arrived, in this memory.
    Complete(Vec<Buffer>),
    /// It is in transit into the link's own memory, or has arrived there. The receiver waits for it, then
    /// acknowledges it.
    InProgress(Completion<Result<Vec<Buffer>>>),
    /// It is at the sender, until the message is accepted with a destination for each frame.
    AtSender,
}
