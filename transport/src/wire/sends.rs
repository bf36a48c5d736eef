//! Outgoing messages: queued for credit, announced, being sent, or waiting for their acknowledgement.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::memory::Place;
use crate::transfer::message::{Delivery, EAGER_LEN_MAX, Message, SmallSend};
use crate::transfer::operation::{Done, Operation};
use crate::wire::bounce_copy::{BOUNCED_AT_ONCE, BounceCopy};
use crate::wire::count::Count;
use crate::wire::credit::WINDOW;
use crate::wire::fetching::{ADDRESS_LEN, addresses, len_if_fetchable};
use crate::wire::lending::{BOUNCED_LEN_MIN, LENT_LEN_MIN, Lender, LentFrame, Scope};
use crate::wire::record::{Payload, Transfer, corrupt, cost, put_message};
use crate::wire::send_queue::{DataOwner, DataSource, Ending, SendQueue, is_set};
use crate::wire::sequence_window::SequenceWindow;

/// A packet's records are closed at this length, in bytes.
pub(crate) const RECORDS_LEN: usize = 64 << 10;
/// The most a message may cost in the window to be coalesced, in bytes.
const COALESCED_COST_MAX: u64 = 1 << 10;
/// Coalesced messages are sent once they reach this length, in bytes.
pub(crate) const COALESCED_LEN: usize = 16 << 10;

const _: () = assert!(
    COALESCED_COST_MAX <= LENT_LEN_MIN,
    "coalesced messages are copied, so they must be too short to be lent"
);

#[derive(Debug, Default)]
pub(crate) struct Sends {
    queued: VecDeque<Queued>,
    /// Records of coalesced messages, including payload. Their memory is already free.
    coalesced: Vec<u8>,
    /// One of them must be sent at once.
    urgent: bool,
    unacked: SequenceWindow<Unacked>,
    /// The bounce copy of the first message in the queue, if it is being made.
    bounce_copy: Option<BounceCopy>,
    /// How many bytes this poll may still copy, and whether the rest waits for the next poll.
    may_copy: usize,
    paused: bool,
    /// Lent frames whose announcements have not been sent completely, in order. The peer acts on an
    /// announcement only once its last byte has arrived.
    unsent_leases: VecDeque<(u64, LentFrame)>,
    /// Bytes of the window used by unacknowledged messages.
    bytes_in_use: u64,
    /// The pre-granted credit, and how much of it is in use, in bytes.
    pregranted: u64,
    pregranted_in_use: u64,
    stalled: bool,
    /// An acknowledgement may arrive before the transport reports that its message has left.
    early_acks: bool,
    pub(crate) stalls: Count,
    pub(crate) copied: Count,
    pub(crate) bounced: Count,
}

#[derive(Debug)]
struct Queued {
    message: Operation<Message>,
    receipt: Done<Delivery>,
    ack_now: bool,
}

#[derive(Debug)]
struct Unacked {
    receipt: Done<Delivery>,
    cost: u64,
    pregranted: u64,
    state: SendState,
}

#[derive(Debug)]
enum SendState {
    /// The payload waits for the receiver's accept.
    Waiting(Operation<Message>),
    /// As `Waiting`, or for the acknowledgement: the receiver may have read the payload from our memory.
    Fetchable(Operation<Message>),
    /// The payload is being handed to the kernel.
    Moving,
    /// As `Moving`, but the acknowledgement has already arrived.
    Acked(Delivery),
    /// The whole payload has been handed to the kernel.
    Left,
}

impl Sends {
    /// Allows acknowledgements to arrive before their messages have left. They then take effect once the
    /// message has left.
    pub(crate) fn allow_early_acks(&mut self) {
        self.early_acks = true;
    }

    /// Queues a message. With `more`, a small one is coalesced with later ones.
    pub(crate) fn push(
        &mut self,
        message: Operation<Message>,
        receipt: Done<Delivery>,
        ack_now: bool,
        more: bool,
    ) {
        if is_small(message.memory()) && self.may_coalesce(message.memory()) {
            self.coalesce(message.memory(), receipt, ack_now, more);
            return message.finish(drop);
        }
        self.queued.push_back(Queued { message, receipt, ack_now });
        self.note_stall();
    }

    /// As [`push`](Self::push) for a [small](is_small) message without an operation. Returns it if it must be
    /// queued.
    pub(crate) fn copy(&mut self, small: SmallSend) -> Option<SmallSend> {
        if !self.may_coalesce(&small.message) {
            return Some(small);
        }
        self.coalesce(&small.message, small.receipt, small.ack_now, small.more);
        None
    }

    fn may_coalesce(&self, message: &Message) -> bool {
        self.queued.is_empty() && self.has_credit(message)
    }

