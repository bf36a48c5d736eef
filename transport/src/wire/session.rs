//! The protocol of one data stream, sans-IO. Its input is operations and received bytes; its output is bytes
//! to write and events.
//!
//! Invariant: all input is checked against what was granted before it changes any state. The first protocol
//! violation is an error, after which only `give_up` may be called.

mod decoder;
mod destination;
mod lanes;
mod packets;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut, Pool, RawBytes};
use crate::transfer::message::{Announced, Delivery, Message, SmallSend};
use crate::transfer::operation::{Done, Operation};
use crate::transfer::region::{Regions, RemoteRegion};
use crate::wire::count::{Count, SessionCounts};
use crate::wire::fetching::Fetcher;
use crate::wire::lending::Lender;
use crate::wire::liveness::{Due, Liveness};
use crate::wire::one_sided::{OneSided, replies};
use crate::wire::receives::Receives;
use crate::wire::record::{self, Payload, Record, Transfer, corrupt};
use crate::wire::record_budget::{BudgetShare, RecordBudget};
use crate::wire::send_queue::{DataSource, Ending, SendQueue};
use crate::wire::sends::{self, RECORDS_LEN, Sends};

use decoder::Decoder;
use lanes::{Lanes, due};
use packets::Packets;

pub(crate) use destination::DataTarget;
pub(crate) use packets::{Packet, PacketArrival, PacketDestination};

/// One end of a data stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// Reads the peer's memory, and lets the peer read ours. Declared first: its drop retracts our memory
    /// before any is freed.
    fetcher: Option<Box<dyn Fetcher>>,
    sends: Sends,
    receives: Receives,
    one_sided: OneSided,
    liveness: Liveness,
    send_queue: SendQueue,
    data_queue: VecDeque<DataSource>,
    /// Records for the next batch, and how many of them answer the peer's requests.
    records: Vec<u8>,
    answers: usize,
    decoder: Decoder,
    /// Counts the decoder's unfinished records against a budget, if there is one.
    unfinished: Option<BudgetShare>,
    /// The additional streams of the connection.
    lanes: Option<Box<Lanes>>,
    /// Direct transfers, which travel outside the stream.
    packets: Option<Box<Packets>>,
    /// Lends our frames to the peer, and borrows the peer's.
    lender: Option<Box<dyn Lender>>,
    /// Messages for the application, in order.
    announced: Vec<Announced>,
    ping: bool,
    pong: bool,
    closing: Closing,
    peer_closed: bool,
    closers: Vec<Done<()>>,
}

/// How urgently output must be sent, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Sent at once.
    Now,
    /// Small messages are sent with later ones, or at the next poll.
    Coalesced,
    /// Acknowledgements that no sender waits for are sent with other output, or when the link is idle.
    Ack,
}

/// The progress of our `Close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// Follows everything submitted before it.
    Wanted,
    InBatch,
    Left,
}

impl Session {
    /// Creates a session. With `checked`, both directions carry checksums.
    pub(crate) fn new(
        pool: Pool,
        regions: Arc<Regions>,
        heartbeat: Duration,
        now: Duration,
        checked: bool,
    ) -> Self {
        let sends = Sends::default();
        Self {
            fetcher: None,
            send_queue: SendQueue::new(checked.then(|| sends.copied.clone()), false),
            sends,
            receives: Receives::new(pool),
            one_sided: OneSided::new(regions),
            liveness: Liveness::new(heartbeat, now),
            data_queue: VecDeque::new(),
            records: Vec::new(),
            answers: 0,
            decoder: Decoder::new(checked),
            unfinished: None,
            lanes: None,
            packets: None,
            lender: None,
            announced: Vec::new(),
            ping: false,
            pong: false,
            closing: Closing::No,
            peer_closed: false,
            closers: Vec::new(),
        }
    }

    /// Enables lending, both ways. Must be called before anything is sent. A session with checksums lends
    /// nothing: lent frames pass no checksum.
    pub(crate) fn lending(mut self, lender: Box<dyn Lender>) -> Self {
        self.lender = Some(lender).filter(|_| !self.decoder.check.is_on());
        self
    }

    /// Counts unfinished records against a budget shared by many connections.
    pub(crate) fn counted(mut self, unfinished: &RecordBudget) -> Self {
        self.unfinished = Some(unfinished.share());
        self
    }

