//! Reading the peer's memory where it lies, by the kernel's hand, and telling the peer when it may not read ours any more.
//!
//! The invariant (M12): what was read counts only if the peer's mark was found behind it, in a process that has not ended. An
//! end wipes its mark before any memory that the peer may be reading goes back to its owner.

#![expect(unsafe_code, reason = "one call has the kernel copy from another process")]

use std::fmt::{self, Debug, Formatter};
use std::hint::black_box;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::readers::{self, ReadHandle};
use crate::backend::{Link, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;
use crate::wire::fetching::{Fetcher, Part, PartEnd};

/// What the probe copies, and how often in each way.
const PROBE_LEN: usize = 1 << 20;
const PROBES: usize = 5;
/// How long the opening of a link waits for the peer's memory.
const OPEN_TIME: Duration = Duration::from_millis(250);
/// How long a read of a part may take.
const READ_TIME: Duration = Duration::from_secs(5);
/// Polls of a link by which it takes what was read, and begins with the next.
const POLLS: usize = 2;

/// What a process keeps at one place of its memory for as long as a link's peer may read there: random bytes, by which the
/// peer knows that it reads this process, and that nothing went back to its owner yet.
#[derive(Debug)]
pub(super) struct Canary(Box<[AtomicU64; 2]>);

/// A peer's mark: where it is, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerCanary {
    pub(super) address: u64,
    pub(super) bytes: [u8; 16],
}

impl Canary {
    pub(super) fn new(environment: &dyn Environment) -> Self {
        let mut bytes = [0; 16];
        environment.random(&mut bytes);
        Self(Box::new(words(bytes).map(AtomicU64::new)))
    }

    pub(super) fn at(&self) -> PeerCanary {
        let [first, second] = self.0.each_ref().map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        PeerCanary { address: self.0.as_ptr().addr() as u64, bytes }
    }

    /// Before anything that is written from now on to memory which the peer may be reading.
    fn wipe(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        fence(Ordering::Release);
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.wipe();
    }
}

fn words(bytes: [u8; 16]) -> [u64; 2] {
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    [word(0), word(8)]
}

/// What everybody sees of an end that fetches.
#[derive(Debug, Default)]
pub(super) struct FetchStatus {
    /// Why it does not, if so, in words that finish "since".
    unavailable: OnceLock<String>,
    /// System calls it made for that.
    pub(super) calls: AtomicU64,
    /// The link, to be moved when something was read.
    link: OnceLock<Weak<dyn Link>>,
}

/// Has other threads read the peer's memory where the kernel permits it.
#[derive(Debug)]
pub(super) struct VmFetcher {
    ours: Canary,
    peer: Option<Arc<PeerMemory>>,
    status: Arc<FetchStatus>,
    /// What is being read.
    read: Option<PendingRead>,
    environment: Arc<dyn Environment>,
}

/// The memory of the peer's process.
#[derive(Debug)]
struct PeerMemory {
    process: Pid,
    /// Readable once the process has ended; `None` if it is this one.
    ended: Option<Arc<OwnedFd>>,
    canary: PeerCanary,
}

/// A part that another thread reads.
#[derive(Debug)]
struct PendingRead {
    state: Arc<Mutex<ReadState>>,
    began: Instant,
    _handle: Arc<ReadHandle>,
}

/// Who has the part.
enum ReadState {
    /// No thread has begun.
    Queued(Part),
    /// A thread reads, and then calls this, if there is anything: otherwise it leaves it here.
    Reading(Option<Box<dyn FnOnce(Option<Part>) + Send>>),
    Finished(PartEnd),
    /// It was taken, or nobody will.
    Taken,
}

impl Debug for ReadState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued(_) => "Queued",
            Self::Reading(_) => "Reading",
            Self::Finished(_) => "Finished",
            Self::Taken => "Taken",
        })
    }
}

impl FetchStatus {
    /// Of an end that does not, since `why`.
    pub(super) fn unavailable(why: &str) -> Arc<Self> {
        Arc::new(Self { unavailable: OnceLock::from(why.to_owned()), ..Self::default() })
    }

