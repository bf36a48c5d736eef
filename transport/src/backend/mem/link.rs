//! One end of an in-process pair: a send moves the message into the peer's inbox, under the lock shared by
//! both ends.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard};

use super::{CAPS, remove_waiting};
use crate::backend::{
    Announced, Arrival, Caps, Delivery, Done, Inbox, Link, LinkStats, Message, Op, Operation, Regions,
};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
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
                let receipt = ends[1 - *me].unacked.remove(&id);
                proceed(ends, 1 - *me);
                if let Some(receipt) = receipt {
                    receipt.resolve(Ok(delivery));
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
            Op::Accept { destinations, .. } => {
                drop(ends);
                destinations.fail(Error::new(
                    ErrorKind::Invalid,
                    "messages of this link arrive whole and need no accept",
                ));
            }
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
        mine.unacked.insert(id, receipt);
        message.finish(|message| {
            let table = message.table().collect();
            let (header, frames) = message.into_parts();
            let announced =
                Announced { id, header, frames: table, arrival: Arrival::Complete(frames), ack_now };
            match &theirs.attached {
                Some((inbox, _)) => inbox.announce(announced),
                None => theirs.early.push(announced),
            }
        });
    }
    mine.queued.is_empty()
}

/// Sends what credit allows. Ends the pair once everything submitted before a close has left.
fn proceed(mut ends: MutexGuard<'_, [EndState; 2]>, me: usize) {
    if !announce(&mut ends, me) {
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
        let queued = std::mem::take(&mut end.queued);
        failed.push((why, queued, std::mem::take(&mut end.unacked), std::mem::take(&mut end.closing)));
    }
    drop(ends);
    for (why, queued, unacked, closing) in failed {
        for (message, receipt, ack_now) in queued {
            Op::Send { message, receipt, ack_now, more: false }.fail(why.clone());
        }
        for receipt in unacked.into_values() {
            receipt.resolve(Err(why.clone()));
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
