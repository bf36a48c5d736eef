//! One end of a data stream.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::clockwork::Clockwork;
use crate::backend::{Announced, Completion, Delivery, Done, Message, Operation};
use crate::environment::Environment;
use crate::error::{Error, Failed, Result};
use crate::memory::{Buffer, BufferMut, Pool};
use crate::region::{Region, Regions, RemoteRegion};
use crate::wire::session::{Session, Target, Urgency};

/// How much memory its pool may keep for later.
const POOL_LEN: usize = 1 << 20;
/// Buffers of one read, and slices of one write.
const PIECES_MAX: usize = 64;

/// One end of a data stream, driven by hand.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    regions: Arc<Regions>,
    pool: Pool,
    clock: Clockwork,
}

impl Stream {
    /// A new one, with checksums if `checked`.
    pub fn new(heartbeat: Duration, checked: bool) -> Self {
        let clock = Clockwork::default();
        let (regions, pool) = (Regions::new(Arc::new(clock.clone())), Pool::new(POOL_LEN));
        let session = Session::new(pool.clone(), regions.clone(), heartbeat, Duration::ZERO, checked);
        Self { session, regions, pool, clock }
    }

    /// Where payload lands that nobody named memory for.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The application takes what comes in pool memory, or names memory.
    pub fn expect(&mut self, in_pool: bool) {
        self.session.expect(in_pool);
    }

    /// Sends a message, which with `more` waits for company if it is small.
    pub fn send(&mut self, message: Message, prompt: bool, more: bool) -> Sending {
        let (message, sent) = Operation::new(message);
        let (receipt, settled) = Done::new();
        self.session.send(message, receipt, prompt, more);
        (sent, settled)
    }

    /// What the peer announced since the last call.
    pub fn announced(&mut self) -> impl Iterator<Item = Announced> + '_ {
        self.session.take_announced()
    }

    /// Accepts an announced message into these buffers.
    pub fn accept(&mut self, id: u64, landings: Vec<Option<BufferMut>>) -> Landing {
        let (landings, landed) = Operation::new(landings);
        self.session.accept(id, landings);
        landed
    }

    /// Says the word on an announced message.
    pub fn settle(&mut self, id: u64, delivery: Delivery, prompt: bool) {
        self.session.settle(id, delivery, prompt);
    }

    /// Exposes memory to the peer, to be read.
    pub fn expose(&self, buffer: Buffer) -> Region<Buffer> {
        self.regions.expose(buffer, Duration::MAX)
    }

    /// Exposes memory to the peer, to be written.
    pub fn expose_mut(&self, buffer: BufferMut) -> Region<BufferMut> {
        self.regions.expose_mut(buffer, Duration::MAX)
    }

    /// Reads the peer's memory.
    pub fn get(&mut self, region: RemoteRegion, offset: u64, into: BufferMut) -> Getting {
        let (into, got) = Operation::new(into);
        self.session.get(region, offset, into);
        got
    }

    /// Writes the peer's memory.
    pub fn put(&mut self, region: RemoteRegion, offset: u64, from: Buffer) -> Putting {
        let (from, put) = Operation::new(from);
        self.session.put(region, offset, from);
        put
    }

    /// Says good-bye.
    pub fn close(&mut self) -> Completion<Result<()>> {
        let (done, closed) = Done::new();
        self.session.close(done);
        closed
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) -> Result<()> {
        self.clock.advance(time);
        self.session.tick(self.clock.now())
    }

    /// `bytes` arrive, and go to where the session wants them.
    ///
    /// # Panics
    /// If the session wants none of them.
    pub fn arrive(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.session.heard(self.clock.now());
        while !bytes.is_empty() {
            let Some((target, remaining, mut sum)) = self.session.target(0, PIECES_MAX) else {
                let (wanted, rest) = bytes.split_at(bytes.len().min(self.session.bytes_wanted(0)));
                assert!(!wanted.is_empty(), "the session wants neither bulk nor anything else");
                self.session.received(0, wanted)?;
                bytes = rest;
                continue;
            };
            let arriving = &bytes[..bytes.len().min(remaining)];
            let mut landed = arriving.len();
            let mut revoked = false;
            match target {
                Target::Buffers(buffers) => {
                    let mut rest = arriving;
                    for (buffer, room) in buffers {
                        let (part, more) = rest.split_at(rest.len().min(room));
                        buffer.extend_from_slice(part)?;
                        sum.add(part);
                        rest = more;
                    }
                    landed -= rest.len();
                }
                Target::Region(lease, at) => {
                    sum.add(arriving);
                    revoked = lease.with(at, |to| to[..landed].copy_from_slice(arriving)).is_none();
                }
            }
            assert!(landed > 0, "the session wants bulk and has no room for it");
            self.session.landed(0, landed, revoked)?;
            bytes = &bytes[landed..];
        }
        Ok(())
    }

    /// Appends at most `len_max` bytes of what is due to `out`; whether anything was.
    pub fn leave(&mut self, out: &mut Vec<u8>, len_max: usize) -> bool {
        if !self.session.is_due(Urgency::Word) {
            return false;
        }
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        self.session.gather(&mut slices, PIECES_MAX);
        let before = out.len();
        for slice in slices {
            out.extend_from_slice(&slice[..slice.len().min(len_max - (out.len() - before))]);
        }
        self.session.wrote(out.len() - before);
        true
    }

    /// Whether both ends said good-bye.
    pub fn is_over(&self) -> bool {
        self.session.is_over()
    }

    /// Fails everything in flight.
    pub fn give_up(&mut self, why: &Error) {
        self.session.give_up(why);
    }
}

/// When a message's memory is free again, and the receiver's word.
pub type Sending = (Completion<Result<(), Failed<Message>>>, Completion<Result<Delivery>>);
/// When the frames of a message have landed.
pub type Landing = Completion<Result<Vec<Buffer>, Failed<Vec<Option<BufferMut>>>>>;
/// When a get has ended.
pub type Getting = Completion<Result<BufferMut, Failed<BufferMut>>>;
/// When a put has ended.
pub type Putting = Completion<Result<(), Failed<Buffer>>>;
