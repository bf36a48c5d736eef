//! A link whose data path is a byte stream: a session and its [`ByteStream`] behind one poll lock.
//!
//! Shared by every backend whose transport is such a stream. The backend implements [`ByteStream`].

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::submitted::Submitted;
use super::{Caps, Inbox, Link, LinkContext, LinkStats, Op, Progress, SmallSend, WaitSource};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{BufferMut, RawBytes};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::wire::count::SessionCounts;
use crate::wire::session::{DataTarget, Session, Urgency};

/// The most pieces offered to one vectored write.
pub(super) const PIECES_MAX: usize = 512;
/// The most buffers of one read.
const BUFFERS_MAX: usize = 64;
/// Bytes of records per read.
const SCRATCH_LEN: usize = 64 << 10;
/// Reads per poll.
const READS_MAX: usize = 16;
/// Reads per poll while the stream has buffered data. If the poll stops with data left, the driver is woken
/// for it.
const READS_MAX_BUFFERED: usize = 64;

thread_local! {
    /// The buffer that records are read into. All links polled by a thread share it, so an idle link needs
    /// none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_LEN]);
}

/// Carries a link's bytes in both directions.
pub(super) trait ByteStream: std::fmt::Debug + Send + Sync + 'static {
    /// State that only the holder of the poll lock accesses.
    type State: std::fmt::Debug + Send;

    /// True if the handshake keeps its control stream open alongside this stream. The control stream then
    /// detects a lost peer and drains the link.
    const HAS_CONTROL_STREAM: bool = false;

    /// Writes output at least as urgent as `least`, until none is left or there is no room. Returns true if
    /// any was written.
    fn write(&self, state: &mut Self::State, session: &mut Session, least: Urgency) -> Result<bool>;

    /// Reads available bytes into the session, up to a limit. Returns true if any were read.
    fn read(&self, state: &mut Self::State, session: &mut Session) -> Result<bool>;

    /// Returns true if output waits for room.
    fn is_blocked(&self) -> bool;

    /// Closes the stream towards the peer, unless dropping `state` does. Called before the application is
    /// told of the end, so a process that exits then leaves nothing undone.
    fn shut_down(&self, _why: &Error) {}

    /// Ends all reads and writes, and fails everything in flight.
    fn tear_down(&self, state: Self::State, session: Session, why: &Error);

    /// See [`Link::source`].
    fn source(&self) -> WaitSource<'_>;

    /// See [`Link::arm`].
    fn arm(&self, _: &mut Self::State) -> bool {
        true
    }

    /// Returns the number of system calls that moved data, or tried to.
    fn calls(&self) -> u64;

    /// Returns the number of bytes copied in user space.
    fn copied(&self) -> u64 {
        0
    }

    /// See [`Link::notes`].
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// One non-blocking stream of a byte stream.
pub(super) trait StreamIo {
    /// Writes from the front as many bytes as there is room for.
    fn write(&mut self, pieces: &[RawBytes<'_>]) -> io::Result<IoOutcome>;

    /// Reads available bytes into `bytes`.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<IoOutcome>;

    /// Reads into the spare capacity of `buffers`, up to the given number of bytes each, and then into
    /// `then`. Each buffer's length grows by what was read into it.
    fn read_into(
        &mut self,
        buffers: &mut [(&mut BufferMut, usize)],
        then: &mut [u8],
    ) -> io::Result<IoOutcome>;

    /// Reads into a region's bytes, and then into `then`.
    fn read_region(&mut self, bytes: &mut [u8], then: &mut [u8]) -> io::Result<IoOutcome>;

    /// Returns true if a read would return data although the source may not be ready.
    fn has_buffered(&self) -> bool {
        false
    }
}

/// The outcome of a non-blocking read or write.
#[derive(Clone, Copy, Debug)]
pub(super) enum IoOutcome {
    /// The number of bytes moved; a read of 0 bytes is the end of the stream.
    Bytes(usize),
    /// The call would have blocked.
    WouldBlock,
}

/// One end of a link.
#[derive(Debug)]
pub(super) struct Streamed<L: ByteStream> {
    stream: L,
    caps: Caps,
    inbox: Arc<Inbox>,
    environment: Arc<dyn Environment>,
    /// Operations that the session has not taken yet.
    submitted: Submitted,
    /// The poll lock. `None` once the link has ended.
    active: Mutex<Option<Active<L>>>,
    /// The session's counters, readable without the poll lock.
    counts: SessionCounts,
    /// The last poll left work for the next one.
    paused: AtomicBool,
}

/// What the holder of the poll lock works on.
#[derive(Debug)]
struct Active<L: ByteStream> {
    session: Session,
    state: L::State,
    /// The last poll found nothing to move.
    idle: bool,
    /// The peer gave a sign of life since the session was last told of one. Reading the clock is left to
    /// `tick`.
    peer_alive: bool,
}

impl<L: ByteStream> Streamed<L> {
    /// Returns a session for `context`.
    pub(super) fn session(context: &LinkContext) -> Session {
        let now = context.environment.now();
        let session = Session::new(
            context.pool.clone(),
            context.regions.clone(),
            context.heartbeat,
            now,
            context.checked,
        );
        session.counted(&context.unfinished)
    }

    pub(super) fn open(
        stream: L,
        state: L::State,
        session: Session,
        caps: Caps,
        context: &LinkContext,
    ) -> Arc<Self> {
        let counts = session.counts();
        Arc::new(Self {
            stream,
            caps,
            inbox: context.inbox.clone(),
            environment: context.environment.clone(),
            submitted: Submitted::default(),
            active: Mutex::new(Some(Active { session, state, idle: false, peer_alive: false })),
            counts,
            paused: AtomicBool::new(false),
        })
    }

    /// Polls if the poll lock is free, performing `op` first. Afterwards checks for operations that other
    /// threads submitted while they could not get the lock.
    fn with_poll_lock(
        &self,
        mut op: Option<Op>,
        mut poll: impl FnMut(&Self, &mut Active<L>) -> Result<Progress>,
    ) -> Progress {
        loop {
            let Some(mut poll_lock) = self.active.try_lock() else {
                let Some(op) = op.take() else { return Progress::Elsewhere };
                self.submitted.push(op);
                // The holder checks `submitted` after releasing the lock, but may have done so before the
                // push: try again.
                continue;
            };
            let Some(active) = poll_lock.as_mut() else {
                drop(poll_lock);
                self.fail_submitted(op);
                return Progress::Idle;
            };
            active.session.begin_poll();
            for op in self.submitted.take().into_iter().chain(op.take()) {
                perform(op, &mut active.session);
            }
            let result = poll(self, active);
            let paused = active.session.is_paused();
            self.paused.store(paused, Ordering::Release);
            active.idle &= !paused;
            let progress = match result {
                Ok(_) if paused => Progress::Moved,
                Ok(progress) => progress,
                Err(why) => {
                    self.finish(&mut poll_lock, &why);
                    Progress::Moved
                }
            };
            drop(poll_lock);
            if !self.submitted.has_any() {
                return progress;
            }
        }
    }

    fn fail_submitted(&self, last: Option<Op>) {
        let why = self.inbox.ended().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the link has ended"));
        while self.submitted.has_any() {
            self.submitted.take().into_iter().for_each(|op| op.fail(why.clone()));
        }
        if let Some(op) = last {
            op.fail(why);
        }
    }

    /// Writes due output, reads available input, and then writes output that could be delayed.
    fn poll(&self, active: &mut Active<L>) -> Result<Progress> {
        let mut moved = self.write(active, Urgency::Coalesced)?;
        let read = self.stream.read(&mut active.state, &mut active.session)?;
        if read {
            active.peer_alive = true;
            self.announce(&mut active.session);
        }
        let fetched = active.session.fetch()?;
        moved |= read | fetched;
        moved |= self.write(active, if read { Urgency::Coalesced } else { Urgency::Ack })?;
        if active.session.is_over() && !self.stream.is_blocked() {
            if !L::HAS_CONTROL_STREAM {
                return Err(closed_cleanly());
            }
            self.inbox.drain(closed_cleanly());
        }
        active.idle = !moved;
        Ok(if moved { Progress::Moved } else { Progress::Idle })
    }

    fn announce(&self, session: &mut Session) {
        let mut announced = session.take_announced();
        if let Some(first) = announced.next() {
            self.inbox.announce_all(std::iter::once(first).chain(announced));
        }
    }

    fn write(&self, active: &mut Active<L>, least: Urgency) -> Result<bool> {
        let was_blocked = self.stream.is_blocked();
        let moved = self.stream.write(&mut active.state, &mut active.session, least)?;
        if was_blocked && moved {
            // A peer that frees room is alive, though its pong may be queued behind megabytes.
            active.peer_alive = true;
        }
        Ok(moved)
    }

    fn write_due(&self, active: &mut Active<L>) -> Result<Progress> {
        let moved = self.write(active, Urgency::Now)?;
        Ok(if moved { Progress::Moved } else { Progress::Idle })
    }

    /// Ends the link, once.
    fn finish(&self, poll_lock: &mut Option<Active<L>>, why: &Error) {
        let Some(Active { mut session, state, .. }) = poll_lock.take() else { return };
        self.announce(&mut session);
        // With a control stream, the end of that stream may be the first sign that the peer closed.
        let in_order = L::HAS_CONTROL_STREAM && why.kind() == ErrorKind::PeerLost && session.may_end();
        let why = if in_order { closed_cleanly() } else { why.clone() };
        self.stream.shut_down(&why);
        self.inbox.end(why.clone());
        self.paused.store(false, Ordering::Release);
        self.stream.tear_down(state, session, &why);
    }
}

impl<L: ByteStream> Link for Streamed<L> {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn submit(&self, op: Op) {
        // Acknowledgements can wait to be coalesced; `progress` sends them.
        let can_wait = matches!(op, Op::Ack { ack_now: false, .. } | Op::Expect { .. });
        let poll = if can_wait { |_: &Self, _: &mut _| Ok(Progress::Idle) } else { Self::write_due };
        self.with_poll_lock(Some(op), poll);
    }

    fn copy(&self, small: SmallSend) -> Option<SmallSend> {
        if !Session::may_copy(&small.message) {
            return Some(small);
        }
        let mut small = Some(small);
        self.with_poll_lock(None, |link, active| {
            small = small.take().and_then(|small| active.session.copy(small));
            link.write_due(active)
        });
        small
    }

    fn progress(&self) -> Progress {
        self.with_poll_lock(None, Self::poll)
    }

    fn source(&self) -> Option<WaitSource<'_>> {
        let source = self.stream.source();
        // A paused poll is continued without its caller, as blocked output is.
        Some(WaitSource { writable: source.writable || self.paused.load(Ordering::Acquire), ..source })
    }

    fn arm(&self) -> bool {
        if !self.stream.source().doorbell {
            return true;
        }
        let mut poll_lock = self.active.lock();
        // An ended link receives nothing more. If the last poll stopped before it was idle, no doorbell rings
        // for the rest, nor for this end's own pending reads.
        poll_lock.as_mut().is_none_or(|active| {
            active.idle && !active.session.has_to_fetch() && self.stream.arm(&mut active.state)
        })
    }

    fn tick(&self) {
        self.with_poll_lock(None, |link, active| {
            link.write(active, Urgency::Ack)?;
            active.session.tend()?;
            if L::HAS_CONTROL_STREAM {
                return link.poll(active);
            }
            if !active.is_silent(link.environment.now()) {
                return Ok(Progress::Idle);
            }
            // Bytes not read yet are also a sign of life.
            let progress = link.poll(active)?;
            let now = link.environment.now();
            if active.is_silent(now) {
                active.session.tick(now)?;
            }
            link.write(active, Urgency::Ack)?;
            Ok(progress)
        });
    }

    fn end(&self, why: Error) {
        let mut poll_lock = self.active.lock();
        self.finish(&mut poll_lock, &why);
        drop(poll_lock);
        self.fail_submitted(None);
    }

    fn stats(&self) -> LinkStats {
        LinkStats {
            bytes_copied: self.counts.copied() + self.stream.copied(),
            bytes_bounced: self.counts.bounced(),
            system_calls: self.stream.calls(),
            credit_stalls: self.counts.stalls(),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.stream.notes()
    }
}

impl<L: ByteStream> Active<L> {
    /// Reports the last sign of life to the session. Returns true if there was none for too long.
    fn is_silent(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.peer_alive) {
            self.session.record_activity(now);
        }
        self.session.is_silent(now)
    }
}

fn perform(op: Op, session: &mut Session) {
    match op {
        Op::Send { message, receipt, ack_now, more } => session.send(message, receipt, ack_now, more),
        Op::Expect { in_pool } => session.expect(in_pool),
        Op::Accept { id, destinations } => session.accept(id, destinations),
        Op::Ack { id, delivery, ack_now } => session.ack(id, delivery, ack_now),
        Op::Get { region, offset, into } => session.get(region, offset, into),
        Op::Put { region, offset, from } => session.put(region, offset, from),
        Op::Close(done) => session.close(done),
    }
}

/// Writes to the main stream until nothing as urgent as `least` is left, or there is no room. Returns whether
/// any bytes were written, and whether there was room for all.
pub(super) fn write_to(
    to: &mut impl StreamIo,
    session: &mut Session,
    least: Urgency,
) -> Result<(bool, bool)> {
    let mut moved = false;
    while session.is_due(least) {
        let mut pieces: Vec<RawBytes<'_>> = Vec::with_capacity(16);
        session.gather(&mut pieces, PIECES_MAX);
        if pieces.is_empty() {
            session.wrote(0);
            continue;
        }
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let IoOutcome::Bytes(written) = to.write(&pieces).map_err(cut)? else { return Ok((moved, false)) };
        session.wrote(written);
        moved = true;
        if written < wanted {
            return Ok((moved, false));
        }
    }
    Ok((moved, true))
}

/// Reads one of the connection's streams until nothing is left, up to a limit.
pub(super) fn read_from(from: &mut impl StreamIo, session: &mut Session, stream: usize) -> Result<bool> {
    SCRATCH.with_borrow_mut(|scratch| {
        for reads in 0..READS_MAX_BUFFERED {
            if reads >= READS_MAX && !from.has_buffered() {
                break;
            }
            match read_once(session, from, stream, scratch)? {
                (IoOutcome::WouldBlock, _) => return Ok(reads > 0),
                (IoOutcome::Bytes(0), _) if session.continues_without(stream) => return Ok(true),
                (IoOutcome::Bytes(0), _) => return Err(end_of_stream(session)),
                (IoOutcome::Bytes(len), asked) => {
                    if len < asked || !session.reads(stream) {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(true)
    })
}

/// Reads once into the session's current target. Returns the outcome and the number of bytes asked for.
fn read_once(
    session: &mut Session,
    from: &mut impl StreamIo,
    stream: usize,
    scratch: &mut [u8],
) -> Result<(IoOutcome, usize)> {
    // The next head is read together with the data before it.
    let next_head_len = session.head_len();
    let Some((target, remaining, mut sum)) = session.target(stream, BUFFERS_MAX) else {
        let len = session.bytes_wanted(stream).min(scratch.len());
        let moved = from.read(&mut scratch[..len]).map_err(cut)?;
        if let IoOutcome::Bytes(len) = moved {
            session.received(stream, &scratch[..len])?;
        }
        return Ok((moved, len));
    };
    let (moved, room, then, revoked) = match target {
        DataTarget::Buffers(mut buffers) => {
            let room = limit(&mut buffers, remaining);
            let then = if room == remaining { next_head_len } else { 0 };
            let moved = from.read_into(&mut buffers, &mut scratch[..then]);
            if let Ok(IoOutcome::Bytes(len)) = moved {
                sum.add_filled(&buffers, len.min(room));
            }
            (moved, room, then, false)
        }
        DataTarget::Region(lease, at) => {
            let read = |bytes: &mut [u8]| {
                let bytes = &mut bytes[..remaining];
                let moved = from.read_region(bytes, &mut scratch[..next_head_len]);
                if let Ok(IoOutcome::Bytes(len)) = moved {
                    sum.add(&bytes[..len.min(remaining)]);
                }
                moved
            };
            match lease.with(at, read) {
                Some(moved) => (moved, remaining, next_head_len, false),
                None => {
                    let room = remaining.min(scratch.len());
                    let moved = from.read(&mut scratch[..room]);
                    if let Ok(IoOutcome::Bytes(len)) = moved {
                        sum.add(&scratch[..len]);
                    }
                    (moved, room, 0, true)
                }
            }
        }
    };
    let moved = moved.map_err(cut)?;
    if let IoOutcome::Bytes(len) = moved {
        session.landed(stream, len.min(room), revoked)?;
        if len > room {
            session.received(stream, &scratch[..len - room])?;
        }
    }
    Ok((moved, room + then))
}

/// Limits the total room of `buffers` to `remaining` bytes, and returns the total.
fn limit(buffers: &mut Vec<(&mut BufferMut, usize)>, remaining: usize) -> usize {
    let mut total = 0;
    for (_, room) in buffers.iter_mut() {
        *room = (*room).min(remaining - total);
        total += *room;
    }
    buffers.retain(|(_, room)| *room > 0);
    total
}

pub(super) fn end_of_stream(session: &Session) -> Error {
    if session.may_end() {
        return closed_cleanly();
    }
    Error::new(ErrorKind::PeerLost, "the peer's end of the connection ended without a close record")
}

fn closed_cleanly() -> Error {
    Error::new(ErrorKind::Closed, "the connection was closed")
}

pub(super) fn cut(error: std::io::Error) -> Error {
    Error::cut(error, "the connection was cut")
}
