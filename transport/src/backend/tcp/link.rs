//! The line: a socket, and the strands beside it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::CAPS;
use super::socket::Socket;
use super::strands::Strands;
use crate::backend::streamed::{Line, Stream, Streamed, cut, read_from, write_to};
use crate::backend::{Opened, Site, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Session, Urgency};

/// The sockets of one link.
#[derive(Debug)]
pub(super) struct TcpLine {
    pub(super) socket: Socket,
    /// The further sockets of the connection.
    strands: Option<Box<Strands>>,
    /// Output waits for a socket.
    pub(super) blocked: AtomicBool,
}

/// Opens a link. `sockets` are the main one and what else the connection has.
pub(super) fn open(mut sockets: Vec<Socket>, site: &Site) -> Result<Opened> {
    let socket = sockets.remove(0);
    let session = Streamed::<TcpLine>::session(site).striped(sockets.len());
    let strands = match sockets.len() {
        0 => None,
        _ => Some(Box::new(Strands::new(&socket, sockets)?)),
    };
    let line = TcpLine { socket, strands, blocked: AtomicBool::new(false) };
    Ok(Opened::new(Streamed::open(line, (), session, CAPS, site)))
}

impl Line for TcpLine {
    type Held = ();

    fn write(&self, _: &mut (), session: &mut Session, least: Urgency) -> Result<bool> {
        if let Some(strands) = &self.strands {
            return strands.write(self, session, least);
        }
        let (moved, mut had_room) = write_to(&mut &self.socket, session, least)?;
        if had_room {
            had_room = self.socket.flush().map_err(cut)?;
        }
        self.blocked.store(!had_room, Ordering::Release);
        Ok(moved)
    }

    fn read(&self, _: &mut (), session: &mut Session) -> Result<bool> {
        match &self.strands {
            None => read_from(&mut &self.socket, session, 0),
            Some(strands) => strands.read(self, session),
        }
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    fn hang_up(&self, why: &Error) {
        // A FIN follows data that a lost peer does not acknowledge, so a peer that still receives would not see it.
        let end = if why.kind() == ErrorKind::PeerLost { Socket::reset } else { Socket::shutdown_write };
        let strands = self.strands.iter().flat_map(|strands| strands.sockets());
        std::iter::once(&self.socket).chain(strands).for_each(end);
    }

    fn retire(&self, (): (), mut session: Session, why: &Error) {
        self.blocked.store(false, Ordering::Release);
        session.give_up(why);
    }

    fn source(&self) -> Source<'_> {
        if let Some(strands) = &self.strands {
            return strands.source();
        }
        // What the socket holds is not seen by a descriptor that waits for more of it; one that waits for room wakes at once.
        let writable = self.is_blocked() || (&self.socket).holds();
        Source { descriptor: self.socket.descriptor(), writable, bell: false }
    }

    fn calls(&self) -> u64 {
        self.socket.calls() + self.strands.as_ref().map_or(0, |strands| strands.calls())
    }
}
