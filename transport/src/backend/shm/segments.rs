//! Segments as the ends of a link show them to each other: those of their own, and those that others showed them before.
//!
//! The invariant (M11): whoever has a segment has the writing ends of the holders' pipes of all links that it came over, and keeps
//! them while it can read. So an end on that way which died is outlived by what it lent on.

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

/// Segments that one end has received_fds and not withdrawn.
const SEGMENTS_MAX: usize = 256;
/// Pipes that go with a segment: so many ends may have sent it on.
const PIPES_MAX: usize = 3;
/// What one message shows.
const DESCRIPTORS_MAX: usize = 1 + PIPES_MAX;
/// Messages that are heard at once: all that are received_fds, and as many withdrawn, twice.
const MESSAGES_MAX: usize = 4 * SEGMENTS_MAX;
/// A segment's number, which is all that is said of it.
const NUMBER_LEN: usize = size_of::<u32>();

/// A segment that a peer showed.
#[derive(Debug)]
pub(super) struct ImportedSegment {
    segment: Arc<PeerSegment>,
    memfd: OwnedFd,
    /// The holders' pipes of the link that it came over, and of those before.
    pipes: Vec<Arc<OwnedFd>>,
    process: Process,
}

impl ImportedSegment {
    pub(super) fn segment(&self) -> &Arc<PeerSegment> {
        &self.segment
    }
}

/// What this end has received_fds to the peer.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// By address, which is not used again while a handle is left, and be it a weak one.
    known: HashMap<usize, Export>,
    last: u32,
}

#[derive(Debug)]
struct Export {
    segment: Weak<dyn Any + Send + Sync>,
    number: SegmentNumber,
}

/// The number of a segment. It stays what it is while a loan has a handle of it.
pub(super) type SegmentNumber = Arc<u32>;

impl Exports {
    /// A segment of our own. `None` where it cannot be received_fds now.
    pub(super) fn export_own(&mut self, socket: &OwnedFd, segment: &Arc<Segment>) -> Option<SegmentNumber> {
        self.export(socket, segment, || vec![segment.descriptor()])
    }

    /// A segment that somebody showed us, where that is what `origin` tells. `None` where it cannot be received_fds, or was sent on too
    /// often; nor does a forked child show what its parent may give back.
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
        let number = self.last.checked_add(1).filter(|_| self.known.len() < SEGMENTS_MAX)?;
        if !send_segment(socket, number, &descriptors()) {
            return None;
        }
        self.last = number;
        let segment: Weak<dyn Any + Send + Sync> = Arc::<T>::downgrade(segment);
        let number = SegmentNumber::new(number);
        self.known.insert(address, Export { segment, number: number.clone() });
        Some(number)
    }

    /// Withdraws what is gone here, and nothing is lent of any more.
    pub(super) fn retract(&mut self, socket: &OwnedFd) {
        self.known.retain(|_, Export { segment, number }| {
            let is_over = segment.strong_count() == 0 && Arc::strong_count(number) == 1;
            !(is_over && send_segment(socket, **number, &[]))
        });
    }
}

/// What the peer has received_fds to this end.
#[derive(Debug)]
pub(super) struct Imports {
    known: HashMap<u32, Arc<ImportedSegment>>,
    /// The writing end of this link's holders' pipe.
    holder: Arc<OwnedFd>,
}

impl Imports {
    pub(super) fn new(holder: OwnedFd) -> Self {
        Self { known: HashMap::new(), holder: Arc::new(holder) }
    }

    /// The segment of that number, which the peer showed before it spoke of it.
    pub(super) fn find(&mut self, socket: &OwnedFd, number: u32) -> Result<&Arc<ImportedSegment>> {
        for _ in 0..MESSAGES_MAX {
            if self.known.contains_key(&number) || !self.receive_one(socket)? {
                break;
            }
        }
        self.known.get(&number).ok_or_else(|| corrupt("a loan in a segment that was not shown"))
    }

    /// Takes in what the peer has said meanwhile.
    pub(super) fn receive_pending(&mut self, socket: &OwnedFd) -> Result<()> {
        for _ in 0..MESSAGES_MAX {
            if !self.receive_one(socket)? {
                break;
            }
        }
        Ok(())
    }

    /// The next segment that the peer showed or withdrew, if there is one.
    fn receive_one(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut number = [0; NUMBER_LEN];
        // One more than there may be, so that it shows.
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut room, flags) =
            ([IoSliceMut::new(&mut number)], RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
        // An end of the stream is the peer's: the link hears of that by its doorbell.
        let received = rustix::net::recvmsg(socket, &mut room, &mut control, flags);
        let Some(received) = received.ok().filter(|received| received.bytes > 0) else { return Ok(false) };
        let mut received_fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received_fds.extend(descriptors);
            }
        }
        if received.bytes < NUMBER_LEN || received_fds.len() > DESCRIPTORS_MAX {
            return Err(corrupt("the peer showed something that is no segment"));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(ErrorKind::Io, NO_DESCRIPTOR));
        }
        let number = u32::from_le_bytes(number);
        let mut received_fds = received_fds.into_iter();
        match received_fds.next() {
            Some(memfd) => self.import(number, memfd, received_fds)?,
            None if self.known.remove(&number).is_some() => {}
            None => return Err(corrupt("the peer withdrew a segment that was not shown")),
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
            return Err(corrupt("the peer shows too many segments"));
        }
        if self.known.contains_key(&number) {
            return Err(corrupt("the peer shows a segment twice"));
        }
        let mut pipes = vec![self.holder.clone()];
        pipes.extend(forwarded.map(Arc::new));
        if !pipes.iter().all(|pipe| pipe::is_writing_end(pipe)) {
            return Err(corrupt("the peer shows a segment with something that is no pipe to write to"));
        }
        let segment = PeerSegment::map(&memfd, isize::MAX as usize / 2)?;
        segment.populate()?;
        let segment =
            ImportedSegment { segment: Arc::new(segment), memfd, pipes, process: Process::current() };
        self.known.insert(number, Arc::new(segment));
        Ok(())
    }
}

/// Shows these, or withdraws the segment if there are none. False where there is no room for that now.
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
