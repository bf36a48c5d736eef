//! The model: what one direction of a connection may do. Every message is taken at most once, in order, whole; every ack
//! that its sender hears was acked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline::{Buffer, ErrorKind, Message};

use crate::rng::Rng;

/// One direction, as an onlooker sees both of its ends.
#[derive(Clone, Debug)]
pub(crate) struct Flow(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seed: u64,
    /// The longest frame.
    len_max: usize,
    submitted: u64,
    /// Messages whose send ended well.
    sent: u64,
    /// The receiver's words, in the messages' order: true if it took one.
    acked: Vec<bool>,
}

impl Flow {
    pub(crate) fn new(seed: u64, len_max: usize) -> Self {
        Self(Arc::new(Mutex::new(State { seed, len_max, submitted: 0, sent: 0, acked: Vec::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next message, about to be submitted.
    pub(crate) fn next(&self) -> (u64, Message) {
        let mut state = self.state();
        let number = state.submitted;
        state.submitted += 1;
        (number, state.message(number))
    }

    pub(crate) fn record_sent(&self) {
        self.state().sent += 1;
    }

    /// How many messages were submitted, how many of them were sent, and how many the receiver has acked its ack on.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let state = self.state();
        (state.submitted, state.sent, state.acked.len() as u64)
    }

    /// The receiver sees a header: it must be the next message's.
    pub(crate) fn check_next(&self, header: &[u8]) {
        let state = self.state();
        let number = u64::from_le_bytes(header.try_into().expect("a header of eight bytes"));
        assert!(number < state.submitted, "message {number} was never sent");
        assert_eq!(number, state.acked.len() as u64, "a message came twice, or out of order, or was lost");
    }

    /// The receiver took the next message.
    pub(crate) fn record_received(&self, taken: &Message, discarded: &[bool]) {
        self.check_next(taken.header());
        let mut state = self.state();
        let original = state.message(state.acked.len() as u64);
        assert_same(taken, &original, discarded);
        state.acked.push(true);
    }

    /// The receiver did not want the next message.
    pub(crate) fn record_rejected(&self) {
        self.state().acked.push(false);
    }

    /// The sender heard the ack on message `number`; true if the connection lives.
    pub(crate) fn record_ack(&self, number: u64, ack: Result<(), ErrorKind>) -> bool {
        let state = self.state();
        let acked = state.acked.get(number as usize);
        match ack {
            Ok(()) => {
                assert_eq!(acked, Some(&true), "message {number} was not taken, and its sender heard so")
            }
            Err(ErrorKind::Rejected) => assert_eq!(acked, Some(&false), "message {number} was not rejected"),
            Err(_) => return false,
        }
        true
    }

    /// A message came back: it must be what was given.
    pub(crate) fn check_returned(&self, number: u64, returned: &Message) {
        assert_same(returned, &self.state().message(number), &[]);
    }
}

impl State {
    /// Message `number`, the same whenever it is asked for.
    fn message(&self, number: u64) -> Message {
        let mut rng = Rng::new(self.seed, number + 2);
        let lens = [0, 1, 63, 1000, 5000, 16_384].map(|len| self.len_max.min(len));
        let frames = rng.choose(&[0, 1, 1, 2, 3]);
        let frame = |index| Buffer::from(vec![(number as u8).wrapping_add(index); rng.choose(&lens)]);
        Message::from_parts(number.to_le_bytes().to_vec(), (0..frames).map(frame).collect())
    }
}

fn assert_same(is: &Message, should_be: &Message, discarded: &[bool]) {
    assert_eq!(is.header(), should_be.header());
    assert_eq!(is.frames().len(), should_be.frames().len(), "frames");
    for (index, (is, should_be)) in is.frames().iter().zip(should_be.frames()).enumerate() {
        if discarded.get(index) == Some(&true) {
            assert!(is.is_empty(), "frame {index} was discarded");
        } else {
            let same = is.as_slice().expect("host memory") == should_be.as_slice().expect("host memory");
            assert!(same, "the bytes of frame {index}");
        }
    }
}
