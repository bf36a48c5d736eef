//! The byte stream of `tcp`: a socket, and its lanes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::CAPS;
use super::lanes::TcpLanes;
use super::socket::Socket;
use crate::backend::streamed::{ByteStream, StreamIo, Streamed, cut, read_from, write_to};
use crate::backend::{LinkContext, Opened, WaitSource};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Session, Urgency};

/// The sockets of one link.
#[derive(Debug)]
pub(super) struct TcpByteStream {
    pub(super) socket: Socket,
    /// The further sockets of the connection.
    lanes: Option<Box<TcpLanes>>,
    /// Output waits for a socket.
    pub(super) blocked: AtomicBool,
}

/// Opens a link over `sockets`: the main one first, then the lanes.
pub(super) fn open(mut sockets: Vec<Socket>, context: &LinkContext) -> Result<Opened> {
    let socket = sockets.remove(0);
    let session = Streamed::<TcpByteStream>::session(context).striped(sockets.len());
    let lanes = match sockets.len() {
        0 => None,
        _ => Some(Box::new(TcpLanes::new(&socket, sockets)?)),
    };
    let stream = TcpByteStream { socket, lanes, blocked: AtomicBool::new(false) };
    Ok(Opened::new(Streamed::open(stream, (), session, CAPS, context)))
}

impl ByteStream for TcpByteStream {
    type State = ();

    fn write(&self, _: &mut (), session: &mut Session, least: Urgency) -> Result<bool> {
        if let Some(lanes) = &self.lanes {
            return lanes.write(self, session, least);
        }
        let (moved, mut had_room) = write_to(&mut &self.socket, session, least)?;
        if had_room {
            had_room = self.socket.flush().map_err(cut)?;
        }
        self.blocked.store(!had_room, Ordering::Release);
        Ok(moved)
    }

    fn read(&self, _: &mut (), session: &mut Session) -> Result<bool> {
        match &self.lanes {
            None => read_from(&mut &self.socket, session, 0),
            Some(lanes) => lanes.read(self, session),
        }
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    fn shut_down(&self, why: &Error) {
        // A FIN queues behind data that a lost peer does not acknowledge, so a peer that still receives would
        // not see it.
        let end = if why.kind() == ErrorKind::PeerLost { Socket::reset } else { Socket::shutdown_write };
        let lanes = self.lanes.iter().flat_map(|lanes| lanes.sockets());
        std::iter::once(&self.socket).chain(lanes).for_each(end);
    }

    fn tear_down(&self, (): (), mut session: Session, why: &Error) {
        self.blocked.store(false, Ordering::Release);
        session.give_up(why);
    }

    fn source(&self) -> WaitSource<'_> {
        if let Some(lanes) = &self.lanes {
            return lanes.source();
        }
        // The descriptor does not become readable for buffered data. Waiting for room wakes at once instead.
        let writable = self.is_blocked() || (&self.socket).has_buffered();
        WaitSource { descriptor: self.socket.descriptor(), writable, doorbell: false }
    }

    fn calls(&self) -> u64 {
        self.socket.calls() + self.lanes.as_ref().map_or(0, |lanes| lanes.calls())
    }
}
