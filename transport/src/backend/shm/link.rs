//! The line: both rings, and where the peer's doorbell is heard.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;

use super::CAPS;
use super::attach::{AttachInfo, AttachedPeer};
use super::duplex::{self, Doorbell, Duplex, segment_len};
use super::fetcher::{Canary, FetchStatus, VmFetcher};
use super::lender::ArenaLender;
use super::pipe::{self, NullSink};
use crate::backend::streamed::{ByteStream, Streamed, read_from, write_to};
use crate::backend::{Caps, Link, LinkContext, Opened, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Segment;
use crate::platform::reactor::register;
use crate::wire::count::Count;
use crate::wire::session::{Session, Urgency};

/// The bytes of one direction's ring: what one end may be ahead of the other. It stays in the caches of both.
const RING_LEN: usize = 256 << 10;
/// Polls that find nothing, after which the doorbell is looked at: whether the peer is there.
const IDLE_MAX: u32 = 512;

/// Whether this process may make what one end of a link needs. `TooLarge` where a limit forbids it.
pub(super) fn permitted() -> Result<()> {
    Segment::permitted_len(segment_len(RING_LEN)).map(drop)
}

/// What one end brings to a link.
#[derive(Debug)]
pub(super) struct LocalEnd {
    segment: Arc<Segment>,
    doorbell: Doorbell,
    /// Ends when nobody holds what this end lent.
    holders: OwnedFd,
    holder: OwnedFd,
    /// Whether the peer may map our arenas, as far as this end can tell before they met.
    trusts: bool,
    canary: Canary,
}

impl LocalEnd {
    pub(super) fn create(context: &LinkContext) -> Result<Self> {
        let segment = Arc::new(Segment::create("towline-ring", segment_len(RING_LEN))?);
        let ((read_end, pipe), (holders, holder)) = (pipe::new()?, pipe::new()?);
        let (doorbell, canary) = (Doorbell { write_end: pipe, read_end }, Canary::new(&*context.environment));
        Ok(Self { segment, doorbell, holders, holder, trusts: context.trusts, canary })
    }

    pub(super) fn attach_info(&self) -> AttachInfo<BorrowedFd<'_>> {
        let (segment, doorbell) = (self.segment.descriptor(), self.doorbell.read_end.as_fd());
        let (holder, trusts) = (self.holder.as_fd(), self.trusts);
        let canary = trusts.then(|| self.canary.at());
        AttachInfo { ring_len: RING_LEN as u32, segment, doorbell, holder, trusts, canary }
    }
}

