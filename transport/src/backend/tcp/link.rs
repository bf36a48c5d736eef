//! The link: a session and its socket behind one baton.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::CAPS;
use super::socket::{BUFFERS_MAX, Moved, SLICES_MAX, Socket};
use super::strands::Strands;
use crate::backend::{Caps, Inbox, Link, LinkStats, Op, Progress, Site, Source};
use crate::environment::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Session, Target, Urgency};

/// Bytes of records read at once.
const SCRATCH_LEN: usize = 64 << 10;
/// Reads of one poll.
const READS_MAX: usize = 16;
/// The same while the socket holds something: whoever stops there has the driver wake for it.
const READS_MAX_HELD: usize = 64;

thread_local! {
    /// Where records are read to, shared by all links that this thread polls, so that an idle one needs none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_LEN]);
}

#[derive(Debug)]
pub(super) struct TcpLink {
    pub(super) socket: Socket,
    /// The further sockets of the connection.
    strands: Option<Box<Strands>>,
    inbox: Arc<Inbox>,
    environment: Arc<dyn Environment>,
    /// Operations that the session has not seen yet.
    submitted: Mutex<VecDeque<Op>>,
    /// The baton. `None` once the link has ended.
    session: Mutex<Option<Session>>,
    /// Output waits for the socket.
    pub(super) blocked: AtomicBool,
    /// Copied bytes and credit stalls, as last seen.
    copied: AtomicU64,
    stalls: AtomicU64,
}

impl TcpLink {
    /// `sockets` are the main one and what else the connection has.
    pub(super) fn open(mut sockets: Vec<Socket>, site: &Site) -> Result<Arc<dyn Link>> {
        let socket = sockets.remove(0);
        let now = site.environment.now();
        let session =
            Session::new(site.pool.clone(), site.regions.clone(), site.heartbeat, now, site.checked)
                .striped(sockets.len());
        let strands = match sockets.len() {
            0 => None,
            _ => Some(Box::new(Strands::new(&socket, sockets)?)),
        };
        Ok(Arc::new(Self {
            socket,
            strands,
            inbox: site.inbox.clone(),
            environment: site.environment.clone(),
            submitted: Mutex::default(),
            session: Mutex::new(Some(session)),
            blocked: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
        }))
    }