    /// What becomes of large frames that come to this end from memory of the host.
    pub(super) fn note(&self) -> String {
        const WHICH: &str = "large host frames that land in named memory of this end";
        match self.unavailable.get() {
            None => format!("{WHICH} are copied once, out of the peer's memory (process_vm_readv)"),
            Some(why) => format!("{WHICH} are copied twice, by way of the ring, since {why}"),
        }
    }

    /// The link that is moved when something was read.
    pub(super) fn set_link(&self, link: &Arc<dyn Link>) {
        // Only the first link is its own.
        let _ = self.link.set(Arc::downgrade(link));
    }

    /// Has the link take what was read, and begin with the next part.
    fn poll_link(&self) {
        let mut polls = 0;
        while polls < POLLS {
            let Some(link) = self.link.get().and_then(Weak::upgrade) else { return };
            match link.progress() {
                // Whoever polls may have looked before.
                Progress::Elsewhere => std::thread::yield_now(),
                Progress::Moved | Progress::Idle => polls += 1,
            }
        }
    }
}

impl VmFetcher {
    /// `process` is the peer's, where it can be status from here, and `ended` tells of its end; `canary` is what it showed. Unless it
    /// is to read `always`, it does where that is fast. Waits for the peer's memory, for a while.
    pub(super) async fn open(
        ours: Canary,
        (process, ended): (Option<Pid>, Option<Arc<OwnedFd>>),
        canary: Option<PeerCanary>,
        always: bool,
        environment: &Arc<dyn Environment>,
    ) -> (Self, Arc<FetchStatus>) {
        let status = Arc::<FetchStatus>::default();
        let is_this = process == Some(rustix::process::getpid());
        let found = match (process, canary) {
            (None, _) => Err("its process is not to be seen from this one's namespace".to_owned()),
            (_, None) => Err("it does not show where its memory is".to_owned()),
            (Some(_), _) if ended.is_none() && !is_this => Err("nothing would tell of its end".to_owned()),
            (Some(process), Some(canary)) => Ok(PeerMemory { process, ended, canary }),
        };
        let found = match found {
            Ok(memory) => memory.probed(always, environment).await,
            Err(why) => Err(why),
        };
        let peer = found.map_err(|why| status.unavailable.get_or_init(|| why)).ok().map(Arc::new);
        (Self { ours, peer, status: status.clone(), read: None, environment: environment.clone() }, status)
    }

    /// It does not try again.
    fn give_up(&mut self, why: impl FnOnce() -> String) {
        self.peer = None;
        self.status.unavailable.get_or_init(why);
    }
}

impl Fetcher for VmFetcher {
    fn fetches(&self) -> bool {
        self.peer.is_some()
    }

    fn begin(&mut self, part: Part) -> Result<(), Part> {
        let Some(memory) = self.peer.clone() else { return Err(part) };
        let state = Arc::new(Mutex::new(ReadState::Queued(part)));
        let (taken, status) = (state.clone(), self.status.clone());
        let read = move || {
            let mut state = lock(&taken);
            let ReadState::Queued(part) = std::mem::replace(&mut *state, ReadState::Reading(None)) else {
                return *state = ReadState::Taken;
            };
            drop(state);
            let end = memory.read_part(part, &status);
            let mut state = lock(&taken);
            if let ReadState::Reading(None) = &*state {
                return *state = ReadState::Finished(end);
            }
            let before = std::mem::replace(&mut *state, ReadState::Taken);
            drop(state);
            if let (ReadState::Reading(Some(then)), Some(part)) = (before, end.into_part()) {
                then(Some(part));
            }
        };
        let status = self.status.clone();
        match readers::run(read, move || status.poll_link()) {
            Some(_handle) => {
                self.read = Some(PendingRead { state, began: Instant::now(), _handle });
                Ok(())
            }
            None => match std::mem::replace(&mut *lock(&state), ReadState::Taken) {
                ReadState::Queued(part) => Err(part),
                _ => unreachable!("nobody else has it"),
            },
        }
    }

