//! A connection's further sockets. They carry chunks of data, and one epoll waits for all sockets of the
//! connection.

use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{Timespec, epoll};

use super::link::TcpByteStream;
use super::socket::Socket;
use crate::backend::WaitSource;
use crate::backend::streamed::{IoOutcome, PIECES_MAX, StreamIo, cut, end_of_stream, read_from};
use crate::error::{Error, Result};
use crate::handshake::STREAMS_MAX;
use crate::memory::RawBytes;
use crate::wire::session::{Session, Urgency};

/// The lanes of one link. Streams are numbered from 0, the main one; a set of streams is a bit mask.
#[derive(Debug)]
pub(super) struct TcpLanes {
    sockets: Vec<Socket>,
    epoll: OwnedFd,
    /// Sockets that were full, until epoll reports room. This and the following fields change only under the
    /// poll lock.
    full: AtomicU32,
    /// Streams that epoll watches for data, and for room.
    awaits_bytes: AtomicU32,
    awaits_room: AtomicU32,
    /// Reads of the main stream since the lanes were last polled.
    unasked: AtomicU32,
}

/// The number of successful reads of the main stream after which idle lanes are polled too.
const UNASKED_MAX: u32 = 4;

impl TcpLanes {
    pub(super) fn new(main: &Socket, sockets: Vec<Socket>) -> Result<Self> {
        let failed = |errno: rustix::io::Errno| Error::io(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for (stream, socket) in std::iter::once(main).chain(&sockets).enumerate() {
            let data = epoll::EventData::new_u64(stream as u64);
            let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
            epoll::add(&epoll, socket.descriptor(), data, both).map_err(failed)?;
        }
        let all = (2 << sockets.len()) - 1;
        Ok(Self {
            sockets,
            epoll,
            full: AtomicU32::new(0),
            awaits_bytes: AtomicU32::new(all),
            awaits_room: AtomicU32::new(all),
            unasked: AtomicU32::new(0),
        })
    }

    /// Returns the epoll descriptor, which is readable when a socket is ready for what is awaited of it.
    pub(super) fn source(&self) -> WaitSource<'_> {
        let writable = self.awaits_room.load(Ordering::Acquire) != 0;
        WaitSource { descriptor: self.epoll.as_fd(), writable, doorbell: false }
    }

    pub(super) fn calls(&self) -> u64 {
        self.sockets.iter().map(Socket::calls).sum()
    }

    pub(super) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Reads available data from every stream that the session can read now.
    pub(super) fn read(&self, link: &TcpByteStream, session: &mut Session) -> Result<bool> {
        // The main stream comes first: it announces what the lanes carry.
        let moved = session.reads(0) && read_from(&mut &link.socket, session, 0)?;
        if moved {
            session.unpark()?;
            self.update_epoll(link, session);
            let unasked = self.unasked.fetch_add(1, Ordering::Relaxed);
            if unasked < UNASKED_MAX && self.full.load(Ordering::Relaxed) == 0 {
                return Ok(true);
            }
        }
        Ok(self.read_lanes(link, session)? || moved)
    }

    /// Asks epoll which streams are ready, and reads the lanes.
    fn read_lanes(&self, link: &TcpByteStream, session: &mut Session) -> Result<bool> {
        let mut moved = false;
        let ReadyStreams { bytes, room, lost } = self.ready();
        self.full.fetch_and(!room, Ordering::Relaxed);
        for stream in self.streams() {
            let (socket, bit) = (self.socket(link, stream), 1 << stream);
            if !session.reads(stream) {
                // A stream that is not read now is not watched either, but its loss is still reported.
                if lost & bit != 0 {
                    return Err(end_of_stream(session));
                }
            } else if stream > 0 && (bytes & bit != 0 || socket.has_buffered()) {
                moved |= read_from(&mut { socket }, session, stream)?;
            }
        }
        // Idle lanes may wait while the main stream has data.
        self.unasked.store(if moved { UNASKED_MAX } else { 0 }, Ordering::Relaxed);
        if moved || room != 0 {
            self.update_epoll(link, session);
        }
        Ok(moved)
    }