    /// Appends a copy of a message to the coalesced ones.
    fn coalesce(&mut self, memory: &Message, receipt: Done<Delivery>, ack_now: bool, more: bool) {
        self.urgent |= !more;
        let cost = cost_of(memory);
        let (id, payload_len) = (self.unacked.next(), memory.payload_len());
        let out = &mut self.coalesced;
        put_message(out, id, ack_now, Payload::Eager(&[]), memory.header(), memory.table(), payload_len);
        for frame in memory.frames() {
            if let Some(bytes) = frame.raw_bytes() {
                bytes.append_to(out);
            }
        }
        self.copied.add(payload_len);
        self.bytes_in_use += cost;
        self.unacked.push(Unacked { receipt, cost, pregranted: 0, state: SendState::Left });
    }

    /// Returns whether coalesced messages are pending.
    pub(crate) fn have_coalesced(&self) -> bool {
        !self.coalesced.is_empty()
    }

    /// Counts how often the queue begins to wait for credit.
    fn note_stall(&mut self) {
        let stalled = !self.queued.is_empty() && !self.urgent && !self.first_has_credit();
        self.stalls.add(u64::from(stalled && !self.stalled));
        self.stalled = stalled;
    }

    fn first_has_credit(&self) -> bool {
        self.queued.front().is_some_and(|queued| self.has_credit(queued.message.memory()))
    }

    /// Begins a poll, which may make bounce copies up to a limit.
    pub(crate) fn begin_poll(&mut self) {
        (self.may_copy, self.paused) = (BOUNCED_AT_ONCE, false);
    }

    /// Returns whether the next poll has work without further input.
    pub(crate) fn are_paused(&self) -> bool {
        self.paused
    }

    /// Returns whether a message must be announced now and can be.
    pub(crate) fn are_due(&self) -> bool {
        self.urgent || self.coalesced.len() >= COALESCED_LEN || (!self.paused && self.first_has_credit())
    }

    /// Returns whether everything has been sent.
    pub(crate) fn are_done(&self) -> bool {
        self.queued.is_empty()
            && self.coalesced.is_empty()
            && self.unacked.iter().all(|unacked| matches!(unacked.state, SendState::Left))
    }

    fn has_credit(&self, message: &Message) -> bool {
        self.unacked.len() < WINDOW.messages as usize && self.bytes_in_use + cost_of(message) <= WINDOW.bytes
    }

    /// Announces as many messages as credit and the packet allow. With `fetch`, the peer may fetch the
    /// payload of those that wait for an accept.
    pub(crate) fn announce(
        &mut self,
        send_queue: &mut SendQueue,
        data_queue: &mut VecDeque<DataSource>,
        lender: &mut Option<Box<dyn Lender>>,
        fetch: bool,
    ) {
        send_queue.encoded().append(&mut self.coalesced);
        self.urgent = false;
        while send_queue.records_len() < RECORDS_LEN && send_queue.has_room() {
            if !self.first_has_credit() {
                break;
            }
            self.paused = lender.as_mut().is_some_and(|lender| !self.bounce_copy(&mut **lender));
            if self.paused {
                break;
            }
            let Some(queued) = self.queued.pop_front() else { break };
            let bounce_copy = self.bounce_copy.take();
            let lend =
                |lender: &mut Box<dyn Lender>| self.lend(queued.message.memory(), bounce_copy, &mut **lender);
            match lender.as_mut().and_then(lend) {
                Some((scope, lent_frames)) => self.announce_lent(queued, scope, lent_frames, send_queue),
                None => self.announce_one(queued, send_queue, data_queue, fetch),
            }
        }
        self.note_stall();
    }

    /// Continues the bounce copy of the first message in the queue, if it needs one, within this poll's
    /// limit. Returns whether the message can be announced now.
    fn bounce_copy(&mut self, lender: &mut dyn Lender) -> bool {
        let Some(queued) = self.queued.front() else { return true };
        let message = queued.message.memory();
        if self.bounce_copy.is_none() && self.is_bounced(message) {
            self.bounce_copy = BounceCopy::begin(message, lender);
        }
        let Some(bounce_copy) = &mut self.bounce_copy else { return true };
        let copied = bounce_copy.copy(message, self.may_copy);
        self.may_copy -= copied;
        self.copied.add(copied as u64);
        self.bounced.add(copied as u64);
        bounce_copy.is_whole()
    }

    /// Returns whether a message gets a bounce copy: it could not be lent otherwise, and the peer receives
    /// into pool memory rather than memory it names.
    fn is_bounced(&self, message: &Message) -> bool {
        self.pregranted > 0
            && message.payload_len() >= BOUNCED_LEN_MIN
            && Scope::Arenas.len_of(message).is_none()
            && Scope::Large.len_of(message).is_some()
    }