    fn finished(&mut self) -> Option<PartEnd> {
        let read = self.read.as_ref()?;
        let is_late = read.began.elapsed() > READ_TIME;
        let mut state = lock(&read.state);
        match std::mem::replace(&mut *state, ReadState::Taken) {
            ReadState::Finished(end) => {
                drop(state);
                self.read = None;
                if let PartEnd::Failed(_) = end {
                    self.peer = None;
                }
                Some(end)
            }
            ReadState::Queued(part) if is_late => {
                drop(state);
                self.read = None;
                self.give_up(no_thread);
                Some(PartEnd::Failed(part))
            }
            ReadState::Reading(_) if is_late => {
                drop(state);
                self.read = None;
                self.give_up(|| {
                    format!("a read of its memory did not return within {} s", READ_TIME.as_secs())
                });
                let why = "the peer's memory, where the message lies, does not answer";
                Some(PartEnd::Stuck(Error::new(ErrorKind::TimedOut, why)))
            }
            other => {
                *state = other;
                None
            }
        }
    }

    fn abandon(&mut self, then: Box<dyn FnOnce(Option<Part>) + Send>) {
        let Some(PendingRead { state, .. }) = self.read.take() else { return then(None) };
        let mut held = lock(&state);
        match std::mem::replace(&mut *held, ReadState::Taken) {
            ReadState::Queued(part) => {
                drop(held);
                then(Some(part));
            }
            ReadState::Finished(end) => {
                drop(held);
                then(end.into_part());
            }
            ReadState::Reading(_) => {
                *held = ReadState::Reading(Some(then));
                drop(held);
                let late = self.environment.sleep_until(self.environment.now() + READ_TIME);
                self.environment.spawn(Box::pin(async move {
                    late.await;
                    let before = std::mem::replace(&mut *lock(&state), ReadState::Taken);
                    if let ReadState::Reading(Some(then)) = before {
                        then(None);
                    }
                }));
            }
            ReadState::Taken => then(None),
        }
    }

    fn retract(&mut self) {
        self.ours.wipe();
    }
}

fn lock(state: &Mutex<ReadState>) -> MutexGuard<'_, ReadState> {
    state.lock()
}

fn no_thread() -> String {
    format!("{} reads of other memory do not return", readers::THREADS_MAX)
}

impl PeerMemory {
    /// This, if it answers in time and is the peer's; otherwise why it is not read, in words that finish "since".
    async fn probed(self, always: bool, environment: &Arc<dyn Environment>) -> Result<Self, String> {
        let (sender, receiver) = oneshot::channel();
        let look = move || {
            let found = match self.is_intact() {
                Ok(true) => match slowness() {
                    Some(why) if !always => Err(why.to_owned()),
                    _ => Ok(self),
                },
                Ok(false) => Err("the process that the kernel names is another".to_owned()),
                Err(error) => Err(read_error(&error)),
            };
            // Whoever waited may have given up.
            let _ = sender.send(found);
        };
        let Some(_handle) = readers::run(look, || {}) else { return Err(no_thread()) };
        let late = || format!("its memory did not answer within {} ms", OPEN_TIME.as_millis());
        match within(&**environment, environment.now() + OPEN_TIME, receiver).await {
            Some(Ok(found)) => found,
            Some(Err(_)) | None => Err(late()),
        }
    }

    /// Reads a part, and confirms what is read last of a message. This may take as long as the peer likes.
    fn read_part(&self, mut part: Part, status: &FetchStatus) -> PartEnd {
        let read = part.read_by(|address, into| {
            status.calls.fetch_add(1, Ordering::Relaxed);
            self.read(address, into).map_err(|error| {
                status.unavailable.get_or_init(|| read_error(&error));
                error.into()
            })
        });
        if read.is_err() {
            return PartEnd::Failed(part);
        }
        if part.is_last {
            status.calls.fetch_add(2, Ordering::Relaxed);
            if !self.is_intact().unwrap_or(false) {
                let why = "the peer was gone before its memory was read";
                return PartEnd::Lost(part, Error::new(ErrorKind::PeerLost, why));
            }
        }
        PartEnd::Read(part)
    }

