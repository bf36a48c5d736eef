//! One end of a data stream.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use super::arena::FuzzArena;
use crate::backend::{Announced, Completion, Delivery, Done, Message, Operation};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::memory::{Buffer, BufferMut, Pool, RawBytes};
use crate::platform::environment::Environment;
use crate::platform::environment::clockwork::Clockwork;
use crate::transfer::region::{Region, Regions, RemoteRegion};
use crate::wire::fetching::{Fetcher, Part, PartEnd};
use crate::wire::session::{DataTarget, Session, Urgency};

/// The most memory that its pool keeps for reuse, in bytes.
const POOL_LEN: usize = 1 << 20;
/// The most buffers of one read, and slices of one write.
const PIECES_MAX: usize = 64;

/// A peer's memory, at addresses where this process has no allocation.
#[derive(Debug, Default)]
struct Zeros(Option<PartEnd>);

impl Fetcher for Zeros {
    fn fetches(&self) -> bool {
        true
    }

    fn begin(&mut self, mut part: Part) -> Result<(), Part> {
        fn zeros(address: u64, into: &mut [MaybeUninit<u8>]) -> Result<&mut [u8]> {
            if address < 1 << 20 {
                Ok(into.write_copy_of_slice(&vec![0; into.len()]))
            } else {
                Err(Error::new(ErrorKind::Unavailable, "nothing is there"))
            }
        }
        let read = part.read_by(zeros);
        self.0 = Some(if read.is_ok() { PartEnd::Read(part) } else { PartEnd::Failed(part) });
        Ok(())
    }

    fn finished(&mut self) -> Option<PartEnd> {
        self.0.take()
    }

    fn abandon(&mut self, then: Box<dyn FnOnce(Option<Part>) + Send>) {
        then(self.0.take().and_then(PartEnd::into_part));
    }

    fn retract(&mut self) {}
}

/// One end of a data stream, driven by the caller.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    regions: Arc<Regions>,
    pool: Pool,
    clock: Clockwork,
    /// Bytes that arrived on each stream and cannot be read yet.
    waiting: Vec<Vec<u8>>,
}

impl Stream {
    /// Creates a stream, with checksums if `checked`, and with `lanes` lanes.
    pub fn new(heartbeat: Duration, checked: bool, lanes: usize) -> Self {
        let clock = Clockwork::default();
        let (regions, pool) = (Regions::new(Arc::new(clock.clone())), Pool::new(POOL_LEN));
        let session = Session::new(pool.clone(), regions.clone(), heartbeat, Duration::ZERO, checked);
        Self { session: session.striped(lanes), regions, pool, clock, waiting: vec![Vec::new(); lanes + 1] }
    }

    /// Enables lending: frames of `ours` are lent, at most `leases_max` at a time, and those of `theirs` are
    /// borrowed.
    #[must_use]
    pub fn lending(mut self, ours: &FuzzArena, theirs: &FuzzArena, leases_max: usize) -> Self {
        self.session = self.session.lending(ours.lender(theirs, leases_max));
        self
    }

    /// Enables fetching. The lowest MiB of the peer's memory reads as zeros; other addresses fail.
    #[must_use]
    pub fn fetching(mut self) -> Self {
        self.session = self.session.fetching(Box::<Zeros>::default());
        self
    }

    /// Returns the pool for payload without a named destination.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Sets whether the application receives into pool memory or names memory.
    pub fn expect(&mut self, in_pool: bool) {
        self.session.expect(in_pool);
    }

    /// Sends a message. With `more`, it is coalesced if it is small.
    pub fn send(&mut self, message: Message, ack_now: bool, more: bool) -> PendingSend {
        let (message, sent) = Operation::new(message);
        let (receipt, acked) = Done::new();
        self.session.send(message, receipt, ack_now, more);
        (sent, acked)
    }