    /// Lends all frames of a message that are in scope, with bounce copies in place of frames outside arenas.
    /// Returns the scope and the number of lent frames. Returns `None`, and lends nothing, if one frame
    /// cannot be lent or lending does not pay.
    fn lend(
        &mut self,
        message: &Message,
        bounce_copy: Option<BounceCopy>,
        lender: &mut dyn Lender,
    ) -> Option<(Scope, usize)> {
        let scope = if bounce_copy.is_some() { Scope::Large } else { Scope::Arenas };
        scope.len_of(message)?;
        let mut copies = bounce_copy.into_iter().flat_map(BounceCopy::finish);
        let (id, before) = (self.unacked.next(), self.unsent_leases.len());
        for (frame, info) in message.frames().iter().zip(message.table()) {
            if !scope.lends(&info) {
                continue;
            }
            let lent_frame = match info.place {
                Place::Arena => lender.lend(frame),
                _ => copies.next().and_then(|copy| lender.lend(&copy)),
            };
            let Some(lent_frame) = lent_frame else {
                self.unsent_leases.drain(before..).for_each(|(_, lent_frame)| lender.take_back(lent_frame));
                return None;
            };
            self.unsent_leases.push_back((id, lent_frame));
        }
        Some((scope, self.unsent_leases.len() - before))
    }

    /// Announces a lent message with the last `lent_frames` entries of `unsent_leases`. Its operation ends
    /// once the announcement has left: the lender keeps the lent frames for as long as the peer has them.
    fn announce_lent(
        &mut self,
        queued: Queued,
        scope: Scope,
        lent_frames: usize,
        send_queue: &mut SendQueue,
    ) {
        let Queued { message, receipt, ack_now } = queued;
        let id = self.unacked.next();
        let memory = message.memory();
        let len = scope.len_of(memory).unwrap_or_default();
        let text = send_queue.encoded();
        put_message(text, id, ack_now, Payload::Lent(scope, &[], &[]), memory.header(), memory.table(), len);
        for (_, lent_frame) in self.unsent_leases.range(self.unsent_leases.len() - lent_frames..) {
            text.extend_from_slice(&lent_frame.encode());
        }
        let others = memory.frames().iter().zip(memory.table()).filter(|(_, info)| !scope.lends(info));
        send_queue.payload(others.map(|(frame, _)| frame.clone()));
        let cost = cost(memory.header().len(), memory.frames().len(), len);
        self.bytes_in_use += cost;
        send_queue.end(Ending::Sent(id, message));
        self.unacked.push(Unacked { receipt, cost, pregranted: 0, state: SendState::Moving });
    }

    fn announce_one(
        &mut self,
        queued: Queued,
        send_queue: &mut SendQueue,
        data_queue: &mut VecDeque<DataSource>,
        fetch: bool,
    ) {
        let Queued { message, receipt, ack_now } = queued;
        let id = self.unacked.next();
        let memory = message.memory();
        let payload_len = memory.payload_len();
        let eager = payload_len < EAGER_LEN_MAX;
        let pregranted = if !eager && payload_len <= self.pregranted.saturating_sub(self.pregranted_in_use) {
            payload_len
        } else {
            0
        };
        let waits = !eager && pregranted == 0;
        let addresses = Some(memory).filter(|_| waits && fetch).and_then(addresses);
        let (payload, len) = match (eager, pregranted, &addresses) {
            (true, ..) => (Payload::Eager(&[]), payload_len),
            (false, 0, Some(addresses)) => (Payload::Fetchable(&[]), (addresses.len() * ADDRESS_LEN) as u64),
            (false, 0, None) => (Payload::Waits, 0),
            (false, ..) => (Payload::Streams, 0),
        };
        put_message(send_queue.encoded(), id, ack_now, payload, memory.header(), memory.table(), len);
        for address in addresses.iter().flatten() {
            send_queue.encoded().extend_from_slice(&address.to_le_bytes());
        }
        let cost = cost(memory.header().len(), memory.frames().len(), len);
        self.bytes_in_use += cost;
        self.pregranted_in_use += pregranted;
        let state = if eager {
            send_queue.payload(memory.frames().iter().cloned());
            send_queue.end(Ending::Sent(id, message));
            SendState::Moving
        } else if pregranted > 0 {
            data_queue.push_back(DataSource::new(
                Transfer::Message(id),
                DataOwner::Message(id, message, Vec::new()),
            ));
            SendState::Moving
        } else if addresses.is_some() {
            SendState::Fetchable(message)
        } else {
            SendState::Waiting(message)
        };
        self.unacked.push(Unacked { receipt, cost, pregranted, state });
    }