    /// Whether this is still the peer's memory, of which nothing went back to its owner before what was read last.
    fn is_intact(&self) -> io::Result<bool> {
        // What was read before stays before this.
        fence(Ordering::Acquire);
        let mut bytes = [MaybeUninit::uninit(); 16];
        if *self.read(self.canary.address, &mut bytes)? != self.canary.bytes {
            return Ok(false);
        }
        let Some(ended) = &self.ended else { return Ok(true) };
        let mut ended = [PollFd::new(ended, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut ended, Some(&now))? == 0)
    }

    /// Fills `into` from there on, or as good as nothing.
    fn read<'a>(&self, address: u64, into: &'a mut [MaybeUninit<u8>]) -> io::Result<&'a mut [u8]> {
        read(self.process, address, into)
    }
}

/// Fills `into` from there on in the process's memory, or as good as nothing.
fn read(process: Pid, address: u64, into: &mut [MaybeUninit<u8>]) -> io::Result<&mut [u8]> {
    let address = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?;
    let from = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: into.len() };
    let to = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let process = process.as_raw_nonzero().get();
    // SAFETY: M12: the kernel writes no more than `into`, which is borrowed exclusively (M2); what it reads is the other
    // process's, at addresses that it checks, and is no memory of this program's own but what a `Buffer` or the probe keeps (M1).
    let read = unsafe { libc::process_vm_readv(process, &raw const to, 1, &raw const from, 1, 0) };
    match usize::try_from(read) {
        // SAFETY: M4: all of it was just written.
        Ok(len) if len == into.len() => Ok(unsafe { into.assume_init_mut() }),
        Ok(_) => Err(rustix::io::Errno::FAULT.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Why the kernel's copy of a process's memory is not worth it on this machine, in words that finish "since", if it is not.
/// The first call of a process finds out, on its own memory, in a millisecond.
fn slowness() -> Option<&'static str> {
    static SLOWNESS: OnceLock<Option<String>> = OnceLock::new();
    let found = SLOWNESS.get_or_init(|| {
        let (from, mut to) = (vec![1; PROBE_LEN], vec![0; PROBE_LEN]);
        let copy = fastest(|| {
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
        });
        let (this, address) = (rustix::process::getpid(), from.as_ptr().addr() as u64);
        let mut to = Box::new_uninit_slice(PROBE_LEN);
        let read = fastest(|| _ = black_box(read(this, address, &mut to)));
        too_slow(copy, read)
    });
    found.as_deref()
}

fn fastest(mut once: impl FnMut()) -> Duration {
    let timed = || {
        let begin = Instant::now();
        once();
        begin.elapsed()
    };
    std::iter::repeat_with(timed).take(PROBES).min().unwrap_or_default()
}

/// Two copies side by side run at more than four fifths of the speed of one.
fn too_slow(copy: Duration, read: Duration) -> Option<String> {
    let times = read.as_secs_f64() / copy.as_secs_f64().max(f64::MIN_POSITIVE);
    (times > 1.25)
        .then(|| format!("process_vm_readv takes {times:.1} times as long as memcpy on this machine"))
}

/// Why the kernel does not read, in words that finish "since".
fn read_error(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ptrace is not permitted: see kernel.yama.ptrace_scope, PR_SET_DUMPABLE, user namespaces)"
        }
        _ => "",
    };
    format!("process_vm_readv says {error}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_slower_than_two_parallel_copies_are_rejected() {
        let of = |micros| Duration::from_micros(micros);
        for read in [0, 50, 100, 124] {
            assert_eq!(too_slow(of(100), of(read)), None);
        }
        let why = too_slow(of(100), of(250)).unwrap();
        assert!(why.contains("2.5 times as long as memcpy"), "{why}");
        assert!(too_slow(Duration::ZERO, of(1)).is_some());
    }

    #[test]
    fn the_probe_runs_once() {
        assert_eq!(slowness(), slowness());
    }
}
