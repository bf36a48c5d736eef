//! One end of an in-process pair: a send moves the message into the peer's inbox, under the lock shared by
//! both ends.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard};

use super::{CAPS, remove_waiting};
use crate::backend::{
    Announced, Arrival, Caps, Delivery, Done, Inbox, Link, LinkStats, Message, Op, Operation, Regions,
};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Access, Buffer, BufferMut};
use crate::platform::mutex::Mutex;
use crate::transfer::message::EAGER_LEN_MAX;
use crate::wire::credit::WINDOW;

/// The state of both ends.
#[derive(Debug, Default)]
pub(super) struct Pair(Mutex<[EndState; 2]>);

/// One end of a pair before a connection attaches to it.
#[derive(Debug)]
pub(super) struct PairEnd {
    pair: Arc<Pair>,
    me: usize,
    /// The key under which the other end waits to be opened.
    pub(super) name: Vec<u8>,
}

#[derive(Debug, Default)]
struct EndState {
    attached: Option<(Arc<Inbox>, Arc<Regions>)>,
    /// Messages announced before this end was attached.
    early: Vec<Announced>,
    /// Sends that wait for credit, in order.
    queued: VecDeque<(Operation<Message>, Done<Delivery>, bool)>,
    /// Messages announced to the peer and not yet acknowledged.
    unacked: HashMap<u64, Done<Delivery>>,
    /// Those whose payload has not left this end; `None` while the peer copies it.
    at_sender: HashMap<u64, Option<Operation<Message>>>,
    next_id: u64,
    closing: Vec<Done<()>>,
    ended: Option<Error>,
    stats: LinkStats,
}

impl Pair {
    pub(super) fn split(name: Vec<u8>) -> (PairEnd, PairEnd) {
        let pair = Arc::new(Self::default());
        (PairEnd { pair: pair.clone(), me: 0, name: name.clone() }, PairEnd { pair, me: 1, name })
    }

    fn lock(&self) -> MutexGuard<'_, [EndState; 2]> {
        self.0.lock()
    }
}

impl PairEnd {
    pub(super) fn attach(self, inbox: Arc<Inbox>, regions: Arc<Regions>) -> Arc<dyn Link> {
        let mut ends = self.pair.lock();
        let end = &mut ends[self.me];
        for announced in end.early.drain(..) {
            inbox.announce(announced);
        }
        if let Some(why) = &end.ended {
            inbox.end(why.clone());
        }
        end.attached = Some((inbox, regions));
        drop(ends);
        Arc::new(MemLink(self))
    }
}

/// The link of one end of the pair.
#[derive(Debug)]
struct MemLink(PairEnd);

impl Link for MemLink {
    fn caps(&self) -> Caps {
        CAPS
    }

    fn submit(&self, op: Op) {
        let PairEnd { pair, me, .. } = &self.0;
        let mut ends = pair.lock();
        if let Some(why) = ends[*me].ended.clone() {
            drop(ends);
            return op.fail(why);
        }
        match op {
            Op::Send { message, receipt, ack_now, .. } => {
                ends[*me].queued.push_back((message, receipt, ack_now));
                if !announce(&mut ends, *me) {
                    ends[*me].stats.credit_stalls += 1;
                }
            }
            Op::Ack { id, delivery, .. } => {
                let peer = &mut ends[1 - *me];
                let (receipt, rejected) = (peer.unacked.remove(&id), peer.at_sender.remove(&id).flatten());
                proceed(ends, 1 - *me);
                if let Some(receipt) = receipt {
                    receipt.resolve(Ok(delivery));
                }
                if let Some(message) = rejected {
                    message.finish(drop);
                }
            }
            Op::Get { region, offset, mut into } => {
                let regions = peer_regions(ends, *me);
                let len = (into.memory().capacity() - into.memory().len()) as u64;
                let read = regions.and_then(|regions| regions.read(region.key(), offset, len));
                match read.and_then(|lease| into.memory_mut().fill_from(lease.bytes())) {
                    Ok(()) => into.finish(|memory| memory),
                    Err(error) => into.fail(error),
                }
            }
            Op::Put { region, offset, from } => {
                let regions = peer_regions(ends, *me);
                let len = from.memory().len() as u64;
                let lease = regions.and_then(|regions| regions.write(region.key(), offset, len));
                let written = lease.and_then(|lease| {
                    lease.with(0, |bytes| from.memory().copy_to(bytes)).unwrap_or_else(|| Err(revoked()))
                });
                match written {
                    Ok(()) => from.finish(drop),
                    Err(error) => from.fail(error),
                }
            }
            Op::Close(done) => {
                ends[*me].closing.push(done);
                proceed(ends, *me);
            }
            Op::Accept { id, destinations } => accept(pair, *me, ends, id, destinations),
            Op::Expect { .. } => {}
        }
    }

    fn end(&self, why: Error) {
        let lost = Error::new(ErrorKind::PeerLost, "the peer dropped the connection");
        end(self.0.pair.lock(), self.0.me, why, lost);
    }

    fn stats(&self) -> LinkStats {
        self.0.pair.lock()[self.0.me].stats
    }
}

impl Drop for MemLink {
    fn drop(&mut self) {
        remove_waiting(&self.0.name);
        self.end(Error::new(ErrorKind::Closed, "the link was dropped"));
    }
}

