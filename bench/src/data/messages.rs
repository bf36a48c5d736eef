//! The messages of one case: slices of warm memory, or of memory that no message used before.

use bytes::Bytes;
use towline::{Buffer, Message};

use super::payload::{self, MessageSpec, cuts};

/// Builds the messages of one case.
#[derive(Clone, Debug)]
pub(crate) struct MessageSource {
    memory: Buffer,
    spec: MessageSpec,
}

impl MessageSource {
    pub(crate) fn new(memory: Buffer, spec: MessageSpec) -> Self {
        Self { memory, spec }
    }

    /// Returns the payload of message `number`.
    pub(crate) fn payload(&self, number: u64) -> Buffer {
        let layout = self.spec.layout;
        let begin = layout.offset(number);
        self.memory.slice(begin..begin + layout.size_bytes)
    }

    /// Returns message `number`, in warm memory.
    pub(crate) fn message(&self, number: u64) -> Message {
        self.cut(number, self.payload(number))
    }

    /// Returns the payload of message `number` in memory that no message used before.
    pub(crate) fn fresh_payload(&self, number: u64) -> Result<Buffer, towline::Error> {
        Ok(self.spec.places.from.filled(self.payload(number).to_vec()?)?.freeze())
    }

    /// Returns message `number`, in memory that no message used before.
    pub(crate) fn fresh_message(&self, number: u64) -> Result<Message, towline::Error> {
        Ok(self.cut(number, self.fresh_payload(number)?))
    }

    fn cut(&self, number: u64, payload: Buffer) -> Message {
        let header = DataHeader(number).to_header();
        if self.spec.frames == 1 {
            return Message::new(header).with_frame(payload);
        }
        let frames = cuts(self.spec.layout.size_bytes, self.spec.frames).map(|range| payload.slice(range));
        Message::from_parts(header, frames.collect())
    }
}

/// The header of a data message: a mark and the message's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataHeader(pub(crate) u64);

impl DataHeader {
    const MARK: u8 = b'#';

    pub(crate) fn to_header(self) -> Bytes {
        let mut header = [Self::MARK; 9];
        header[1..].copy_from_slice(&self.0.to_le_bytes());
        Bytes::copy_from_slice(&header)
    }

    pub(crate) fn from_header(header: &[u8]) -> Option<Self> {
        match header.split_first() {
            Some((&Self::MARK, number)) => Some(Self(u64::from_le_bytes(number.try_into().ok()?))),
            _ => None,
        }
    }
}

/// Checks that a message has the number `expected`, and the frames and bytes of `spec`.
pub(crate) fn inspect(message: &Message, spec: MessageSpec, expected: u64) -> Result<(), String> {
    let MessageSpec { layout, frames, check, .. } = spec;
    let Some(DataHeader(number)) = DataHeader::from_header(message.header()) else {
        return Err(format!(
            "a message of {} header bytes without its header arrived",
            message.header().len()
        ));
    };
    if number != expected {
        return Err(format!("message {number} arrived where {expected} was expected"));
    }
    if message.frames().len() != frames || message.payload_len() != layout.size_bytes as u64 {
        return Err(format!(
            "message {number} arrived with {} frames of {} bytes together, sent were {frames} of {}",
            message.frames().len(),
            message.payload_len(),
            layout.size_bytes
        ));
    }
    for (frame, range) in message.frames().iter().zip(cuts(layout.size_bytes, frames)) {
        let bytes =
            frame.as_slice().ok_or_else(|| format!("message {number} arrived in unreadable memory"))?;
        if bytes.len() != range.len() {
            return Err(format!("message {number} arrived with other frame lengths"));
        }
        payload::check(layout, number, range.start, bytes, check)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::payload::{Check, Layout, Payload};
    use super::super::place::{Place, Places};
    use super::inspect;
    use super::*;

    #[test]
    fn warm_and_fresh_messages_pass_the_receivers_check() {
        let layout = Layout::new(1000, 4);
        for (frames, from) in [(1, Place::Host), (3, Place::Host), (1, Place::Arena), (3, Place::Arena)] {
            let places = Places { from, to: Place::Host };
            let spec = MessageSpec { layout, frames, check: Check::Whole, places };
            let load = MessageSource::new(Payload::default().prepare(layout, from).unwrap(), spec);
            for number in [0, 5, 300] {
                for message in [load.message(number), load.fresh_message(number).unwrap()] {
                    inspect(&message, spec, number).unwrap();
                    assert!(message.frames().iter().all(|frame| frame.place() == from.of_library()));
                }
            }
        }
    }

    fn message(layout: Layout, number: u64, frames: usize) -> Message {
        let memory = Payload::default().prepare(layout, Place::Host).unwrap();
        let begin = layout.offset(number);
        let cuts = cuts(layout.size_bytes, frames);
        let frames = cuts.map(|cut| memory.slice(begin + cut.start..begin + cut.end));
        Message::from_parts(DataHeader(number).to_header(), frames.collect())
    }

    #[test]
    fn a_wrong_message_is_detected() {
        let layout = Layout::new(100, 3);
        let spec = MessageSpec { layout, frames: 2, check: Check::Whole, places: Places::default() };
        let verdict = |message: &Message, expected| inspect(message, spec, expected);
        verdict(&message(layout, 7, 2), 7).unwrap();
        assert!(verdict(&message(layout, 7, 2), 8).unwrap_err().contains("where 8 was expected"));
        assert!(verdict(&message(layout, 7, 3), 7).unwrap_err().contains("3 frames"));
        let (_, frames) = message(layout, 8, 2).into_parts();
        let swapped = Message::from_parts(DataHeader(7).to_header(), frames);
        assert!(verdict(&swapped, 7).unwrap_err().contains("damaged"));
        assert!(verdict(&Message::new("hello"), 0).unwrap_err().contains("without its header"));
        let uneven =
            Message::from_parts(DataHeader(0).to_header(), vec![vec![0; 99].into(), vec![0; 1].into()]);
        assert!(verdict(&uneven, 0).unwrap_err().contains("other frame lengths"));
    }
}
