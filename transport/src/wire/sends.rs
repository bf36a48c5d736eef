//! Messages on their way out: queued for credit, unacked, moving, waiting for the receiver's word.

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

/// A packet's records are closed when they hold this much.
pub(crate) const RECORDS_LEN: usize = 64 << 10;
/// What one message may take from the window to coalesce others.
const COALESCED_COST_MAX: u64 = 1 << 10;
/// Messages that coalesced leave when they are this much.
pub(crate) const COALESCED_LEN: usize = 16 << 10;

const _: () = assert!(COALESCED_COST_MAX <= LENT_LEN_MIN, "what joins is copied, and could not be lent");

#[derive(Debug, Default)]
pub(crate) struct Sends {
    queued: VecDeque<Queued>,
    /// Records of small messages that wait for company, payload and all: their memory is free already.
    coalesced: Vec<u8>,
    /// One of them waits no longer.
    urgent: bool,
    unacked: SequenceWindow<Unacked>,
    /// What the first of the queue is copied to, where it is to be lent and is not where it can be.
    bounce_copy: Option<BounceCopy>,
    /// How much of it this poll may still copy, and whether the rest waits for the next.
    may_copy: usize,
    paused: bool,
    /// Loans whose announcements are still to leave, in order: the peer acts on none of them before its last byte came.
    unsent_leases: VecDeque<(u64, LentFrame)>,
    /// What the unacked take from the window.
    bytes_in_use: u64,
    /// What may stream ahead, and what of it is in use.
    pregranted: u64,
    pregranted_in_use: u64,
    stalled: bool,
    /// Data leaves early_acks: the word on a message may overtake the news that it has left.
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
    state: State,
}

#[derive(Debug)]
enum State {
    /// The payload waits for the receiver's accept.
    Waiting(Operation<Message>),
    /// The same, or for its word: it may have read the payload here.
    Fetchable(Operation<Message>),
    /// The payload is on its way to the operating system.
    Moving,
    /// The same, though the receiver has said its word.
    Acked(Delivery),
    /// All of it is with the operating system.
    Left,
}

impl Sends {
    /// Data leaves early_acks: the word on a message may overtake the news that it has left, and then waits for it.
    pub(crate) fn allow_early_acks(&mut self) {
        self.early_acks = true;
    }

    /// With `more`, a small one waits for others to leave together.
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

    /// The same of a [small](is_small) one that is no operation. Gives it back where it has to wait.
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

    /// Copies a message to those that wait for company.
    fn coalesce(&mut self, memory: &Message, receipt: Done<Delivery>, ack_now: bool, more: bool) {
        self.urgent |= !more;
        let cost = cost_of(memory);
        let (id, payload_len) = (self.unacked.next(), memory.payload_len());
        let out = &mut self.coalesced;
        put_message(out, id, ack_now, Payload::Eager(&[]), memory.header(), memory.table(), payload_len);
        for frame in memory.frames() {
            out.extend_from_slice(frame.as_slice().unwrap_or_default());
        }
        self.copied.add(payload_len);
        self.bytes_in_use += cost;
        self.unacked.push(Unacked { receipt, cost, pregranted: 0, state: State::Left });
    }

    /// Whether some wait for company.
    pub(crate) fn have_coalesced(&self) -> bool {
        !self.coalesced.is_empty()
    }

    /// Counts the times that the queue began to wait for credit.
    fn note_stall(&mut self) {
        let stalled = !self.queued.is_empty() && !self.urgent && !self.first_has_credit();
        self.stalls.add(u64::from(stalled && !self.stalled));
        self.stalled = stalled;
    }

    fn first_has_credit(&self) -> bool {
        self.queued.front().is_some_and(|queued| self.has_credit(queued.message.memory()))
    }

    /// A poll begins, which may copy so much.
    pub(crate) fn begin_poll(&mut self) {
        (self.may_copy, self.paused) = (BOUNCED_AT_ONCE, false);
    }

    /// Whether the next poll has something to do, whatever comes.
    pub(crate) fn are_paused(&self) -> bool {
        self.paused
    }

    /// Whether one could be unacked now, and should.
    pub(crate) fn are_due(&self) -> bool {
        self.urgent || self.coalesced.len() >= COALESCED_LEN || (!self.paused && self.first_has_credit())
    }

    /// Whether everything has left.
    pub(crate) fn are_done(&self) -> bool {
        self.queued.is_empty()
            && self.coalesced.is_empty()
            && self.unacked.iter().all(|unacked| matches!(unacked.state, State::Left))
    }

    fn has_credit(&self, message: &Message) -> bool {
        self.unacked.len() < WINDOW.messages as usize && self.bytes_in_use + cost_of(message) <= WINDOW.bytes
    }

    /// Announces what credit and the packet allow. The peer may `fetch` what waits for its accept.
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