    /// Completes a message whose memory has been handed to the kernel.
    pub(crate) fn left(&mut self, id: u64, message: Operation<Message>) {
        let before =
            self.unacked.at(id).map(|unacked| std::mem::replace(&mut unacked.state, SendState::Left));
        while self.unsent_leases.pop_front_if(|(lent, _)| *lent == id).is_some() {}
        message.finish(drop);
        if let Some(SendState::Acked(delivery)) = before {
            self.ack(id, delivery);
        }
    }

    /// Handles the receiver's accept of a message.
    pub(crate) fn accepted(&mut self, id: u64, discarded: &[u8]) -> Result<Option<DataSource>> {
        let unacked = self.unacked.at(id).ok_or_else(|| corrupt("an accept of an unknown message"))?;
        let message = match std::mem::replace(&mut unacked.state, SendState::Moving) {
            SendState::Waiting(message) | SendState::Fetchable(message) => message,
            other => {
                unacked.state = other;
                return Err(corrupt("an accept of a message that does not wait for one"));
            }
        };
        let mut frames = message.memory().frames().iter().enumerate();
        if frames.all(|(index, frame)| frame.is_empty() || is_set(discarded, index)) {
            self.left(id, message);
            return Ok(None);
        }
        Ok(Some(DataSource::new(Transfer::Message(id), DataOwner::Message(id, message, discarded.to_vec()))))
    }

    /// Handles the acknowledgement of `count` messages.
    pub(crate) fn acked(&mut self, first: u64, count: u32, delivery: Delivery) -> Result<()> {
        let end = first
            .checked_add(count.into())
            .ok_or_else(|| corrupt("an acknowledgement beyond the last message number"))?;
        for id in first..end {
            let unacked =
                self.unacked.at(id).ok_or_else(|| corrupt("an acknowledgement of an unknown message"))?;
            match (delivery, std::mem::replace(&mut unacked.state, SendState::Left)) {
                (_, SendState::Left) => {}
                (Delivery::Rejected, SendState::Waiting(message)) | (_, SendState::Fetchable(message)) => {
                    message.finish(drop);
                }
                (_, SendState::Moving) if self.early_acks => {
                    unacked.state = SendState::Acked(delivery);
                    continue;
                }
                (_, other) => {
                    unacked.state = other;
                    return Err(corrupt("an acknowledgement of a message that has not left"));
                }
            }
            self.ack(id, delivery);
        }
        Ok(())
    }

    fn ack(&mut self, id: u64, delivery: Delivery) {
        if let Some(Unacked { receipt, cost, pregranted, .. }) = self.unacked.remove(id) {
            self.bytes_in_use -= cost;
            self.pregranted_in_use -= pregranted;
            receipt.resolve(Ok(delivery));
        }
    }

    /// Sets the pre-granted credit, in bytes.
    pub(crate) fn pregrant(&mut self, bytes: u64) {
        self.pregranted = bytes;
    }

    /// Fails everything unacknowledged, and takes back leases that were not sent. Frames that the peer has
    /// stay lent: the lender recovers them.
    pub(crate) fn give_up(&mut self, why: &Error, lender: &mut Option<Box<dyn Lender>>) {
        if let Some(lender) = lender {
            self.unsent_leases.drain(..).for_each(|(_, lent_frame)| lender.take_back(lent_frame));
        }
        self.bounce_copy = None;
        self.paused = false;
        for Queued { message, receipt, .. } in self.queued.drain(..) {
            receipt.resolve(Err(why.clone()));
            message.fail(why.clone());
        }
        for Unacked { receipt, state, .. } in self.unacked.drain() {
            receipt.resolve(Err(why.clone()));
            if let SendState::Waiting(message) | SendState::Fetchable(message) = state {
                message.fail(why.clone());
            }
        }
    }
}

/// Returns whether a message may be coalesced with others.
pub(crate) fn is_small(message: &Message) -> bool {
    message.payload_len() <= COALESCED_COST_MAX && cost_of(message) <= COALESCED_COST_MAX
}

/// Returns the most that a message costs in the window. Whether it is lent or fetchable is decided only when
/// it is announced.
fn cost_of(message: &Message) -> u64 {
    let lent_len = [Scope::Arenas, Scope::Large].map(|scope| scope.len_of(message).unwrap_or_default());
    let others = eager_len(message).max(len_if_fetchable(message));
    let len = lent_len.into_iter().fold(others, u64::max);
    cost(message.header().len(), message.frames().len(), len)
}

/// Returns how many payload bytes are in the record of a message that is neither lent nor fetchable.
fn eager_len(message: &Message) -> u64 {
    let payload_len = message.payload_len();
    if payload_len < EAGER_LEN_MAX { payload_len } else { 0 }
}