    fn submitted(&self) -> MutexGuard<'_, VecDeque<Op>> {
        self.submitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls with the baton, if it is free, `op` first; looks for operations of those who could not have it afterwards.
    fn with_baton(
        &self,
        mut op: Option<Op>,
        poll: impl Fn(&Self, &mut Session) -> Result<Progress>,
    ) -> Progress {
        loop {
            let mut baton = match self.session.try_lock() {
                Ok(baton) => baton,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    let Some(op) = op.take() else { return Progress::Elsewhere };
                    self.submitted().push_back(op);
                    // Whoever has the baton looks after letting it go, which may have been before there was anything to see.
                    continue;
                }
            };
            let Some(session) = baton.as_mut() else {
                drop(baton);
                self.submitted().extend(op.take());
                self.fail_submitted();
                return Progress::Idle;
            };
            while let Some(op) = self.next_submitted() {
                perform(op, session);
            }
            if let Some(op) = op.take() {
                perform(op, session);
            }
            let result = poll(self, session);
            let (copied, stalls) = session.counts();
            self.copied.store(copied, Ordering::Relaxed);
            self.stalls.store(stalls, Ordering::Relaxed);
            let progress = match result {
                Ok(progress) => progress,
                Err(why) => {
                    self.finish(&mut baton, &why);
                    Progress::Moved
                }
            };
            drop(baton);
            if self.submitted().is_empty() {
                return progress;
            }
        }
    }

    fn next_submitted(&self) -> Option<Op> {
        self.submitted().pop_front()
    }

    fn fail_submitted(&self) {
        let ops = std::mem::take(&mut *self.submitted());
        let why = self.inbox.ended().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the link has ended"));
        for op in ops {
            op.fail(why.clone());
        }
    }

    /// Writes what is due, reads what has come, and then says what could wait.
    fn poll(&self, session: &mut Session) -> Result<Progress> {
        let mut moved = self.write(session, Urgency::Company)?;
        let read = match &self.strands {
            None => self.read(session, &self.socket, 0)?,
            Some(strands) => strands.read(self, session)?,
        };
        moved |= read;
        for announced in session.take_announced() {
            self.inbox.announce(announced);
        }
        moved |= self.write(session, if read { Urgency::Company } else { Urgency::Word })?;
        if session.is_over() && !self.blocked.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the connection was closed in good order"));
        }
        Ok(if moved { Progress::Moved } else { Progress::Idle })
    }

    fn write_what_is_due(&self, session: &mut Session) -> Result<Progress> {
        let moved = self.write(session, Urgency::Now)?;
        Ok(if moved { Progress::Moved } else { Progress::Idle })
    }

    /// Writes until nothing as urgent as `least` is left or the socket is full.
    fn write(&self, session: &mut Session, least: Urgency) -> Result<bool> {
        if let Some(strands) = &self.strands {
            return strands.write(self, session, least);
        }
        let mut moved = false;
        while session.is_due(least) {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(16);
            session.gather(&mut slices, SLICES_MAX);
            if slices.is_empty() {
                session.wrote(0);
                continue;
            }
            let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
            match self.socket.write(&slices).map_err(cut)? {
                Moved::Bytes(written) => {
                    if self.blocked.load(Ordering::Acquire) {
                        // A peer that makes room is alive, though its answer may be queued behind megabytes.
                        self.heard(session);
                    }
                    session.wrote(written);
                    moved = true;
                    if written == wanted {
                        continue;
                    }
                }
                Moved::Nothing => {}
            }
            self.blocked.store(true, Ordering::Release);
            return Ok(moved);
        }
        self.blocked.store(!self.socket.flush().map_err(cut)?, Ordering::Release);
        Ok(moved)
    }

    /// Reads one of the connection's streams until nothing is left, or for a while.
    pub(super) fn read(&self, session: &mut Session, socket: &Socket, stream: usize) -> Result<bool> {
        SCRATCH.with_borrow_mut(|scratch| {
            for reads in 0..READS_MAX_HELD {
                if reads >= READS_MAX && !socket.holds() {
                    break;
                }
                match read_once(session, socket, stream, scratch)? {
                    (Moved::Nothing, _) => return Ok(reads > 0),
                    (Moved::Bytes(0), _) if session.goes_on_without(stream) => return Ok(true),
                    (Moved::Bytes(0), _) => return Err(ended(session)),
                    (Moved::Bytes(len), asked) => {
                        self.heard(session);
                        if len < asked || !session.reads(stream) {
                            return Ok(true);
                        }
                    }
                }
            }
            Ok(true)
        })
    }

    pub(super) fn heard(&self, session: &mut Session) {
        session.heard(self.environment.now());
    }

    /// Ends the link, once.
    fn finish(&self, baton: &mut Option<Session>, why: &Error) {
        let Some(mut session) = baton.take() else { return };
        for announced in session.take_announced() {
            self.inbox.announce(announced);
        }
        self.inbox.end(why.clone());
        self.socket.shutdown_write();
        if let Some(strands) = &self.strands {
            strands.shutdown_write();
        }
        session.give_up(why);
        self.blocked.store(false, Ordering::Release);
    }
}

impl Link for TcpLink {
    fn caps(&self) -> Caps {
        CAPS
    }

    fn submit(&self, op: Op) {
        // Words can wait for company; `progress` takes them along.
        let can_wait = matches!(op, Op::Settle { prompt: false, .. } | Op::Expect { .. });
        if can_wait {
            self.submitted().push_back(op);
        } else {
            self.with_baton(Some(op), Self::write_what_is_due);
        }
    }

    fn progress(&self) -> Progress {
        self.with_baton(None, Self::poll)
    }