/// Moves queued messages of `me` into the peer's inbox while there is credit. Returns false if some must
/// wait.
fn announce(ends: &mut [EndState; 2], me: usize) -> bool {
    let [first, second] = ends;
    let (mine, theirs) = if me == 0 { (first, second) } else { (second, first) };
    while mine.unacked.len() < WINDOW.messages as usize {
        let Some((message, receipt, ack_now)) = mine.queued.pop_front() else { break };
        let id = mine.next_id;
        mine.next_id += 1;
        let mut to_peer = |header, frames, arrival| {
            let announced = Announced { id, header, frames, arrival, ack_now };
            match &theirs.attached {
                Some((inbox, _)) => inbox.announce(announced),
                None => theirs.early.push(announced),
            }
        };
        mine.unacked.insert(id, receipt);
        let table = message.memory().table().collect();
        if stays_at_sender(message.memory()) {
            to_peer(message.memory().header().clone(), table, Arrival::AtSender);
            mine.at_sender.insert(id, Some(message));
            continue;
        }
        message.finish(|message| {
            let (header, mut frames) = message.into_parts();
            let copied: usize = frames.iter_mut().map(Buffer::copy_if_foreign).sum();
            mine.stats.bytes_copied += copied as u64;
            to_peer(header, table, Arrival::Complete(frames));
        });
    }
    mine.queued.is_empty()
}

/// Returns true if the payload stays in the sender's memory until the receiver accepts it. The receiver must
/// not get memory that others write, and a longer copy must not be made under the lock.
fn stays_at_sender(message: &Message) -> bool {
    let mut foreign = message.frames().iter().filter(|frame| frame.access() == Access::Foreign);
    foreign.any(|frame| !frame.is_readable() || message.payload_len() >= EAGER_LEN_MAX)
}

/// Copies the payload of a message that stayed at the peer into `destinations`, without the lock.
fn accept(
    pair: &Pair,
    me: usize,
    mut ends: MutexGuard<'_, [EndState; 2]>,
    id: u64,
    mut destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>,
) {
    let Some(message) = ends[1 - me].at_sender.get_mut(&id).and_then(Option::take) else {
        drop(ends);
        return destinations.fail(Error::new(ErrorKind::Invalid, "no such message waits for an accept"));
    };
    drop(ends);
    let mut filled = Ok(0);
    for (destination, frame) in destinations.memory_mut().iter_mut().zip(message.memory().frames()) {
        if let (Some(destination), Ok(len)) = (destination, &filled) {
            let len = len + frame.len() as u64;
            filled = destination.fill_from(frame).map(|()| len);
        }
    }
    let mut ends = pair.lock();
    ends[1 - me].at_sender.remove(&id);
    match filled {
        Ok(len) => {
            ends[me].stats.bytes_copied += len;
            let receipt = ends[1 - me].unacked.remove(&id);
            proceed(ends, 1 - me);
            message.finish(drop);
            if let Some(receipt) = receipt {
                receipt.resolve(Ok(Delivery::Delivered));
            }
            let frozen = |buffer: Option<BufferMut>| buffer.map(BufferMut::freeze).unwrap_or_default();
            destinations.finish(|buffers| buffers.into_iter().map(frozen).collect());
        }
        Err(error) => {
            // The receiver will reject the message.
            drop(ends);
            message.finish(drop);
            destinations.fail(error);
        }
    }
}

/// Sends what credit allows. Ends the pair once everything submitted before a close has left.
fn proceed(mut ends: MutexGuard<'_, [EndState; 2]>, me: usize) {
    if !announce(&mut ends, me) || !ends[me].at_sender.is_empty() {
        return;
    }
    let closing = std::mem::take(&mut ends[me].closing);
    if !closing.is_empty() {
        let mine = Error::new(ErrorKind::Closed, "this end closed the connection");
        end(ends, me, mine, Error::new(ErrorKind::Closed, "the peer closed the connection"));
        for done in closing {
            done.resolve(Ok(()));
        }
    }
}

/// Ends both ends, each with its own reason. Operations in flight fail after the lock is released.
fn end(mut ends: MutexGuard<'_, [EndState; 2]>, me: usize, mine: Error, theirs: Error) {
    let mut failed = Vec::new();
    for (side, why) in [(me, mine), (1 - me, theirs)] {
        let end = &mut ends[side];
        if end.ended.is_some() {
            continue;
        }
        end.ended = Some(why.clone());
        if let Some((inbox, _)) = &end.attached {
            inbox.end(why.clone());
        }
        let (queued, at_sender) = (std::mem::take(&mut end.queued), std::mem::take(&mut end.at_sender));
        let (unacked, closing) = (std::mem::take(&mut end.unacked), std::mem::take(&mut end.closing));
        failed.push((why, queued, at_sender, unacked, closing));
    }
    drop(ends);
    for (why, queued, at_sender, unacked, closing) in failed {
        for (message, receipt, ack_now) in queued {
            Op::Send { message, receipt, ack_now, more: false }.fail(why.clone());
        }
        for receipt in unacked.into_values() {
            receipt.resolve(Err(why.clone()));
        }
        for message in at_sender.into_values().flatten() {
            message.fail(why.clone());
        }
        for done in closing {
            done.resolve(Err(why.clone()));
        }
    }
}

fn peer_regions(ends: MutexGuard<'_, [EndState; 2]>, me: usize) -> Result<Arc<Regions>> {
    let attached = ends[1 - me].attached.as_ref().map(|(_, regions)| regions.clone());
    attached.ok_or_else(revoked)
}

fn revoked() -> Error {
    Error::new(ErrorKind::Rejected, "the region was revoked")
}