    /// Writes to every stream in turn until nothing as urgent as `least` is left or all are full.
    pub(super) fn write(&self, link: &TcpByteStream, session: &mut Session, least: Urgency) -> Result<bool> {
        let mut moved = false;
        let full = self.full.load(Ordering::Relaxed);
        loop {
            let mut wrote = false;
            session.choose_stream(self.full.load(Ordering::Relaxed));
            for stream in self.streams() {
                let is_due = match stream {
                    0 => session.is_due(least),
                    _ => session.lane_is_due(stream),
                };
                if is_due && !self.is_full(stream) {
                    wrote |= self.write_once(link, session, stream)?;
                }
            }
            moved |= wrote;
            if !wrote {
                break;
            }
        }
        for stream in self.streams() {
            if !self.is_full(stream) && !self.socket(link, stream).flush().map_err(cut)? {
                self.full.fetch_or(1 << stream, Ordering::Relaxed);
            }
        }
        let full_now = self.full.load(Ordering::Relaxed);
        link.blocked.store(full_now != 0, Ordering::Release);
        if full_now != full {
            self.update_epoll(link, session);
        }
        Ok(moved)
    }

    /// Writes once to a stream.
    fn write_once(&self, link: &TcpByteStream, session: &mut Session, stream: usize) -> Result<bool> {
        let mut pieces: Vec<RawBytes<'_>> = Vec::with_capacity(16);
        match stream {
            0 => session.gather(&mut pieces, PIECES_MAX),
            _ => session.lane_gather(stream, &mut pieces, PIECES_MAX),
        }
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = match pieces.len() {
            0 => Some(0),
            _ => match { self.socket(link, stream) }.write(&pieces).map_err(cut)? {
                IoOutcome::Bytes(written) => Some(written),
                IoOutcome::WouldBlock => None,
            },
        };
        let Some(written) = written else {
            self.full.fetch_or(1 << stream, Ordering::Relaxed);
            return Ok(false);
        };
        match stream {
            0 => session.wrote(written),
            _ => session.lane_wrote(stream, written),
        }
        if written < wanted {
            self.full.fetch_or(1 << stream, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn socket<'a>(&'a self, link: &'a TcpByteStream, stream: usize) -> &'a Socket {
        match stream {
            0 => &link.socket,
            _ => &self.sockets[stream - 1],
        }
    }

    /// Returns all streams of the connection, the main one first.
    fn streams(&self) -> RangeInclusive<usize> {
        0..=self.sockets.len()
    }

    fn is_full(&self, stream: usize) -> bool {
        self.full.load(Ordering::Relaxed) & 1 << stream != 0
    }

    /// Returns which streams are ready, and for what.
    fn ready(&self) -> ReadyStreams {
        let (mut ready, mut events) = (ReadyStreams::default(), [MaybeUninit::uninit(); STREAMS_MAX]);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An interrupted call reports nothing, and the next poll asks again.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&now)) else { return ready };
        for event in events {
            let (stream, flags) = (1 << event.data.u64(), event.flags);
            for (set, of) in [
                (&mut ready.bytes, !epoll::EventFlags::OUT),
                (&mut ready.room, epoll::EventFlags::OUT),
                (&mut ready.lost, epoll::EventFlags::ERR),
            ] {
                *set |= if flags.intersects(of) { stream } else { 0 };
            }
        }
        ready
    }

    /// Updates the epoll: data where the session reads, room where output waits for it. Room is also awaited
    /// for streams with decrypted data in a buffer, which epoll cannot see: a socket mostly has room, so
    /// epoll reports it at once.
    fn update_epoll(&self, link: &TcpByteStream, session: &Session) {
        let set = |wanted: &dyn Fn(usize) -> bool| {
            self.streams().filter(|stream| wanted(*stream)).fold(0, |set, stream| set | 1 << stream)
        };
        let bytes = set(&|stream| session.reads(stream));
        let room = self.full.load(Ordering::Relaxed)
            | bytes & set(&|stream| self.socket(link, stream).has_buffered());
        let changed = (self.awaits_bytes.swap(bytes, Ordering::AcqRel) ^ bytes)
            | (self.awaits_room.swap(room, Ordering::AcqRel) ^ room);
        for stream in self.streams().filter(|stream| changed & 1 << stream != 0) {
            let mut flags = epoll::EventFlags::empty();
            flags.set(epoll::EventFlags::IN, bytes & 1 << stream != 0);
            flags.set(epoll::EventFlags::OUT, room & 1 << stream != 0);
            let data = epoll::EventData::new_u64(stream as u64);
            // Every socket is registered from the start, and stays open as long as the link.
            let _ = epoll::modify(&self.epoll, self.socket(link, stream).descriptor(), data, flags);
        }
    }
}

/// Sets of streams.
#[derive(Debug, Default)]
struct ReadyStreams {
    bytes: u32,
    room: u32,
    /// Streams with an error.
    lost: u32,
}