    /// Returns the messages announced since the last call.
    pub fn announced(&mut self) -> impl Iterator<Item = Announced> + '_ {
        self.session.take_announced()
    }

    /// Accepts an announced message into these buffers.
    ///
    /// # Panics
    /// Panics if fetched data is not confirmed.
    pub fn accept(&mut self, id: u64, destinations: Vec<Option<BufferMut>>) -> PendingAccept {
        let (destinations, landed) = Operation::new(destinations);
        self.session.accept(id, destinations);
        while self.session.fetch().expect("its peer's memory stays") {}
        landed
    }

    /// Acknowledges an announced message.
    pub fn ack(&mut self, id: u64, delivery: Delivery, ack_now: bool) {
        self.session.ack(id, delivery, ack_now);
    }

    /// Exposes memory for reading by the peer.
    pub fn expose(&self, buffer: Buffer) -> Region<Buffer> {
        self.regions.expose(buffer, Duration::MAX)
    }

    /// Exposes memory for writing by the peer.
    pub fn expose_mut(&self, buffer: BufferMut) -> Region<BufferMut> {
        self.regions.expose_mut(buffer, Duration::MAX)
    }

    /// Reads from the peer's memory.
    pub fn get(&mut self, region: RemoteRegion, offset: u64, into: BufferMut) -> PendingGet {
        let (into, got) = Operation::new(into);
        self.session.get(region, offset, into);
        got
    }

    /// Writes to the peer's memory.
    pub fn put(&mut self, region: RemoteRegion, offset: u64, from: Buffer) -> PendingPut {
        let (from, put) = Operation::new(from);
        self.session.put(region, offset, from);
        put
    }

    /// Closes the stream.
    pub fn close(&mut self) -> Completion<Result<()>> {
        let (done, closed) = Done::new();
        self.session.close(done);
        closed
    }

    /// Advances the clock.
    pub fn pass(&mut self, time: Duration) -> Result<()> {
        self.clock.advance(time);
        self.session.tick(self.clock.now())
    }

    /// Delivers `bytes` that arrive on one of the streams to where the session wants them. Bytes that it
    /// cannot read yet are kept until the main stream continues.
    ///
    /// # Panics
    /// Panics if the session wants data and accepts none.
    pub fn arrive(&mut self, stream: usize, bytes: &[u8]) -> Result<()> {
        self.session.record_activity(self.clock.now());
        if self.waiting[stream].is_empty() {
            let rest = self.read(stream, bytes)?;
            self.waiting[stream].extend(rest);
        } else {
            self.waiting[stream].extend(bytes);
        }
        self.session.unpark()?;
        for stream in 1..self.waiting.len() {
            let waiting = std::mem::take(&mut self.waiting[stream]);
            let rest = self.read(stream, &waiting)?;
            self.waiting[stream].extend(rest);
        }
        Ok(())
    }

    /// Reads from the front of `bytes`, and returns the rest.
    fn read<'a>(&mut self, stream: usize, mut bytes: &'a [u8]) -> Result<&'a [u8]> {
        while !bytes.is_empty() && self.session.reads(stream) {
            let Some((target, remaining, mut sum)) = self.session.target(stream, PIECES_MAX) else {
                let (wanted, rest) = bytes.split_at(bytes.len().min(self.session.bytes_wanted(stream)));
                assert!(!wanted.is_empty(), "the session reads nothing");
                self.session.received(stream, wanted)?;
                bytes = rest;
                continue;
            };
            let arriving = &bytes[..bytes.len().min(remaining)];
            let mut landed = arriving.len();
            let mut revoked = false;
            match target {
                DataTarget::Buffers(buffers) => {
                    let mut rest = arriving;
                    for (buffer, room) in buffers {
                        let (part, more) = rest.split_at(rest.len().min(room));
                        buffer.extend_from_slice(part)?;
                        sum.add(part);
                        rest = more;
                    }
                    landed -= rest.len();
                }
                DataTarget::Region(lease, at) => {
                    sum.add(arriving);
                    revoked = lease.with(at, |to| to[..landed].copy_from_slice(arriving)).is_none();
                }
            }
            assert!(landed > 0, "the session wants data but has no buffer for it");
            self.session.landed(stream, landed, revoked)?;
            bytes = &bytes[landed..];
        }
        Ok(bytes)
    }

    /// Ends one of the streams. Returns whether the connection continues.
    pub fn end(&mut self, stream: usize) -> bool {
        self.session.continues_without(stream)
    }

    /// Appends the pending output of one of the streams to `out`. Returns whether there was any.
    pub fn leave(&mut self, stream: usize, out: &mut Vec<u8>) -> bool {
        // The stream is the first that is not full.
        self.session.choose_stream((1 << stream) - 1);
        self.session.begin_poll();
        let is_due = match stream {
            0 => self.session.is_due(Urgency::Ack),
            _ => self.session.lane_is_due(stream),
        };
        if !is_due {
            return false;
        }
        let mut pieces: Vec<RawBytes<'_>> = Vec::new();
        match stream {
            0 => self.session.gather(&mut pieces, PIECES_MAX),
            _ => self.session.lane_gather(stream, &mut pieces, PIECES_MAX),
        }
        let before = out.len();
        pieces.into_iter().for_each(|piece| piece.append_to(out));
        let len = out.len() - before;
        match stream {
            0 => self.session.wrote(len),
            _ => self.session.lane_wrote(stream, len),
        }
        true
    }

    /// Returns whether both ends have closed.
    pub fn is_over(&self) -> bool {
        self.session.is_over()
    }

    /// Fails all operations in flight.
    pub fn give_up(&mut self, why: &Error) {
        self.session.give_up(why);
    }
}

/// Completes when the message's memory is free, and when it is acknowledged.
pub type PendingSend = (Completion<Result<(), Failed<Message>>>, Completion<Result<Delivery>>);
/// Completes when the frames of a message have been received.
pub type PendingAccept = Completion<Result<Vec<Buffer>, Failed<Vec<Option<BufferMut>>>>>;
/// Completes when a get has ended.
pub type PendingGet = Completion<Result<BufferMut, Failed<BufferMut>>>;
/// Completes when a put has ended.
pub type PendingPut = Completion<Result<(), Failed<Buffer>>>;
