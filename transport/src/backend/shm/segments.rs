//! Segments that the ends of a link export to each other: their own, and those imported from other peers.
//!
//! The invariant (M11): a process that can read a segment holds the write ends of the holders' pipes of all
//! links that the segment travelled over. So if a forwarding process dies, what it lent on stays held.

use std::any::Any;
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::pipe;
use crate::error::{Error, ErrorKind, NO_DESCRIPTOR, Result};
use crate::memory::arena::borrowed::OpaqueHandle;
use crate::memory::{PeerSegment, Segment};
use crate::platform::process::Process;
use crate::wire::lending::SEGMENT_MAX;

/// The most segments that one end has exported and not retracted.
const SEGMENTS_MAX: usize = 256;
/// The most pipes that come with a segment: one for each end that forwarded it.
const PIPES_MAX: usize = 3;
/// The descriptors of one message.
const DESCRIPTORS_MAX: usize = 1 + PIPES_MAX;
/// The most messages received at once: every segment exported and retracted, twice.
const MESSAGES_MAX: usize = 4 * SEGMENTS_MAX;
/// The length of a message, which is a segment's number.
const NUMBER_LEN: usize = size_of::<u32>();

/// A segment that a peer exported to this end.
#[derive(Debug)]
pub(super) struct ImportedSegment {
    segment: Arc<PeerSegment>,
    memfd: OwnedFd,
    /// The holders' pipes of the link that it came over, and of the links before.
    pipes: Vec<Arc<OwnedFd>>,
    process: Process,
}

impl ImportedSegment {
    pub(super) fn segment(&self) -> &Arc<PeerSegment> {
        &self.segment
    }
}

/// The segments that this end has exported to the peer.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// By address, which is not reused while any handle is left, even a weak one.
    known: HashMap<usize, Export>,
    last: u32,
}

#[derive(Debug)]
struct Export {
    segment: Weak<dyn Any + Send + Sync>,
    number: SegmentNumber,
}

/// A segment's number on a link. It stays in use while a lease holds a handle of it.
pub(super) type SegmentNumber = Arc<u32>;

impl Exports {
    /// Exports a segment of our own. `None` if that is not possible now.
    pub(super) fn export_own(&mut self, socket: &OwnedFd, segment: &Arc<Segment>) -> Option<SegmentNumber> {
        self.export(socket, segment, || vec![segment.descriptor()])
    }

    /// Exports a segment imported from another peer, if `origin` is one. `None` if it cannot be exported, or
    /// was forwarded too often. A forked child does not export its parent's imports, since the parent may
    /// return them.
    pub(super) fn export_borrowed(
        &mut self,
        socket: &OwnedFd,
        origin: &OpaqueHandle,
    ) -> Option<SegmentNumber> {
        let segment = origin.clone().downcast::<ImportedSegment>().ok()?;
        let ImportedSegment { memfd, pipes, process, .. } = &*segment;
        if pipes.len() > PIPES_MAX || !process.is_this() {
            return None;
        }
        self.export(socket, &segment, || {
            [memfd.as_fd()].into_iter().chain(pipes.iter().map(|pipe| pipe.as_fd())).collect()
        })
    }

    fn export<'a, T: Any + Send + Sync>(
        &mut self,
        socket: &OwnedFd,
        segment: &Arc<T>,
        descriptors: impl FnOnce() -> Vec<BorrowedFd<'a>>,
    ) -> Option<SegmentNumber> {
        let address = Arc::as_ptr(segment).addr();
        if let Some(known) = self.known.get(&address) {
            return Some(known.number.clone());
        }
        self.retract(socket);
        let has_room = self.known.len() < SEGMENTS_MAX && self.last < SEGMENT_MAX;
        let number = has_room.then_some(self.last + 1)?;
        if !send_segment(socket, number, &descriptors()) {
            return None;
        }
        self.last = number;
        let segment: Weak<dyn Any + Send + Sync> = Arc::<T>::downgrade(segment);
        let number = SegmentNumber::new(number);
        self.known.insert(address, Export { segment, number: number.clone() });
        Some(number)
    }

    /// Retracts segments that were dropped here and of which nothing is lent.
    pub(super) fn retract(&mut self, socket: &OwnedFd) {
        self.known.retain(|_, Export { segment, number }| {
            let is_over = segment.strong_count() == 0 && Arc::strong_count(number) == 1;
            !(is_over && send_segment(socket, **number, &[]))
        });
    }
}