    /// Enables fetching, both ways: a receiver that names its memory reads large frames from the sender's. No
    /// effect with checksums, several streams or direct transfers.
    pub(crate) fn fetching(mut self, fetcher: Box<dyn Fetcher>) -> Self {
        let is_plain = self.lanes.is_none() && self.packets.is_none();
        self.fetcher = Some(fetcher).filter(|_| !self.decoder.check.is_on() && is_plain);
        self
    }

    pub(crate) fn send(
        &mut self,
        message: Operation<Message>,
        receipt: Done<Delivery>,
        ack_now: bool,
        more: bool,
    ) {
        self.sends.push(message, receipt, ack_now, more);
    }

    /// Returns whether a message is small enough to be copied.
    pub(crate) fn may_copy(message: &Message) -> bool {
        sends::is_small(message)
    }

    /// Sends a small message by copying it. Gives it back if it must be queued like any other.
    pub(crate) fn copy(&mut self, small: SmallSend) -> Option<SmallSend> {
        self.sends.copy(small)
    }

    pub(crate) fn expect(&mut self, in_pool: bool) {
        self.receives.expect(in_pool, &mut self.records);
    }

    pub(crate) fn accept(&mut self, id: u64, destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>) {
        let fetches = self.fetcher.as_ref().is_some_and(|fetcher| fetcher.fetches());
        self.receives.accept(id, destinations, &mut self.records, fetches);
    }

    pub(crate) fn ack(&mut self, id: u64, delivery: Delivery, ack_now: bool) {
        self.receives.ack(id, delivery, ack_now);
    }

    pub(crate) fn get(&mut self, region: RemoteRegion, offset: u64, into: Operation<BufferMut, BufferMut>) {
        self.one_sided.get(region, offset, into);
    }

    pub(crate) fn put(&mut self, region: RemoteRegion, offset: u64, from: Operation<Buffer>) {
        self.one_sided.put(region, offset, from);
    }

    pub(crate) fn close(&mut self, done: Done<()>) {
        self.closers.push(done);
        if self.closing == Closing::No {
            self.closing = Closing::Wanted;
        }
    }

    /// Returns whether a fetch must be started by a poll: no read is in flight whose completion would wake
    /// this end.
    pub(crate) fn has_to_fetch(&self) -> bool {
        self.receives.has_to_fetch()
    }

    /// Continues with fetches. Returns whether anything progressed.
    pub(crate) fn fetch(&mut self) -> Result<bool> {
        let Self { fetcher: Some(fetcher), receives, records, .. } = self else { return Ok(false) };
        receives.fetch(&mut **fetcher, records)
    }