/// Opens a link with a peer that was met. It reads the peer's memory where that is fast, or always.
pub(super) async fn open(
    ours: LocalEnd,
    attached: AttachedPeer,
    context: &LinkContext,
    reads_always: bool,
) -> Result<Opened> {
    let AttachedPeer { socket, peer, user, process } = attached;
    let LocalEnd { segment, doorbell, holders, holder: _, trusts, canary } = ours;
    if !pipe::is_reading_end(&peer.doorbell) {
        return Err(Error::new(ErrorKind::Corrupt, "its doorbell is no pipe that can be read"));
    }
    let sink = NullSink::open()?;
    let trusted = trusts && peer.trusts && is_same_user(user);
    let (duplex, tables) =
        duplex::map_rings((segment, RING_LEN), (peer.segment, peer.ring_len as usize), doorbell)?;
    if !pipe::is_writing_end(&peer.holder) {
        return Err(Error::new(ErrorKind::Corrupt, "what its holders keep is no pipe that can be written"));
    }
    let exited = Arc::new(AtomicBool::new(false));
    let mut session = Streamed::<ShmByteStream>::session(context);
    let mut violated = Arc::default();
    if trusted {
        let environment = context.environment.clone();
        let lender = ArenaLender::new(
            socket,
            context.bounce_arena.clone(),
            tables,
            (holders, peer.holder),
            environment,
        );
        violated = lender.violated();
        session = session.lending(Box::new(lender));
    }
    let ended = process.and_then(open_pidfd).map(Arc::new);
    let fetched = match (trusted, context.checked) {
        (true, false) => {
            let about = (process, ended.clone());
            let opened =
                VmFetcher::open(canary, about, peer.canary, reads_always, &context.environment).await;
            let (fetcher, fetched) = opened;
            session = session.fetching(Box::new(fetcher));
            fetched
        }
        (true, true) => FetchStatus::unavailable("what travels is checked"),
        (false, _) => FetchStatus::unavailable("the two do not trust each other"),
    };
    let fetch_status = fetched.clone();
    let stream = ShmByteStream {
        peer_doorbell: peer.doorbell,
        sink,
        exited: exited.clone(),
        violated,
        blocked: AtomicBool::new(false),
        copied: duplex.copied.clone(),
        calls: AtomicU64::new(0),
        fetched,
    };
    // What the backend can do, and this link does not promise.
    let lacking = if trusted && !context.checked { Caps::empty() } else { Caps::LENDS };
    let link = Streamed::open(stream, State { duplex, idle: 0 }, session, CAPS - lacking, context);
    let opened = Opened::new(link.clone());
    fetch_status.set_link(opened.link());
    if let Some(ended) = ended {
        let (link, inbox) = (Arc::downgrade(&link), context.inbox.clone());
        context.environment.spawn(Box::pin(async move {
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
fn is_same_user(user: u32) -> bool {
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    let overflow = overflow.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_534);
    user == rustix::process::geteuid().as_raw() && user != overflow
}

/// The peer's process, to be exited of its exit: a forked child of its may keep its end of the doorbell. `None` if it is this one.
fn open_pidfd(process: Pid) -> Option<OwnedFd> {
    if process == rustix::process::getpid() {
        return None;
    }
    rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()
}

/// Ends when the process has; never where nobody tells.
async fn until_exit(process: Arc<OwnedFd>) {
    let exited = match register(process, Interest::READABLE) {
        Some(process) => process.readable().await.map(drop).is_ok(),
        None => false,
    };
    if !exited {
        std::future::pending::<()>().await;
    }
}

/// Both directions of one link, as everybody sees them.
#[derive(Debug)]
struct ShmByteStream {
    /// The peer's doorbell; its end is the peer's.
    peer_doorbell: OwnedFd,
    /// Where goes what it rang.
    sink: NullSink,
    /// The peer's process has.
    exited: Arc<AtomicBool>,
    /// The peer gave back what it was not lent.
    violated: Arc<AtomicBool>,
    /// Output waits for room in the ring.
    blocked: AtomicBool,
    /// Bytes copied into our ring and out of the peer's, and system calls as last fetch_status.
    copied: Count,
    calls: AtomicU64,
    /// What this end reads of the peer's memory by itself.
    fetched: Arc<FetchStatus>,
}

/// And as the holder of the poll lock does.
#[derive(Debug)]
struct State {
    duplex: Duplex,
    /// Polls since something came, or the doorbell was looked at.
    idle: u32,
}

impl ByteStream for ShmByteStream {
    type State = State;

    fn write(&self, state: &mut State, session: &mut Session, least: Urgency) -> Result<bool> {
        let (moved, had_room) = write_to(&mut state.duplex, session, least)?;
        self.blocked.store(!had_room, Ordering::Release);
        if self.violated.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Corrupt, "the peer gave back what it was not lent"));
        }
        Ok(moved)
    }

    fn read(&self, state: &mut State, session: &mut Session) -> Result<bool> {
        if state.idle >= IDLE_MAX {
            state.idle = 0;
            state.duplex.peer_gone |= pipe::has_hung_up(&self.peer_doorbell);
            self.count_calls(state, 1);
        }
        if self.exited.load(Ordering::Acquire) {
            state.duplex.peer_gone = true;
        }
        let moved = read_from(&mut state.duplex, session, 0)?;
        state.idle = if moved { 0 } else { state.idle + 1 };
        Ok(moved)
    }

    fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    fn tear_down(&self, mut state: State, mut session: Session, why: &Error) {
        self.count_calls(&mut state, 0);
        self.blocked.store(false, Ordering::Release);
        session.give_up(why);
        // With what is held goes the doorbell's doorbell pipe, of which the peer hears the end.
        drop(state);
    }

    fn source(&self) -> Source<'_> {
        Source { descriptor: self.peer_doorbell.as_fd(), writable: self.is_blocked(), doorbell: true }
    }

    /// Nobody but who is about to sleep takes what the doorbell said: whoever sleeps meanwhile would not hear it.
    fn arm(&self, state: &mut State) -> bool {
        self.count_calls(state, 1);
        state.duplex.peer_gone |= self.sink.discard(&self.peer_doorbell);
        state.duplex.arm(self.is_blocked())
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

impl ShmByteStream {
    /// Counts system calls, and the peer's doorbell as often as it was rung.
    fn count_calls(&self, state: &mut State, calls: u64) {
        self.calls.fetch_add(calls + std::mem::take(&mut state.duplex.rings), Ordering::Relaxed);
    }
}