    fn source(&self) -> Option<Source<'_>> {
        if let Some(strands) = &self.strands {
            return Some(strands.source());
        }
        // What the socket holds is not seen by a descriptor that waits for more of it; one that waits for room wakes at once.
        let writable = self.blocked.load(Ordering::Acquire) || self.socket.holds();
        Some(Source { descriptor: self.socket.descriptor(), writable })
    }

    fn tick(&self) {
        self.with_baton(None, |link, session| {
            link.write(session, Urgency::Word)?;
            if !session.is_silent(link.environment.now()) {
                return Ok(Progress::Idle);
            }
            // What has come is a sign of life, even if nobody read it yet.
            let progress = link.poll(session)?;
            session.tick(link.environment.now())?;
            link.write(session, Urgency::Word)?;
            Ok(progress)
        });
    }

    fn end(&self, why: Error) {
        let mut baton = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        self.finish(&mut baton, &why);
        drop(baton);
        self.fail_submitted();
    }

    fn stats(&self) -> LinkStats {
        LinkStats {
            bytes_copied: self.copied.load(Ordering::Relaxed),
            system_calls: self.socket.calls() + self.strands.as_ref().map_or(0, |strands| strands.calls()),
            credit_stalls: self.stalls.load(Ordering::Relaxed),
        }
    }
}

fn perform(op: Op, session: &mut Session) {
    match op {
        Op::Send { message, receipt, prompt, more } => session.send(message, receipt, prompt, more),
        Op::Expect { in_pool } => session.expect(in_pool),
        Op::Accept { id, landings } => session.accept(id, landings),
        Op::Settle { id, delivery, prompt } => session.settle(id, delivery, prompt),
        Op::Get { region, offset, into } => session.get(region, offset, into),
        Op::Put { region, offset, from } => session.put(region, offset, from),
        Op::Close(done) => session.close(done),
    }
}

/// One read, to where the session wants it, and how many bytes it asked for.
fn read_once(
    session: &mut Session,
    socket: &Socket,
    stream: usize,
    scratch: &mut [u8],
) -> Result<(Moved, usize)> {
    // The next head is read together with the bulk before it.
    let next_head_len = session.head_len();
    let Some((target, remaining, mut sum)) = session.target(stream, BUFFERS_MAX) else {
        let len = session.bytes_wanted(stream).min(scratch.len());
        let moved = socket.read(&mut scratch[..len]).map_err(cut)?;
        if let Moved::Bytes(len) = moved {
            session.received(stream, &scratch[..len])?;
        }
        return Ok((moved, len));
    };
    let (moved, room, then, revoked) = match target {
        Target::Buffers(mut buffers) => {
            let room = limit(&mut buffers, remaining);
            let then = if room == remaining { next_head_len } else { 0 };
            let moved = socket.read_into(&mut buffers, &mut scratch[..then]);
            if let Ok(Moved::Bytes(len)) = moved {
                sum.add_filled(&buffers, len.min(room));
            }
            (moved, room, then, false)
        }
        Target::Region(lease, at) => {
            let read = |bytes: &mut [u8]| {
                let bytes = &mut bytes[..remaining];
                let moved = socket.read_region(bytes, &mut scratch[..next_head_len]);
                if let Ok(Moved::Bytes(len)) = moved {
                    sum.add(&bytes[..len.min(remaining)]);
                }
                moved
            };
            match lease.with(at, read) {
                Some(moved) => (moved, remaining, next_head_len, false),
                None => {
                    let room = remaining.min(scratch.len());
                    let moved = socket.read(&mut scratch[..room]);
                    if let Ok(Moved::Bytes(len)) = moved {
                        sum.add(&scratch[..len]);
                    }
                    (moved, room, 0, true)
                }
            }
        }
    };
    let moved = moved.map_err(cut)?;
    if let Moved::Bytes(len) = moved {
        session.landed(stream, len.min(room), revoked)?;
        if len > room {
            session.received(stream, &scratch[..len - room])?;
        }
    }
    Ok((moved, room + then))
}

/// Shortens the room of `buffers` to `remaining` bytes in all, and tells how much it is.
fn limit(buffers: &mut Vec<(&mut crate::memory::BufferMut, usize)>, remaining: usize) -> usize {
    let mut total = 0;
    for (_, room) in buffers.iter_mut() {
        *room = (*room).min(remaining - total);
        total += *room;
    }
    buffers.retain(|(_, room)| *room > 0);
    total
}

pub(super) fn ended(session: &Session) -> Error {
    if session.may_end() {
        return Error::new(ErrorKind::Closed, "the connection was closed in good order");
    }
    Error::new(ErrorKind::PeerLost, "the peer's end of the connection ended without a good-bye")
}

pub(super) fn cut(error: std::io::Error) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(ours) => return ours,
        Err(error) => error,
    };
    Error::new(ErrorKind::PeerLost, "the connection was cut").caused_by(error)
}
