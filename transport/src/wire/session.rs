//! One data stream's protocol, sans-IO: operations and received bytes go in, bytes to write and events come out.
//!
//! The invariant: whatever comes in is checked against what was granted before it changes anything; the first breach is an
//! error, after which only `give_up` may be called.

mod decoder;
mod destination;
mod lanes;
mod packets;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut, Pool};
use crate::transfer::message::{Announced, Delivery, Message, SmallSend};
use crate::transfer::operation::{Done, Operation};
use crate::transfer::region::{Regions, RemoteRegion};
use crate::wire::count::{Count, Counts};
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

pub(crate) use destination::Target;
pub(crate) use packets::{Packet, PacketArrival, PacketDestination};

/// One end of a data stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// What reads the peer's memory, and lets it read ours. First, so that it has withdrawn before any memory is dropped.
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
    /// What counts the records that the decoder holds, where something does.
    unfinished: Option<BudgetShare>,
    /// What the further streams of the connection carry.
    lanes: Option<Box<Lanes>>,
    /// What leaves and comes beside the stream, by itself.
    packets: Option<Box<Packets>>,
    /// What lends our frames to the peer, and borrows its.
    lender: Option<Box<dyn Lender>>,
    /// What the application should see, in order.
    announced: Vec<Announced>,
    ping: bool,
    pong: bool,
    closing: Closing,
    peer_closed: bool,
    closers: Vec<Done<()>>,
}

/// What can wait how long, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Leaves at once.
    Now,
    /// Small messages leave with those that follow, or with the next poll.
    Coalesced,
    /// Words that nobody waits for leave with anything else, or when nothing more comes in.
    Ack,
}

/// How far our good-bye is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// It follows what was submitted before it.
    Wanted,
    InBatch,
    Left,
}

impl Session {
    /// With `checked`, what travels carries checksums, both ways.
    pub(crate) fn new(
        pool: Pool,
        regions: Arc<Regions>,
        heartbeat: Duration,
        now: Duration,
        checked: bool,
    ) -> Self {
        Self {
            fetcher: None,
            sends: Sends::default(),
            receives: Receives::new(pool),
            one_sided: OneSided::new(regions),
            liveness: Liveness::new(heartbeat, now),
            send_queue: SendQueue::new(checked, false),
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

    /// The same with frames lent where `lender` can, both ways, before anything travelled. A session that checks what travels has
    /// every frame travel: what is lent passes no checksum.
    pub(crate) fn lending(mut self, lender: Box<dyn Lender>) -> Self {
        self.lender = Some(lender).filter(|_| !self.decoder.check.is_on());
        self
    }

    /// The same with records whose rest has not come counted by a budget of many connections.
    pub(crate) fn counted(mut self, unfinished: &RecordBudget) -> Self {
        self.unfinished = Some(unfinished.share());
        self
    }

    /// The same with large frames read where they lie, both ways, by whoever names where they land; not where what travels is
    /// checked, or takes several streams, or leaves by itself.
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

    /// Whether a message is so small that it may be copied.
    pub(crate) fn may_copy(message: &Message) -> bool {
        sends::is_small(message)
    }

    /// Sends such a message by copying it, or gives it back, to be sent as others are.
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

    /// Whether something is to be fetched that nothing under way leads to, and no source shows.
    pub(crate) fn has_to_fetch(&self) -> bool {
        self.receives.has_to_fetch()
    }

    /// Goes on with what is to be fetched; whether anything moved.
    pub(crate) fn fetch(&mut self) -> Result<bool> {
        let Self { fetcher: Some(fetcher), receives, records, .. } = self else { return Ok(false) };
        receives.fetch(&mut **fetcher, records)
    }

    /// What the peer announced since the last call.
    pub(crate) fn take_announced(&mut self) -> impl Iterator<Item = Announced> + '_ {
        self.announced.drain(..)
    }

    /// A poll begins: it copies a bounded part of what is deposited.
    pub(crate) fn begin_poll(&mut self) {
        self.sends.begin_poll();
    }

    /// Whether the last poll stopped before it had done all that it could: the next goes on, whatever comes.
    pub(crate) fn is_paused(&self) -> bool {
        self.sends.are_paused()
    }

    /// What it counts, which goes on counting.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            copied: [&self.sends.copied, &self.receives.copied, &self.one_sided.copied].map(Count::clone),
            bounced: self.sends.bounced.clone(),
            stalls: self.sends.stalls.clone(),
        }
    }

    /// Both ends said good-bye, or the peer did and ours has left.
    pub(crate) fn is_over(&self) -> bool {
        self.has_peer_closed() && self.closing == Closing::Left
    }

    /// Whether ours has left, or the peer's has come: the stream may end without loss.
    pub(crate) fn may_end(&self) -> bool {
        self.has_peer_closed() || self.closing == Closing::Left
    }

    /// Whether the peer's good-bye has come, on every stream, and what it may have overtaken.
    fn has_peer_closed(&self) -> bool {
        self.peer_closed
            && self.lanes.as_ref().is_none_or(|lanes| lanes.have_ended())
            && self.packets.as_ref().is_none_or(|packets| packets.have_landed())
    }

    /// Whether the peer has been silent so long that `tick` may have something to do.
    pub(crate) fn is_silent(&self, now: Duration) -> bool {
        self.liveness.is_silent(now)
    }

    /// Time passed; an error is the peer's end. Whatever arrived must have been given in before.
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

    /// Time passed for what is lent and borrowed; an error is the connection's end.
    pub(crate) fn tend(&mut self) -> Result<()> {
        self.fetch()?;
        self.unfinished.as_ref().map_or(Ok(()), BudgetShare::check)?;
        self.lender.as_mut().map_or(Ok(()), |lender| lender.tend())
    }

    // What leaves.

    /// Whether something should leave that is no less urgent than `least`.
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

    /// Whether the main stream has data to carry.
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

    /// The bytes to write next; makes a batch if there is none.
    pub(crate) fn gather<'a>(&'a mut self, slices: &mut Vec<IoSlice<'a>>, slices_max: usize) {
        if self.send_queue.is_empty() {
            self.make_batch();
        }
        debug_assert!(!self.send_queue.is_empty() || self.is_paused(), "what is due makes a batch");
        self.send_queue.gather(slices, slices_max);
    }

    /// `written` of the gathered bytes are with the operating system.
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

    /// Records that were waiting, up to a packet's worth.
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

    // What arrives.

    /// One record, with so many bytes of others behind it.
    fn handle_record(&mut self, record: Record<'_>, behind: usize) -> Result<()> {
        if self.peer_closed {
            return Err(corrupt("a record after the good-bye"));
        }
        let waiting = self.records.len();
        match record {
            Record::Message(message) => {
                if matches!(message.payload, Payload::Fetchable(_)) && self.fetcher.is_none() {
                    return Err(corrupt("a message to be fetched by an end that fetches nothing"));
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

    /// Fails everything in flight.
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