    /// Copies the first of the queue to where it can be lent, as much as this poll may, if that is how it goes. Whether it can be
    /// unacked now.
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

    /// Whether a message is copied to where it can be lent: if it would travel otherwise, and the peer takes what comes in
    /// memory of its own, so that it names none.
    fn is_bounced(&self, message: &Message) -> bool {
        self.pregranted > 0
            && message.payload_len() >= BOUNCED_LEN_MIN
            && Scope::Arenas.len_of(message).is_none()
            && Scope::Large.len_of(message).is_some()
    }

    /// Lends all frames of a message that could be, those of the bounce copy in the stead of what is in no arena, and tells how
    /// many: all, or none if one cannot, or it is not worth it.
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

    /// Announces a message of which frames were lent, with the last so many loans. Its operation ends when that has left: the
    /// lender holds what was lent, as long as the peer has it.
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
        self.unacked.push(Unacked { receipt, cost, pregranted: 0, state: State::Moving });
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
            State::Moving
        } else if pregranted > 0 {
            data_queue.push_back(DataSource::new(
                Transfer::Message(id),
                DataOwner::Message(id, message, Vec::new()),
            ));
            State::Moving
        } else if addresses.is_some() {
            State::Fetchable(message)
        } else {
            State::Waiting(message)
        };
        self.unacked.push(Unacked { receipt, cost, pregranted, state });
    }

    /// A message's memory is with the operating system.
    pub(crate) fn left(&mut self, id: u64, message: Operation<Message>) {
        let before = self.unacked.at(id).map(|unacked| std::mem::replace(&mut unacked.state, State::Left));
        while self.unsent_leases.pop_front_if(|(lent, _)| *lent == id).is_some() {}
        message.finish(drop);
        if let Some(State::Acked(delivery)) = before {
            self.ack(id, delivery);
        }
    }

    /// The receiver accepted a message.
    pub(crate) fn accepted(&mut self, id: u64, discarded: &[u8]) -> Result<Option<DataSource>> {
        let unacked =
            self.unacked.at(id).ok_or_else(|| corrupt("an accept of a message that is not there"))?;
        let message = match std::mem::replace(&mut unacked.state, State::Moving) {
            State::Waiting(message) | State::Fetchable(message) => message,
            other => {
                unacked.state = other;
                return Err(corrupt("an accept of a message that does not wait for it"));
            }
        };
        let mut frames = message.memory().frames().iter().enumerate();
        if frames.all(|(index, frame)| frame.is_empty() || is_set(discarded, index)) {
            self.left(id, message);
            return Ok(None);
        }
        Ok(Some(DataSource::new(Transfer::Message(id), DataOwner::Message(id, message, discarded.to_vec()))))
    }

    /// The receiver's word on `count` messages.
    pub(crate) fn acked(&mut self, first: u64, count: u32, delivery: Delivery) -> Result<()> {
        let end = first
            .checked_add(count.into())
            .ok_or_else(|| corrupt("a word on messages beyond all numbers"))?;
        for id in first..end {
            let unacked =
                self.unacked.at(id).ok_or_else(|| corrupt("a word on a message that is not there"))?;
            match (delivery, std::mem::replace(&mut unacked.state, State::Left)) {
                (_, State::Left) => {}
                (Delivery::Rejected, State::Waiting(message)) | (_, State::Fetchable(message)) => {
                    message.finish(drop);
                }
                (_, State::Moving) if self.early_acks => {
                    unacked.state = State::Acked(delivery);
                    continue;
                }
                (_, other) => {
                    unacked.state = other;
                    return Err(corrupt("a word on a message that has not left"));
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

    /// The receiver lets so much payload stream ahead from now on.
    pub(crate) fn pregrant(&mut self, bytes: u64) {
        self.pregranted = bytes;
    }

    /// Fails everything that is not acknowledged, and takes back what the peer has not heard of. What it has stays lent: its lender
    /// sees to that.
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
            if let State::Waiting(message) | State::Fetchable(message) = state {
                message.fail(why.clone());
            }
        }
    }
}

/// Whether a message may coalesce others.
pub(crate) fn is_small(message: &Message) -> bool {
    message.payload_len() <= COALESCED_COST_MAX && cost_of(message) <= COALESCED_COST_MAX
}

/// What a message takes from the window at most: whether it is lent, or may be fetched, turns out when it is unacked.
fn cost_of(message: &Message) -> u64 {
    let lent_len = [Scope::Arenas, Scope::Large].map(|scope| scope.len_of(message).unwrap_or_default());
    let others = eager_len(message).max(len_if_fetchable(message));
    let len = lent_len.into_iter().fold(others, u64::max);
    cost(message.header().len(), message.frames().len(), len)
}

/// The payload in the record of a message that travels.
fn eager_len(message: &Message) -> u64 {
    let payload_len = message.payload_len();
    if payload_len < EAGER_LEN_MAX { payload_len } else { 0 }
}
