//! The messages of one case: slices of warm memory, or memory that no message used before.

use bytes::Bytes;
use towline::{Buffer, Message};

use crate::payload::{Layout, cuts};
use crate::peer::Stamp;

/// Makes messages.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    memory: Buffer,
    layout: Layout,
    frames: usize,
}

impl Load {
    pub(crate) fn new(memory: &Bytes, layout: Layout, frames: usize) -> Self {
        Self { memory: Buffer::from(memory.clone()), layout, frames }
    }

    /// The payload of message `number`.
    pub(crate) fn payload(&self, number: u64) -> Buffer {
        let begin = self.layout.offset(number);
        self.memory.slice(begin..begin + self.layout.size_bytes)
    }

    /// Message `number`, in warm memory.
    pub(crate) fn message(&self, number: u64) -> Message {
        self.cut(number, self.payload(number))
    }

    /// The payload of message `number` in memory that carried nothing before.
    pub(crate) fn fresh_payload(&self, number: u64) -> Result<Buffer, towline::Error> {
        Ok(Buffer::from(self.payload(number).to_vec()?))
    }

    /// Message `number`, in memory that carried nothing before.
    pub(crate) fn fresh_message(&self, number: u64) -> Result<Message, towline::Error> {
        Ok(self.cut(number, self.fresh_payload(number)?))
    }

    fn cut(&self, number: u64, payload: Buffer) -> Message {
        let header = Stamp(number).to_header();
        if self.frames == 1 {
            return Message::new(header).with_frame(payload);
        }
        let frames = cuts(self.layout.size_bytes, self.frames).map(|range| payload.slice(range));
        Message::from_parts(header, frames.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Check, Payload};
    use crate::peer::inspect;

    #[test]
    fn warm_and_fresh_messages_pass_the_receivers_check() {
        let layout = Layout { size_bytes: 1000, window: 4 };
        for frames in [1, 3] {
            let load = Load::new(&Payload::default().prepare(layout), layout, frames);
            for number in [0, 5, 300] {
                inspect(&load.message(number), layout, frames, Check::Whole, number).unwrap();
                inspect(&load.fresh_message(number).unwrap(), layout, frames, Check::Whole, number).unwrap();
            }
        }
    }
}
