//! One data stream's protocol, sans-IO: operations and received bytes go in, bytes to write and events come out.
//!
//! The invariant: whatever comes in is checked against what was granted before it changes anything; the first breach is an
//! error, after which only `give_up` may be called.

mod inlet;
mod landing;
mod parcels;
mod strands;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut, Pool};
use crate::message::{Announced, Delivery, Message, Small};
use crate::operation::{Done, Operation};
use crate::region::{Regions, RemoteRegion};
use crate::wire::count::{Count, Counts};
use crate::wire::fetching::Fetcher;
use crate::wire::lending::Lender;
use crate::wire::liveness::{Due, Liveness};
use crate::wire::one_sided::{OneSided, replies};
use crate::wire::outbox::{Bulk, Ending, Outbox};
use crate::wire::receives::Receives;
use crate::wire::record::{self, Payload, Record, Transfer, corrupt};
use crate::wire::sends::{self, RECORDS_LEN, Sends};
use crate::wire::unfinished::{Share, Unfinished};

use inlet::Inlet;
use parcels::Parcels;
use strands::{Strands, due};

pub(crate) use landing::Target;
pub(crate) use parcels::{Came, Landing, Parcel};

/// One end of a data stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// What reads the peer's memory, and lets it read ours. First, so that it has withdrawn before any memory is dropped.
    fetcher: Option<Box<dyn Fetcher>>,
    sends: Sends,
    receives: Receives,
    one_sided: OneSided,
    liveness: Liveness,
    outbox: Outbox,
    bulks: VecDeque<Bulk>,
    /// Records for the next batch, and how many of them answer the peer's requests.
    records: Vec<u8>,
    answers: usize,
    inlet: Inlet,
    /// What counts the records that the inlet holds, where something does.
    unfinished: Option<Share>,
    /// What the further streams of the connection carry.
    strands: Option<Box<Strands>>,
    /// What leaves and comes beside the stream, by itself.
    parcels: Option<Box<Parcels>>,
    /// What lends our frames to the peer, and borrows its.
    lender: Option<Box<dyn Lender>>,
    /// What the application should see, in order.
    announced: Vec<Announced>,
    ask: bool,
    answer: bool,
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
    Company,
    /// Words that nobody waits for leave with anything else, or when nothing more comes in.
    Word,
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
            outbox: Outbox::new(checked, false),
            bulks: VecDeque::new(),
            records: Vec::new(),
            answers: 0,
            inlet: Inlet::new(checked),
            unfinished: None,
            strands: None,
            parcels: None,
            lender: None,
            announced: Vec::new(),
            ask: false,
            answer: false,
            closing: Closing::No,
            peer_closed: false,
            closers: Vec::new(),
        }
    }

    /// The same with frames lent where `lender` can, both ways, before anything travelled. A session that checks what travels has
    /// every frame travel: what is lent passes no checksum.
    pub(crate) fn lending(mut self, lender: Box<dyn Lender>) -> Self {
        self.lender = Some(lender).filter(|_| !self.inlet.check.is_on());
        self
    }

    /// The same with records whose rest has not come counted by a budget of many connections.
    pub(crate) fn counted(mut self, unfinished: &Unfinished) -> Self {
        self.unfinished = Some(unfinished.share());
        self
    }

    /// The same with large frames read where they lie, both ways, by whoever names where they land; not where what travels is
    /// checked, or takes several streams, or leaves by itself.
    pub(crate) fn fetching(mut self, fetcher: Box<dyn Fetcher>) -> Self {
        let is_plain = self.strands.is_none() && self.parcels.is_none();
        self.fetcher = Some(fetcher).filter(|_| !self.inlet.check.is_on() && is_plain);
        self
    }

    pub(crate) fn send(
        &mut self,
        message: Operation<Message>,
        receipt: Done<Delivery>,
        prompt: bool,
        more: bool,
    ) {
        self.sends.push(message, receipt, prompt, more);
    }

    /// Whether a message is so small that it may be copied.
    pub(crate) fn may_copy(message: &Message) -> bool {
        sends::is_small(message)
    }

    /// Sends such a message by copying it, or gives it back, to be sent as others are.
    pub(crate) fn copy(&mut self, small: Small) -> Option<Small> {
        self.sends.copy(small)
    }

    pub(crate) fn expect(&mut self, in_pool: bool) {
        self.receives.expect(in_pool, &mut self.records);
    }

    pub(crate) fn accept(&mut self, id: u64, landings: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>) {
        let fetches = self.fetcher.as_ref().is_some_and(|fetcher| fetcher.fetches());
        self.receives.accept(id, landings, &mut self.records, fetches);
    }

    pub(crate) fn settle(&mut self, id: u64, delivery: Delivery, prompt: bool) {
        self.receives.settle(id, delivery, prompt);
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
            deposited: self.sends.deposited.clone(),
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
            && self.strands.as_ref().is_none_or(|strands| strands.have_ended())
            && self.parcels.as_ref().is_none_or(|parcels| parcels.have_landed())
    }

    /// Whether the peer has been silent so long that `tick` may have something to do.
    pub(crate) fn is_silent(&self, now: Duration) -> bool {
        self.liveness.is_silent(now)
    }

    /// Time passed; an error is the peer's end. Whatever arrived must have been given in before.
    pub(crate) fn tick(&mut self, now: Duration) -> Result<()> {
        match self.liveness.due(now) {
            Due::Nothing => {}
            Due::Ask => self.ask = true,
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
        self.unfinished.as_ref().map_or(Ok(()), Share::check)?;
        self.lender.as_mut().map_or(Ok(()), |lender| lender.tend())
    }

    // What leaves.

    /// Whether something should leave that is no less urgent than `least`.
    pub(crate) fn is_due(&self, least: Urgency) -> bool {
        if matches!(self.closing, Closing::InBatch | Closing::Left) {
            return !self.outbox.is_empty();
        }
        let joined = least >= Urgency::Company && self.sends.have_joined();
        let words = least >= Urgency::Word && self.receives.words().0;
        joined || words || self.is_due_at_once()
    }

    fn is_due_at_once(&self) -> bool {
        !self.outbox.is_empty()
            || !self.records.is_empty()
            || self.has_bulk_for_main()
            || self.ask
            || self.answer
            || self.sends.are_due()
            || self.one_sided.are_due()
            || self.receives.words().1
            || self.good_bye_is_due()
            || (self.closing == Closing::Wanted && self.sends.have_joined())
    }

    /// Whether the main stream has bulk to carry.
    fn has_bulk_for_main(&self) -> bool {
        match &self.strands {
            Some(strands) => strands.has_chunk_for(0),
            None => !self.bulks.is_empty() && self.parcels.is_none(),
        }
    }

    fn good_bye_is_due(&self) -> bool {
        let have_left = || self.parcels.as_ref().is_none_or(|parcels| parcels.have_left());
        let submitted = || {
            self.sends.are_done()
                && self.one_sided.are_done()
                && self.bulks.is_empty()
                && self.strands.as_ref().is_none_or(|strands| strands.spreads.is_empty())
                && self.parcels.as_ref().is_none_or(|parcels| parcels.spreads.is_empty())
                && self.records.is_empty()
                && !self.receives.are_landing()
        };
        match self.closing {
            Closing::Wanted => (self.has_peer_closed() || submitted()) && have_left(),
            Closing::No => self.has_peer_closed() && have_left(),
            Closing::InBatch | Closing::Left => false,
        }
    }

    /// The bytes to write next; makes a batch if there is none.
    pub(crate) fn gather<'a>(&'a mut self, slices: &mut Vec<IoSlice<'a>>, slices_max: usize) {
        if self.outbox.is_empty() {
            self.make_batch();
        }
        debug_assert!(!self.outbox.is_empty() || self.is_paused(), "what is due makes a batch");
        self.outbox.gather(slices, slices_max);
    }

    /// `written` of the gathered bytes are with the operating system.
    pub(crate) fn wrote(&mut self, written: usize) {
        let Self { outbox, sends, one_sided, closing, strands, .. } = self;
        outbox.advance(written, |ending| due(ending, (sends, one_sided), closing, strands));
    }

    fn make_batch(&mut self) {
        while self.outbox.has_room() && matches!(self.closing, Closing::No | Closing::Wanted) {
            self.outbox.begin();
            let good_bye = self.good_bye_is_due();
            self.write_records();
            self.one_sided.ask(&mut self.outbox);
            let fetch = self.fetcher.is_some();
            self.sends.announce(&mut self.outbox, &mut self.bulks, &mut self.lender, fetch);
            if good_bye {
                let parcels = self.parcels.as_ref().map_or(0, |parcels| parcels.handed_out);
                record::put(self.outbox.text(), &Record::Close { parcels });
                self.outbox.end(Ending::Closed);
                self.closing = Closing::InBatch;
            }
            if self.chunk_to(0) {
                continue;
            }
            let Some(mut bulk) = self.bulks.pop_front_if(|_| self.parcels.is_none()) else {
                let nothing = self.outbox.records_len() == 0;
                self.outbox.finish(Transfer::Message(0), Vec::new());
                if nothing {
                    return;
                }
                continue;
            };
            let transfer = bulk.transfer;
            let (bytes, is_last) = bulk.next_parcel();
            self.outbox.finish(transfer, bytes);
            if !is_last {
                self.bulks.push_back(bulk);
            } else if let Some(ending) = bulk.source.ending() {
                self.outbox.end(ending);
            }
        }
    }

    /// Records that were waiting, up to a parcel's worth.
    fn write_records(&mut self) {
        if self.ask {
            record::put(&mut self.records, &Record::Ask);
        }
        if self.answer {
            record::put(&mut self.records, &Record::Answer);
        }
        (self.ask, self.answer) = (false, false);
        self.receives.say(&mut self.records);
        if self.records.len() <= RECORDS_LEN {
            self.outbox.text().append(&mut self.records);
            for reply in replies(std::mem::take(&mut self.answers)) {
                self.outbox.end(reply);
            }
            return;
        }
        let mut len = 0;
        while len < RECORDS_LEN {
            len += record::len_of_first(&self.records[len..]);
        }
        self.outbox.text().extend(self.records.drain(..len));
    }

    // What arrives.

    /// One record, with so many bytes of others behind it.
    fn hear(&mut self, record: Record<'_>, behind: usize) -> Result<()> {
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
            Record::Accept { id, discarded } => self.bulks.extend(self.sends.accepted(id, discarded)?),
            Record::Settle { first, count, delivery } => self.sends.settled(first, count, delivery)?,
            Record::Ahead { bytes } => self.sends.let_ahead(bytes),
            Record::Ask => self.answer = true,
            Record::Answer => {}
            Record::Get { id, key, offset, len } => {
                let bulk = self.one_sided.asked_get(id, &key, offset, len, &mut self.records)?;
                self.answers += usize::from(self.records.len() > waiting);
                self.bulks.extend(bulk);
            }
            Record::Put { id, key, offset, len, payload } => {
                self.one_sided.asked_put(id, (&key, offset, len), payload, &mut self.records)?;
                self.answers += usize::from(self.one_sided.remaining(Transfer::Put(id)).is_none());
            }
            Record::Go { id } => {
                let bulk = self.one_sided.may_go(id)?;
                self.bulks.push_back(bulk);
            }
            Record::Done { id } => self.one_sided.done(id)?,
            Record::Refused { id, reason } => self.one_sided.refused(id, reason)?,
            Record::Close { parcels } => self.hear_good_bye(parcels)?,
        }
        Ok(())
    }

    /// Fails everything in flight.
    pub(crate) fn give_up(&mut self, why: &Error) {
        if let Some(fetcher) = &mut self.fetcher {
            fetcher.withdraw();
        }
        self.give_up_strands(why);
        self.give_up_parcels(why);
        self.sends.give_up(why, &mut self.lender);
        for ending in self.outbox.give_up() {
            if let Ending::Sent(_, message) = ending {
                message.fail(why.clone());
            }
        }
        self.bulks.drain(..).for_each(|bulk| bulk.fail(why));
        self.receives.give_up(why, self.fetcher.as_deref_mut().map(|fetcher| fetcher as &mut dyn Fetcher));
        self.one_sided.give_up(why);
        self.announced.clear();
        for done in self.closers.drain(..) {
            let graceful = why.kind() == ErrorKind::Closed;
            done.resolve(if graceful { Ok(()) } else { Err(why.clone()) });
        }
    }
}
