//! The model of one direction of a connection. Each message is received at most once, in order and complete.
//! Each acknowledgement that the sender receives was sent by the receiver.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline::{Buffer, ErrorKind, Message};

use crate::rng::Rng;

/// The record of one direction, updated by both ends.
#[derive(Clone, Debug)]
pub(crate) struct Flow(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seed: u64,
    /// The longest frame.
    len_max: usize,
    submitted: u64,
    /// Messages whose send succeeded.
    sent: u64,
    /// The receiver's acknowledgements, in the order of messages: true for received, false for rejected.
    acked: Vec<bool>,
}

impl Flow {
    pub(crate) fn new(seed: u64, len_max: usize) -> Self {
        Self(Arc::new(Mutex::new(State { seed, len_max, submitted: 0, sent: 0, acked: Vec::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number and the content of the next message to submit.
    pub(crate) fn next(&self) -> (u64, Message) {
        let mut state = self.state();
        let number = state.submitted;
        state.submitted += 1;
        (number, state.message(number))
    }

    pub(crate) fn record_sent(&self) {
        self.state().sent += 1;
    }

    /// Returns how many messages were submitted, sent, and received or rejected.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let state = self.state();
        (state.submitted, state.sent, state.acked.len() as u64)
    }

    /// Checks that a header at the receiver belongs to the next message.
    pub(crate) fn check_next(&self, header: &[u8]) {
        let state = self.state();
        let number = u64::from_le_bytes(header.try_into().expect("a header of eight bytes"));
        assert!(number < state.submitted, "message {number} was never sent");
        assert_eq!(number, state.acked.len() as u64, "a message arrived twice, or out of order, or was lost");
    }

    /// Records that the receiver received the next message, and checks its content.
    pub(crate) fn record_received(&self, taken: &Message, discarded: &[bool]) {
        self.check_next(taken.header());
        let mut state = self.state();
        let original = state.message(state.acked.len() as u64);
        assert_same(taken, &original, discarded);
        state.acked.push(true);
    }

    /// Records that the receiver rejected the next message.
    pub(crate) fn record_rejected(&self) {
        self.state().acked.push(false);
    }

    /// Checks the acknowledgement of message `number` at the sender. Returns false if the connection has ended.
    pub(crate) fn record_ack(&self, number: u64, ack: Result<(), ErrorKind>) -> bool {
        let state = self.state();
        let acked = state.acked.get(number as usize);
        match ack {
            Ok(()) => {
                assert_eq!(acked, Some(&true), "message {number} was acknowledged and not received")
            }
            Err(ErrorKind::Rejected) => assert_eq!(acked, Some(&false), "message {number} was not rejected"),
            Err(_) => return false,
        }
        true
    }

    /// Checks that a message returned by a failed send is unchanged.
    pub(crate) fn check_returned(&self, number: u64, returned: &Message) {
        assert_same(returned, &self.state().message(number), &[]);
    }
}

impl State {
    /// Returns message `number`, which is always the same.
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
