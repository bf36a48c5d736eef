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

/// Segments that one end has shown and not withdrawn.
const SEGMENTS_MAX: usize = 256;
/// Pipes that go with a segment: so many ends may have sent it on.
const PIPES_MAX: usize = 3;
/// What one message shows.
const DESCRIPTORS_MAX: usize = 1 + PIPES_MAX;
/// Messages that are heard at once: all that are shown, and as many withdrawn, twice.
const HEARD_AT_ONCE: usize = 4 * SEGMENTS_MAX;
/// A segment's number, which is all that is said of it.
const NUMBER_LEN: usize = size_of::<u32>();

/// A segment that a peer showed.
#[derive(Debug)]
pub(super) struct ExportedSegment {
    segment: Arc<PeerSegment>,
    memfd: OwnedFd,
    /// The holders' pipes of the link that it came over, and of those before.
    pipes: Vec<Arc<OwnedFd>>,
    process: Process,
}

impl ExportedSegment {
    pub(super) fn segment(&self) -> &Arc<PeerSegment> {
        &self.segment
    }
}

/// What this end has shown to the peer.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// By address, which is not used again while a handle is left, and be it a weak one.
    known: HashMap<usize, Known>,
    last: u32,
}

#[derive(Debug)]
struct Known {
    segment: Weak<dyn Any + Send + Sync>,
    number: Number,
}

/// The number of a segment. It stays what it is while a loan has a handle of it.
pub(super) type Number = Arc<u32>;

impl Exports {
    /// A segment of our own. `None` where it cannot be shown now.
    pub(super) fn own(&mut self, socket: &OwnedFd, segment: &Arc<Segment>) -> Option<Number> {
        self.show(socket, segment, || vec![segment.descriptor()])
    }

    /// A segment that somebody showed us, where that is what `origin` tells. `None` where it cannot be shown, or was sent on too
    /// often; nor does a forked child show what its parent may give back.
    pub(super) fn others(&mut self, socket: &OwnedFd, origin: &OpaqueHandle) -> Option<Number> {
        let exporting = origin.clone().downcast::<ExportedSegment>().ok()?;
        let ExportedSegment { memfd, pipes, process, .. } = &*exporting;
        if pipes.len() > PIPES_MAX || !process.is_this() {
            return None;
        }
        self.show(socket, &exporting, || {
            [memfd.as_fd()].into_iter().chain(pipes.iter().map(|pipe| pipe.as_fd())).collect()
        })
    }

    fn show<'a, T: Any + Send + Sync>(
        &mut self,
        socket: &OwnedFd,
        segment: &Arc<T>,
        descriptors: impl FnOnce() -> Vec<BorrowedFd<'a>>,
    ) -> Option<Number> {
        let address = Arc::as_ptr(segment).addr();
        if let Some(known) = self.known.get(&address) {
            return Some(known.number.clone());
        }
        self.retract(socket);
        let number = self.last.checked_add(1).filter(|_| self.known.len() < SEGMENTS_MAX)?;
        if !say(socket, number, &descriptors()) {
            return None;
        }
        self.last = number;
        let segment: Weak<dyn Any + Send + Sync> = Arc::<T>::downgrade(segment);
        let number = Number::new(number);
        self.known.insert(address, Known { segment, number: number.clone() });
        Some(number)
    }

    /// Withdraws what is gone here, and nothing is lent of any more.
    pub(super) fn retract(&mut self, socket: &OwnedFd) {
        self.known.retain(|_, Known { segment, number }| {
            let is_over = segment.strong_count() == 0 && Arc::strong_count(number) == 1;
            !(is_over && say(socket, **number, &[]))
        });
    }
}

/// What the peer has shown to this end.
#[derive(Debug)]
pub(super) struct Imports {
    known: HashMap<u32, Arc<ExportedSegment>>,
    /// The writing end of this link's holders' pipe.
    holder: Arc<OwnedFd>,
}

impl Imports {
    pub(super) fn new(holder: OwnedFd) -> Self {
        Self { known: HashMap::new(), holder: Arc::new(holder) }
    }

    /// The segment of that number, which the peer showed before it spoke of it.
    pub(super) fn find(&mut self, socket: &OwnedFd, number: u32) -> Result<&Arc<ExportedSegment>> {
        for _ in 0..HEARD_AT_ONCE {
            if self.known.contains_key(&number) || !self.hear(socket)? {
                break;
            }
        }
        self.known.get(&number).ok_or_else(|| corrupt("a loan in a segment that was not shown"))
    }

    /// Takes in what the peer has said meanwhile.
    pub(super) fn listen(&mut self, socket: &OwnedFd) -> Result<()> {
        for _ in 0..HEARD_AT_ONCE {
            if !self.hear(socket)? {
                break;
            }
        }
        Ok(())
    }

    /// The next segment that the peer showed or withdrew, if there is one.
    fn hear(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut number = [0; NUMBER_LEN];
        // One more than there may be, so that it shows.
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut room, flags) =
            ([IoSliceMut::new(&mut number)], RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
        // An end of the stream is the peer's: the link hears of that by its doorbell.
        let received = rustix::net::recvmsg(socket, &mut room, &mut control, flags);
        let Some(received) = received.ok().filter(|received| received.bytes > 0) else { return Ok(false) };
        let mut shown: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                shown.extend(descriptors);
            }
        }
        if received.bytes < NUMBER_LEN || shown.len() > DESCRIPTORS_MAX {
            return Err(corrupt("the peer showed something that is no segment"));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(ErrorKind::Io, NO_DESCRIPTOR));
        }
        let number = u32::from_le_bytes(number);
        let mut shown = shown.into_iter();
        match shown.next() {
            Some(memfd) => self.take_in(number, memfd, shown)?,
            None if self.known.remove(&number).is_some() => {}
            None => return Err(corrupt("the peer withdrew a segment that was not shown")),
        }
        Ok(true)
    }

    fn take_in(&mut self, number: u32, memfd: OwnedFd, before: impl Iterator<Item = OwnedFd>) -> Result<()> {
        if self.known.len() >= SEGMENTS_MAX {
            return Err(corrupt("the peer shows too many segments"));
        }
        if self.known.contains_key(&number) {
            return Err(corrupt("the peer shows a segment twice"));
        }
        let mut pipes = vec![self.holder.clone()];
        pipes.extend(before.map(Arc::new));
        if !pipes.iter().all(|pipe| pipe::is_writing_end(pipe)) {
            return Err(corrupt("the peer shows a segment with something that is no pipe to write to"));
        }
        let segment = PeerSegment::map(&memfd, isize::MAX as usize / 2)?;
        segment.populate()?;
        let exporting =
            ExportedSegment { segment: Arc::new(segment), memfd, pipes, process: Process::current() };
        self.known.insert(number, Arc::new(exporting));
        Ok(())
    }
}

/// Shows these, or withdraws the segment if there are none. False where there is no room for that now.
fn say(socket: &OwnedFd, number: u32, descriptors: &[BorrowedFd<'_>]) -> bool {
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
