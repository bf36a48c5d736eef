//! A connection's further sockets: they carry chunks of bulk, and one epoll stands for all of its sockets.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{Timespec, epoll};

use super::link::{TcpLink, cut, ended};
use super::socket::{Moved, SLICES_MAX, Socket};
use crate::door::STREAMS_MAX;
use crate::error::{Error, Result};
use crate::wire::session::{Session, Urgency};

/// The strands of one link. Streams are counted from 0, the main one; a set of them is a mask.
#[derive(Debug)]
pub(super) struct Strands {
    sockets: Vec<Socket>,
    epoll: OwnedFd,
    /// The sockets that were full, until the system says otherwise. This and what follows changes under the baton alone.
    full: AtomicU32,
    /// What the epoll waits for: bytes, and room.
    awaits_bytes: AtomicU32,
    awaits_room: AtomicU32,
}

impl Strands {
    pub(super) fn new(main: &Socket, strands: Vec<TcpStream>) -> Result<Self> {
        let failed = |errno: rustix::io::Errno| Error::io(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let sockets: Vec<_> = strands.into_iter().map(Socket::new).collect();
        for (stream, socket) in std::iter::once(main).chain(&sockets).enumerate() {
            let data = epoll::EventData::new_u64(stream as u64);
            epoll::add(&epoll, socket.descriptor(), data, epoll::EventFlags::IN).map_err(failed)?;
        }
        let all = (2 << sockets.len()) - 1;
        Ok(Self {
            sockets,
            epoll,
            full: AtomicU32::new(0),
            awaits_bytes: AtomicU32::new(all),
            awaits_room: AtomicU32::new(0),
        })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(super) fn calls(&self) -> u64 {
        self.sockets.iter().map(Socket::calls).sum()
    }

    /// Nothing more will be written.
    pub(super) fn shutdown_write(&self) {
        self.sockets.iter().for_each(Socket::shutdown_write);
    }

    /// Reads what has come, on every stream that the session can read now.
    pub(super) fn read(&self, link: &TcpLink, session: &mut Session) -> Result<bool> {
        let mut moved = false;
        let mut events = [MaybeUninit::uninit(); STREAMS_MAX];
        for event in self.ready(&mut events) {
            let (stream, flags) = (event.data.u64() as usize, event.flags);
            if flags.contains(epoll::EventFlags::OUT) {
                self.full.fetch_and(!(1 << stream), Ordering::Relaxed);
            }
            if flags.intersects(!epoll::EventFlags::OUT) {
                if session.reads(stream) {
                    moved |= link.read(session, self.socket(link, stream), stream)?;
                } else if flags.contains(epoll::EventFlags::ERR) {
                    // What is not read for now is not waited for either; its loss is told all the same.
                    return Err(ended(session));
                }
            }
            if stream == 0 {
                session.unpark()?;
            }
        }
        self.await_what_is_wanted(link, session);
        Ok(moved)
    }

    /// Writes to every stream in turn until nothing as urgent as `least` is left or all are full.
    pub(super) fn write(&self, link: &TcpLink, session: &mut Session, least: Urgency) -> Result<bool> {
        let mut moved = false;
        loop {
            let mut wrote = false;
            let mut is_blocked = false;
            for stream in 0..=self.sockets.len() {
                let is_due = match stream {
                    0 => session.is_due(least),
                    _ => session.strand_is_due(stream),
                };
                if !is_due {
                    continue;
                }
                if self.full.load(Ordering::Relaxed) & 1 << stream == 0 {
                    wrote |= self.write_once(link, session, stream)?;
                }
                is_blocked |= self.full.load(Ordering::Relaxed) & 1 << stream != 0;
            }
            moved |= wrote;
            if !wrote {
                link.blocked.store(is_blocked, Ordering::Release);
                self.await_what_is_wanted(link, session);
                return Ok(moved);
            }
        }
    }

    /// Offers a stream what is to be written next.
    fn write_once(&self, link: &TcpLink, session: &mut Session, stream: usize) -> Result<bool> {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(16);
        match stream {
            0 => session.gather(&mut slices, SLICES_MAX),
            _ => session.strand_gather(stream, &mut slices, SLICES_MAX),
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = match slices.len() {
            0 => Some(0),
            _ => match self.socket(link, stream).write(&slices).map_err(cut)? {
                Moved::Bytes(written) => Some(written),
                Moved::Nothing => None,
            },
        };
        let Some(written) = written else {
            self.full.fetch_or(1 << stream, Ordering::Relaxed);
            return Ok(false);
        };
        if link.blocked.load(Ordering::Acquire) {
            // A peer that makes room is alive, though its answer may be queued behind megabytes.
            link.heard(session);
        }
        match stream {
            0 => session.wrote(written),
            _ => session.strand_wrote(stream, written),
        }
        if written < wanted {
            self.full.fetch_or(1 << stream, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn socket<'a>(&'a self, link: &'a TcpLink, stream: usize) -> &'a Socket {
        match stream {
            0 => &link.socket,
            _ => &self.sockets[stream - 1],
        }
    }

    /// Which streams are ready, and for what.
    fn ready<'a>(&self, events: &'a mut [MaybeUninit<epoll::Event>]) -> &'a mut [epoll::Event] {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An interrupted call found nothing, and the next poll asks again.
        let Ok((ready, _)) = epoll::wait(&self.epoll, events, Some(&now)) else { return &mut [] };
        // The main stream comes first: it announces what the others carry.
        ready.sort_unstable_by_key(|event| event.data.u64());
        ready
    }

    /// Tells the epoll what would be of use: bytes where the session reads, room where something waits for it.
    fn await_what_is_wanted(&self, link: &TcpLink, session: &Session) {
        let streams = 0..=self.sockets.len();
        let reads =
            streams.clone().filter(|stream| session.reads(*stream)).fold(0, |set, stream| set | 1 << stream);
        let full = self.full.load(Ordering::Relaxed);
        let (bytes, room) = (
            self.awaits_bytes.swap(reads, Ordering::Relaxed),
            self.awaits_room.swap(full, Ordering::Relaxed),
        );
        let changed = (bytes ^ reads) | (room ^ full);
        for stream in streams.filter(|stream| changed & 1 << stream != 0) {
            let mut flags = epoll::EventFlags::empty();
            flags.set(epoll::EventFlags::IN, reads & 1 << stream != 0);
            flags.set(epoll::EventFlags::OUT, full & 1 << stream != 0);
            let data = epoll::EventData::new_u64(stream as u64);
            // Every socket is in it from the beginning, and open as long as the link.
            let _ = epoll::modify(&self.epoll, self.socket(link, stream).descriptor(), data, flags);
        }
    }
}
