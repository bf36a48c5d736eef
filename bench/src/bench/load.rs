//! The messages of one case: slices of warm memory, or memory that no message used before.

use towline::{Buffer, Message};

use crate::payload::{Cargo, cuts};
use crate::peer::Stamp;

/// Makes messages.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    memory: Buffer,
    cargo: Cargo,
}

impl Load {
    pub(crate) fn new(memory: Buffer, cargo: Cargo) -> Self {
        Self { memory, cargo }
    }

    /// The payload of message `number`.
    pub(crate) fn payload(&self, number: u64) -> Buffer {
        let layout = self.cargo.layout;
        let begin = layout.offset(number);
        self.memory.slice(begin..begin + layout.size_bytes)
    }

    /// Message `number`, in warm memory.
    pub(crate) fn message(&self, number: u64) -> Message {
        self.cut(number, self.payload(number))
    }

    /// The payload of message `number` in memory that carried nothing before.
    pub(crate) fn fresh_payload(&self, number: u64) -> Result<Buffer, towline::Error> {
        Ok(self.cargo.places.from.filled(self.payload(number).to_vec()?)?.freeze())
    }

    /// Message `number`, in memory that carried nothing before.
    pub(crate) fn fresh_message(&self, number: u64) -> Result<Message, towline::Error> {
        Ok(self.cut(number, self.fresh_payload(number)?))
    }

    fn cut(&self, number: u64, payload: Buffer) -> Message {
        let header = Stamp(number).to_header();
        if self.cargo.frames == 1 {
            return Message::new(header).with_frame(payload);
        }
        let frames = cuts(self.cargo.layout.size_bytes, self.cargo.frames).map(|range| payload.slice(range));
        Message::from_parts(header, frames.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Check, Layout, Payload};
    use crate::peer::inspect;
    use crate::place::{Place, Places};

    #[test]
    fn warm_and_fresh_messages_pass_the_receivers_check() {
        let layout = Layout::new(1000, 4);
        for (frames, from) in [(1, Place::Host), (3, Place::Host), (1, Place::Arena), (3, Place::Arena)] {
            let places = Places { from, to: Place::Host };
            let cargo = Cargo { layout, frames, check: Check::Whole, places };
            let load = Load::new(Payload::default().prepare(layout, from).unwrap(), cargo);
            for number in [0, 5, 300] {
                for message in [load.message(number), load.fresh_message(number).unwrap()] {
                    inspect(&message, cargo, number).unwrap();
                    assert!(message.frames().iter().all(|frame| frame.place() == from.of_library()));
                }
            }
        }
    }
}
