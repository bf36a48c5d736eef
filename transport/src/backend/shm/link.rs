//! The line: both rings, and where the peer's bell is heard.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;

use super::CAPS;
use super::duplex::{self, Bell, Duplex, segment_len};
use super::fetcher::{Fetched, Mark, VmFetcher};
use super::lender::ArenaLender;
use super::meeting::{Met, Shown};
use super::pipe::{self, Silence};
use crate::backend::streamed::{Line, Streamed, read_from, write_to};
use crate::backend::{Caps, Link, Opened, Site, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Segment;
use crate::reactor::register;
use crate::wire::count::Count;
use crate::wire::session::{Session, Urgency};

/// The bytes of one direction's ring: what one end may be ahead of the other. It stays in the caches of both.
const RING_LEN: usize = 256 << 10;
/// Polls that find nothing, after which the bell is looked at: whether the peer is there.
const IDLE_MAX: u32 = 512;

/// Whether this process may make what one end of a link needs. `TooLarge` where a limit forbids it.
pub(super) fn permitted() -> Result<()> {
    Segment::permitted_len(segment_len(RING_LEN)).map(drop)
}

/// What one end brings to a link.
#[derive(Debug)]
pub(super) struct Ours {
    segment: Arc<Segment>,
    bell: Bell,
    /// Ends when nobody holds what this end lent.
    holders: OwnedFd,
    holder: OwnedFd,
    /// Whether the peer may map our arenas, as far as this end can tell before they met.
    trusts: bool,
    mark: Mark,
}

impl Ours {
    pub(super) fn create(site: &Site) -> Result<Self> {
        let segment = Arc::new(Segment::create("towline-ring", segment_len(RING_LEN))?);
        let ((heard_at, rope), (holders, holder)) = (pipe::new()?, pipe::new()?);
        let (bell, mark) = (Bell { rope, heard_at }, Mark::new(&*site.environment));
        Ok(Self { segment, bell, holders, holder, trusts: site.trusts, mark })
    }

    pub(super) fn shown(&self) -> Shown<BorrowedFd<'_>> {
        let (segment, bell) = (self.segment.descriptor(), self.bell.heard_at.as_fd());
        let (holder, trusts) = (self.holder.as_fd(), self.trusts);
        let mark = trusts.then(|| self.mark.at());
        Shown { ring_len: RING_LEN as u32, segment, bell, holder, trusts, mark }
    }
}

/// Opens a link with a peer that was met. It reads the peer's memory where that is fast, or always.
pub(super) async fn open(ours: Ours, met: Met, site: &Site, reads_always: bool) -> Result<Opened> {
    let Met { socket, peer, user, process } = met;
    let Ours { segment, bell, holders, holder: _, trusts, mark } = ours;
    if !pipe::is_reading_end(&peer.bell) {
        return Err(Error::new(ErrorKind::Corrupt, "its bell is no pipe that can be read"));
    }
    let silence = Silence::open()?;
    let trusted = trusts && peer.trusts && is_ours(user);
    let (duplex, tables) = duplex::over((segment, RING_LEN), (peer.segment, peer.ring_len as usize), bell)?;
    if !pipe::is_writing_end(&peer.holder) {
        return Err(Error::new(ErrorKind::Corrupt, "what its holders keep is no pipe that can be written"));
    }
    let exited = Arc::new(AtomicBool::new(false));
    let mut session = Streamed::<ShmLine>::session(site);
    let mut lied = Arc::default();
    if trusted {
        let environment = site.environment.clone();
        let lender =
            ArenaLender::new(socket, site.depot.clone(), tables, (holders, peer.holder), environment);
        lied = lender.lied();
        session = session.lending(Box::new(lender));
    }
    let ended = process.and_then(watched).map(Arc::new);
    let fetched = match (trusted, site.checked) {
        (true, false) => {
            let about = (process, ended.clone());
            let opened = VmFetcher::open(mark, about, peer.mark, reads_always, &site.environment).await;
            let (fetcher, fetched) = opened;
            session = session.fetching(Box::new(fetcher));
            fetched
        }
        (true, true) => Fetched::nothing("what travels is checked"),
        (false, _) => Fetched::nothing("the two do not trust each other"),
    };
    let seen = fetched.clone();
    let line = ShmLine {
        heard: peer.bell,
        silence,
        exited: exited.clone(),
        lied,
        blocked: AtomicBool::new(false),
        copied: duplex.copied.clone(),
        calls: AtomicU64::new(0),
        fetched,
    };
    // What the backend can do, and this link does not promise.
    let lacking = if trusted && !site.checked { Caps::empty() } else { Caps::LENDS };
    let link = Streamed::open(line, Held { duplex, idle: 0 }, session, CAPS - lacking, site);
    let opened = Opened::new(link.clone());
    seen.moves(opened.link());
    if let Some(ended) = ended {
        let (link, inbox) = (Arc::downgrade(&link), site.inbox.clone());
        site.environment.spawn(Box::pin(async move {
            tokio::select! {
                () = until_exit(ended) => {}
                () = inbox.until_ended() => return,
            }
            exited.store(true, Ordering::Release);
            // What it sent before is taken first; whoever polls meanwhile sees the same.
            while let Some(link) = link.upgrade().filter(|_| inbox.ended().is_none()) {
                link.progress();
                drop(link);
                tokio::task::yield_now().await;
            }
        }));
    }
    Ok(opened)
}