    /// Returns the messages announced since the last call.
    pub(crate) fn take_announced(&mut self) -> impl Iterator<Item = Announced> + '_ {
        self.announced.drain(..)
    }

    /// Begins a poll, which makes bounce copies of a bounded length.
    pub(crate) fn begin_poll(&mut self) {
        self.sends.begin_poll();
    }

    /// Returns whether the last poll stopped before all work was done. The next poll continues without
    /// further input.
    pub(crate) fn is_paused(&self) -> bool {
        self.sends.are_paused()
    }

    /// Returns handles on the session's counters, which keep counting.
    pub(crate) fn counts(&self) -> SessionCounts {
        SessionCounts {
            copied: [&self.sends.copied, &self.receives.copied, &self.one_sided.copied].map(Count::clone),
            bounced: self.sends.bounced.clone(),
            stalls: self.sends.stalls.clone(),
        }
    }

    /// Returns whether both `Close` records are through: the peer's has been received and ours has been sent.
    pub(crate) fn is_over(&self) -> bool {
        self.has_peer_closed() && self.closing == Closing::Left
    }

    /// Returns whether the stream may end without loss: our `Close` has been sent, or the peer's has been
    /// received.
    pub(crate) fn may_end(&self) -> bool {
        self.has_peer_closed() || self.closing == Closing::Left
    }

    /// Returns whether the peer's `Close` has been received on every stream, and everything sent before it
    /// has arrived.
    fn has_peer_closed(&self) -> bool {
        self.peer_closed
            && self.lanes.as_ref().is_none_or(|lanes| lanes.have_ended())
            && self.packets.as_ref().is_none_or(|packets| packets.have_landed())
    }

    /// Returns whether the peer has been silent long enough for `tick` to act.
    pub(crate) fn is_silent(&self, now: Duration) -> bool {
        self.liveness.is_silent(now)
    }

    /// Handles the passage of time. An error means that the peer is lost. All received bytes must have been
    /// given to the session before.
    pub(crate) fn tick(&mut self, now: Duration) -> Result<()> {
        match self.liveness.due(now) {
            Due::Nothing => {}
            Due::Ping => self.ping = true,
            Due::Lost(silent) => {
                let why = format!("no sign of life for {:.1} s", silent.as_secs_f64());
                return Err(Error::new(ErrorKind::PeerLost, why));
            }
        }
        Ok(())
    }

    /// Checks fetches, the record budget and leases. An error ends the connection. Called several times a
    /// heartbeat.
    pub(crate) fn tend(&mut self) -> Result<()> {
        self.fetch()?;
        self.unfinished.as_ref().map_or(Ok(()), BudgetShare::check)?;
        self.lender.as_mut().map_or(Ok(()), |lender| lender.tend())
    }

    // Output.

    /// Returns whether output is pending that is at least as urgent as `least`.
    pub(crate) fn is_due(&self, least: Urgency) -> bool {
        if matches!(self.closing, Closing::InBatch | Closing::Left) {
            return !self.send_queue.is_empty();
        }
        let joined = least >= Urgency::Coalesced && self.sends.have_coalesced();
        let words = least >= Urgency::Ack && self.receives.acks_due().0;
        joined || words || self.is_due_at_once()
    }

    fn is_due_at_once(&self) -> bool {
        !self.send_queue.is_empty()
            || !self.records.is_empty()
            || self.has_data_for_main()
            || self.ping
            || self.pong
            || self.sends.are_due()
            || self.one_sided.are_due()
            || self.receives.acks_due().1
            || self.close_is_due()
            || (self.closing == Closing::Wanted && self.sends.have_coalesced())
    }

    /// Returns whether the main stream has data to send.
    fn has_data_for_main(&self) -> bool {
        match &self.lanes {
            Some(lanes) => lanes.has_chunk_for(0),
            None => !self.data_queue.is_empty() && self.packets.is_none(),
        }
    }

    fn close_is_due(&self) -> bool {
        let have_left = || self.packets.as_ref().is_none_or(|packets| packets.have_left());
        let submitted = || {
            self.sends.are_done()
                && self.one_sided.are_done()
                && self.data_queue.is_empty()
                && self.lanes.as_ref().is_none_or(|lanes| lanes.chunked_sends.is_empty())
                && self.packets.as_ref().is_none_or(|packets| packets.chunked_sends.is_empty())
                && self.records.is_empty()
                && !self.receives.are_incomplete()
        };
        match self.closing {
            Closing::Wanted => (self.has_peer_closed() || submitted()) && have_left(),
            Closing::No => self.has_peer_closed() && have_left(),
            Closing::InBatch | Closing::Left => false,
        }
    }

    /// Returns the bytes to write next. Makes a batch if there is none.
    pub(crate) fn gather<'a>(&'a mut self, pieces: &mut Vec<RawBytes<'a>>, pieces_max: usize) {
        if self.send_queue.is_empty() {
            self.make_batch();
        }
        debug_assert!(!self.send_queue.is_empty() || self.is_paused(), "pending output makes a batch");
        self.send_queue.gather(pieces, pieces_max);
    }

    /// Records that `written` of the gathered bytes are in the kernel's buffers.
    pub(crate) fn wrote(&mut self, written: usize) {
        let Self { send_queue, sends, one_sided, closing, lanes, .. } = self;
        send_queue.advance(written, |ending| due(ending, (sends, one_sided), closing, lanes));
    }

    fn make_batch(&mut self) {
        while self.send_queue.has_room() && matches!(self.closing, Closing::No | Closing::Wanted) {
            self.send_queue.begin();
            let good_bye = self.close_is_due();
            self.write_records();
            self.one_sided.write_requests(&mut self.send_queue);
            let fetch = self.fetcher.is_some();
            self.sends.announce(&mut self.send_queue, &mut self.data_queue, &mut self.lender, fetch);
            if good_bye {
                let packets = self.packets.as_ref().map_or(0, |packets| packets.handed_out);
                record::put(self.send_queue.encoded(), &Record::Close { packets });
                self.send_queue.end(Ending::Closed);
                self.closing = Closing::InBatch;
            }
            if self.chunk_to(0) {
                continue;
            }
            let Some(mut data) = self.data_queue.pop_front_if(|_| self.packets.is_none()) else {
                let nothing = self.send_queue.records_len() == 0;
                self.send_queue.finish(Transfer::Message(0), Vec::new());
                if nothing {
                    return;
                }
                continue;
            };
            let transfer = data.transfer;
            let (bytes, is_last) = data.next_packet();
            self.send_queue.finish(transfer, bytes);
            if !is_last {
                self.data_queue.push_back(data);
            } else if let Some(ending) = data.owner.ending() {
                self.send_queue.end(ending);
            }
        }
    }

    /// Writes the pending records, up to one packet's worth.
    fn write_records(&mut self) {
        if self.ping {
            record::put(&mut self.records, &Record::Ping);
        }
        if self.pong {
            record::put(&mut self.records, &Record::Pong);
        }
        (self.ping, self.pong) = (false, false);
        self.receives.write_acks(&mut self.records);
        if self.records.len() <= RECORDS_LEN {
            self.send_queue.encoded().append(&mut self.records);
            for reply in replies(std::mem::take(&mut self.answers)) {
                self.send_queue.end(reply);
            }
            return;
        }
        let mut len = 0;
        while len < RECORDS_LEN {
            len += record::len_of_first(&self.records[len..]);
        }
        self.send_queue.encoded().extend(self.records.drain(..len));
    }

    // Input.

    /// Handles one record, followed by `behind` bytes of other records.
    fn handle_record(&mut self, record: Record<'_>, behind: usize) -> Result<()> {
        if self.peer_closed {
            return Err(corrupt("a record after the peer's Close"));
        }
        let waiting = self.records.len();
        match record {
            Record::Message(message) => {
                if matches!(message.payload, Payload::Fetchable(_)) && self.fetcher.is_none() {
                    return Err(corrupt("a fetchable message on a connection without fetching"));
                }
                let announced =
                    self.receives.announced(message, behind, &mut self.records, &mut self.lender)?;
                self.announced.push(announced);
            }
            Record::Accept { id, discarded } => self.data_queue.extend(self.sends.accepted(id, discarded)?),
            Record::Ack { first, count, delivery } => self.sends.acked(first, count, delivery)?,
            Record::Pregrant { bytes } => self.sends.pregrant(bytes),
            Record::Ping => self.pong = true,
            Record::Pong => {}
            Record::Get { id, key, offset, len } => {
                let data = self.one_sided.serve_get(id, &key, offset, len, &mut self.records)?;
                self.answers += usize::from(self.records.len() > waiting);
                self.data_queue.extend(data);
            }
            Record::Put { id, key, offset, len, payload } => {
                self.one_sided.serve_put(id, (&key, offset, len), payload, &mut self.records)?;
                self.answers += usize::from(self.one_sided.remaining(Transfer::Put(id)).is_none());
            }
            Record::ReadyToReceive { id } => {
                let data = self.one_sided.peer_is_ready(id)?;
                self.data_queue.push_back(data);
            }
            Record::Done { id } => self.one_sided.done(id)?,
            Record::Refused { id, reason } => self.one_sided.refused(id, reason)?,
            Record::Close { packets } => self.receive_close(packets)?,
        }
        Ok(())
    }

    /// Fails all operations in flight.
    pub(crate) fn give_up(&mut self, why: &Error) {
        if let Some(fetcher) = &mut self.fetcher {
            fetcher.retract();
        }
        self.give_up_lanes(why);
        self.give_up_packets(why);
        self.sends.give_up(why, &mut self.lender);
        for ending in self.send_queue.give_up() {
            if let Ending::Sent(_, message) = ending {
                message.fail(why.clone());
            }
        }
        self.data_queue.drain(..).for_each(|data| data.fail(why));
        self.receives.give_up(why, self.fetcher.as_deref_mut().map(|fetcher| fetcher as &mut dyn Fetcher));
        self.one_sided.give_up(why);
        self.announced.clear();
        for done in self.closers.drain(..) {
            let graceful = why.kind() == ErrorKind::Closed;
            done.resolve(if graceful { Ok(()) } else { Err(why.clone()) });
        }
    }
}