/// The segments that the peer has exported to this end.
#[derive(Debug)]
pub(super) struct Imports {
    known: HashMap<u32, Arc<ImportedSegment>>,
    /// The write end of this link's holders' pipe.
    holder: Arc<OwnedFd>,
}

impl Imports {
    pub(super) fn new(holder: OwnedFd) -> Self {
        Self { known: HashMap::new(), holder: Arc::new(holder) }
    }

    /// Returns the segment of that number. The peer exports a segment before it first refers to it.
    pub(super) fn find(&mut self, socket: &OwnedFd, number: u32) -> Result<&Arc<ImportedSegment>> {
        for _ in 0..MESSAGES_MAX {
            if self.known.contains_key(&number) || !self.receive_one(socket)? {
                break;
            }
        }
        self.known.get(&number).ok_or_else(|| corrupt("a lease in a segment that was not exported"))
    }

    /// Receives the pending exports and retractions.
    pub(super) fn receive_pending(&mut self, socket: &OwnedFd) -> Result<()> {
        for _ in 0..MESSAGES_MAX {
            if !self.receive_one(socket)? {
                break;
            }
        }
        Ok(())
    }

    /// Receives the next export or retraction. Returns false if there is none.
    fn receive_one(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut number = [0; NUMBER_LEN];
        // Space for one more than allowed, so that an excess is detected.
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut room, flags) =
            ([IoSliceMut::new(&mut number)], RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
        // The end of this socket means that the peer is gone, which the link detects by the doorbell.
        let received = rustix::net::recvmsg(socket, &mut room, &mut control, flags);
        let Some(received) = received.ok().filter(|received| received.bytes > 0) else { return Ok(false) };
        let mut received_fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received_fds.extend(descriptors);
            }
        }
        if received.bytes < NUMBER_LEN || received_fds.len() > DESCRIPTORS_MAX {
            return Err(corrupt("the peer exported something that is not a segment"));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(ErrorKind::Io, NO_DESCRIPTOR));
        }
        let number = u32::from_le_bytes(number);
        let mut received_fds = received_fds.into_iter();
        match received_fds.next() {
            Some(memfd) => self.import(number, memfd, received_fds)?,
            None if self.known.remove(&number).is_some() => {}
            None => return Err(corrupt("the peer retracted a segment that was not exported")),
        }
        Ok(true)
    }

    fn import(
        &mut self,
        number: u32,
        memfd: OwnedFd,
        forwarded: impl Iterator<Item = OwnedFd>,
    ) -> Result<()> {
        if self.known.len() >= SEGMENTS_MAX {
            return Err(corrupt("the peer exported too many segments"));
        }
        if self.known.contains_key(&number) {
            return Err(corrupt("the peer exported a segment twice"));
        }
        let mut pipes = vec![self.holder.clone()];
        pipes.extend(forwarded.map(Arc::new));
        if !pipes.iter().all(|pipe| pipe::is_writing_end(pipe)) {
            return Err(corrupt(
                "the peer exported a segment with something that is not the write end of a pipe",
            ));
        }
        let segment = PeerSegment::map(&memfd, isize::MAX as usize / 2)?;
        segment.populate()?;
        let segment =
            ImportedSegment { segment: Arc::new(segment), memfd, pipes, process: Process::current() };
        self.known.insert(number, Arc::new(segment));
        Ok(())
    }
}

/// Exports a segment, or retracts it if there are no descriptors. Returns false if the socket has no room
/// now.
fn send_segment(socket: &OwnedFd, number: u32, descriptors: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "there is space for {DESCRIPTORS_MAX}");
    }
    let (number, flags) = (number.to_le_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    rustix::net::sendmsg(socket, &[IoSlice::new(&number)], &mut control, flags) == Ok(NUMBER_LEN)
}

fn corrupt(why: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}