/// Whether a user is this process's own. The one that stands for all that a namespace does not know is nobody's.
fn is_ours(user: u32) -> bool {
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    let overflow = overflow.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_534);
    user == rustix::process::geteuid().as_raw() && user != overflow
}

/// The peer's process, to be told of its exit: a forked child of its may keep its end of the bell. `None` if it is this one.
fn watched(process: Pid) -> Option<OwnedFd> {
    if process == rustix::process::getpid() {
        return None;
    }
    rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()
}

/// Ends when the process has; never where nobody tells.
async fn until_exit(process: Arc<OwnedFd>) {
    let told = match register(process, Interest::READABLE) {
        Some(process) => process.readable().await.map(drop).is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}

/// Both directions of one link, as everybody sees them.
#[derive(Debug)]
struct ShmLine {
    /// The peer's bell; its end is the peer's.
    heard: OwnedFd,
    /// Where goes what it rang.
    silence: Silence,
    /// The peer's process has.
    exited: Arc<AtomicBool>,
    /// The peer gave back what it was not lent.
    lied: Arc<AtomicBool>,
    /// Output waits for room in the ring.
    blocked: AtomicBool,
    /// Bytes copied into our ring and out of the peer's, and system calls as last seen.
    copied: Count,
    calls: AtomicU64,
    /// What this end reads of the peer's memory by itself.
    fetched: Arc<Fetched>,
}

/// And as the holder of the baton does.
#[derive(Debug)]
struct Held {
    duplex: Duplex,
    /// Polls since something came, or the bell was looked at.
    idle: u32,
}

impl Line for ShmLine {
    type Held = Held;

    fn write(&self, held: &mut Held, session: &mut Session, least: Urgency) -> Result<bool> {
        let (moved, had_room) = write_to(&mut held.duplex, session, least)?;
        self.blocked.store(!had_room, Ordering::Release);
        if self.lied.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Corrupt, "the peer gave back what it was not lent"));
        }
        Ok(moved)
    }

    fn read(&self, held: &mut Held, session: &mut Session) -> Result<bool> {
        if held.idle >= IDLE_MAX {
            held.idle = 0;
            held.duplex.gone |= pipe::has_hung_up(&self.heard);
            self.count_calls(held, 1);
        }
        if self.exited.load(Ordering::Acquire) {
            held.duplex.gone = true;
        }
        let moved = read_from(&mut held.duplex, session, 0)?;
        held.idle = if moved { 0 } else { held.idle + 1 };
        Ok(moved)
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    fn retire(&self, mut held: Held, mut session: Session, why: &Error) {
        self.count_calls(&mut held, 0);
        self.blocked.store(false, Ordering::Release);
        session.give_up(why);
        // With what is held goes the bell's rope, of which the peer hears the end.
        drop(held);
    }

    fn source(&self) -> Source<'_> {
        Source { descriptor: self.heard.as_fd(), writable: self.is_blocked(), bell: true }
    }

    /// Nobody but who is about to sleep takes what the bell said: whoever sleeps meanwhile would not hear it.
    fn doze(&self, held: &mut Held) -> bool {
        self.count_calls(held, 1);
        held.duplex.gone |= self.silence.take(&self.heard);
        held.duplex.doze(self.is_blocked())
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed) + self.fetched.calls.load(Ordering::Relaxed)
    }

    fn notes(&self) -> Vec<String> {
        vec![self.fetched.note()]
    }

    fn copied(&self) -> u64 {
        self.copied.get()
    }
}

impl ShmLine {
    /// Counts system calls, and the peer's bell as often as it was rung.
    fn count_calls(&self, held: &mut Held, calls: u64) {
        self.calls.fetch_add(calls + std::mem::take(&mut held.duplex.rings), Ordering::Relaxed);
    }
}
