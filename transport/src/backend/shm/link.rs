//! The byte stream of `shm`: both rings, and the peer's doorbell.

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
use super::ring_len::{self, RingLen};
use crate::backend::streamed::{ByteStream, Streamed, read_from, write_to};
use crate::backend::{Caps, Link, LinkContext, Opened, WaitSource};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Segment;
use crate::platform::reactor::register;
use crate::wire::count::Count;
use crate::wire::session::{Session, Urgency};

/// The number of polls without data after which the doorbell pipe is checked for a lost peer.
const IDLE_MAX: u32 = 512;

/// Checks that this process may create a segment. `TooLarge` if a limit forbids it.
pub(super) fn permitted() -> Result<()> {
    Segment::permitted_len(segment_len(ring_len::LONG)).map(drop)
}

/// What this end contributes to a link.
#[derive(Debug)]
pub(super) struct LocalEnd {
    ring_len: RingLen,
    segment: Arc<Segment>,
    doorbell: Doorbell,
    /// Hangs up once no process holds what this end lent.
    holders: OwnedFd,
    holder: OwnedFd,
    /// Whether the peer may map our arenas, before the peer's user is known.
    trusts: bool,
    canary: Canary,
}

impl LocalEnd {
    pub(super) fn create(context: &LinkContext) -> Result<Self> {
        let ring_len = RingLen::reserve();
        let segment = Arc::new(Segment::create("towline-ring", segment_len(ring_len.bytes()))?);
        let ((read_end, pipe), (holders, holder)) = (pipe::new()?, pipe::new()?);
        let (doorbell, canary) = (Doorbell { write_end: pipe, read_end }, Canary::new(&*context.environment));
        Ok(Self { ring_len, segment, doorbell, holders, holder, trusts: context.trusts, canary })
    }

    pub(super) fn attach_info(&self) -> AttachInfo<BorrowedFd<'_>> {
        let (segment, doorbell) = (self.segment.descriptor(), self.doorbell.read_end.as_fd());
        let (holder, trusts) = (self.holder.as_fd(), self.trusts);
        let canary = trusts.then(|| self.canary.at());
        AttachInfo { ring_len: self.ring_len.bytes() as u32, segment, doorbell, holder, trusts, canary }
    }
}

/// Opens a link with an attached peer. Reads the peer's memory where that is fast, or always if
/// `reads_always`.
pub(super) async fn open(
    ours: LocalEnd,
    attached: AttachedPeer,
    context: &LinkContext,
    reads_always: bool,
) -> Result<Opened> {
    let AttachedPeer { socket, peer, user, process } = attached;
    let LocalEnd { ring_len, segment, doorbell, holders, holder: _, trusts, canary } = ours;
    if !pipe::is_reading_end(&peer.doorbell) {
        return Err(Error::new(ErrorKind::Corrupt, "its doorbell is not the read end of a pipe"));
    }
    let sink = NullSink::open()?;
    let trusted = trusts && peer.trusts && is_same_user(user);
    let (duplex, tables) =
        duplex::map_rings((segment, ring_len.bytes()), (peer.segment, peer.ring_len as usize), doorbell)?;
    if !pipe::is_writing_end(&peer.holder) {
        return Err(Error::new(ErrorKind::Corrupt, "its holders' pipe is not the write end of a pipe"));
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
        (true, true) => FetchStatus::unavailable("the connection uses checksums"),
        (false, _) => FetchStatus::unavailable("the two ends do not trust each other"),
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
        _ring_len: ring_len,
    };
    // The capabilities that the backend has and this link does not guarantee.
    let lacking = if trusted && !context.checked { Caps::empty() } else { Caps::LENDS };
    let link = Streamed::open(stream, ShmState { duplex, idle: 0 }, session, CAPS - lacking, context);
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
            // The peer's data sent before its exit is read first; any concurrent poll sees `exited` too.
            while let Some(link) = link.upgrade().filter(|_| inbox.ended().is_none()) {
                link.progress();
                drop(link);
                tokio::task::yield_now().await;
            }
        }));
    }
    Ok(opened)
}

/// Returns true if `user` is this process's effective user. The overflow user, which stands for all users
/// unknown to a namespace, never matches.
fn is_same_user(user: u32) -> bool {
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    let overflow = overflow.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_534);
    user == rustix::process::geteuid().as_raw() && user != overflow
}

/// Opens a pidfd of the peer's process to detect its exit, since a forked child may keep the doorbell open.
/// `None` for this process itself.
fn open_pidfd(process: Pid) -> Option<OwnedFd> {
    if process == rustix::process::getpid() {
        return None;
    }
    rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()
}

/// Waits until the process exits; never returns if that cannot be detected.
async fn until_exit(process: Arc<OwnedFd>) {
    let exited = match register(process, Interest::READABLE) {
        Some(process) => process.readable().await.map(drop).is_ok(),
        None => false,
    };
    if !exited {
        std::future::pending::<()>().await;
    }
}

/// The parts of the byte stream that any thread may access.
#[derive(Debug)]
struct ShmByteStream {
    /// The read end of the peer's doorbell. It hangs up when the peer is gone.
    peer_doorbell: OwnedFd,
    /// Where doorbell bytes are discarded.
    sink: NullSink,
    /// The peer's process has exited.
    exited: Arc<AtomicBool>,
    /// The peer returned a lease that it did not hold.
    violated: Arc<AtomicBool>,
    /// Output waits for room in the ring.
    blocked: AtomicBool,
    /// Bytes copied into our ring and out of the peer's ring; system calls as last counted.
    copied: Count,
    calls: AtomicU64,
    /// Whether this end reads the peer's memory, and its system calls for that.
    fetched: Arc<FetchStatus>,
    _ring_len: RingLen,
}

/// The parts that only the holder of the poll lock accesses.
#[derive(Debug)]
struct ShmState {
    duplex: Duplex,
    /// Polls since data arrived or the doorbell pipe was checked.
    idle: u32,
}

impl ByteStream for ShmByteStream {
    type State = ShmState;

    fn write(&self, state: &mut ShmState, session: &mut Session, least: Urgency) -> Result<bool> {
        let (moved, had_room) = write_to(&mut state.duplex, session, least)?;
        self.blocked.store(!had_room, Ordering::Release);
        if self.violated.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Corrupt, "the peer returned a lease that it did not hold"));
        }
        Ok(moved)
    }

    fn read(&self, state: &mut ShmState, session: &mut Session) -> Result<bool> {
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

    fn tear_down(&self, mut state: ShmState, mut session: Session, why: &Error) {
        self.count_calls(&mut state, 0);
        self.blocked.store(false, Ordering::Release);
        session.give_up(why);
        // Dropping `state` closes the doorbell pipe; the peer sees EOF.
        drop(state);
    }

    fn source(&self) -> WaitSource<'_> {
        WaitSource { descriptor: self.peer_doorbell.as_fd(), writable: self.is_blocked(), doorbell: true }
    }

    /// Only an end about to sleep may empty the doorbell pipe: otherwise a concurrent sleeper would miss its
    /// wake-up.
    fn arm(&self, state: &mut ShmState) -> bool {
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
    /// Counts system calls, including the writes to the doorbell.
    fn count_calls(&self, state: &mut ShmState, calls: u64) {
        self.calls.fetch_add(calls + std::mem::take(&mut state.duplex.rings), Ordering::Relaxed);
    }
}
