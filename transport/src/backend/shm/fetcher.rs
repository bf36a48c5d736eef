//! Reads frames from the peer's memory through the kernel (`process_vm_readv`), and revokes the peer's
//! permission to read ours.
//!
//! The invariant (M12): a read counts only if the peer's canary is found intact after it, in a process that
//! has not exited. An end wipes its canary before any memory that the peer may be reading returns to its
//! owner.

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

/// The length of the probe's copies, and the number of runs of each kind.
const PROBE_LEN: usize = 1 << 20;
const PROBES: usize = 5;
/// The time that opening a link waits to read the peer's canary.
const OPEN_TIME: Duration = Duration::from_millis(250);
/// The time that reading one part may take.
const READ_TIME: Duration = Duration::from_secs(5);
/// The polls of a link after a read: one takes the result, and one begins the next part.
const POLLS: usize = 2;

/// Random bytes at a fixed address of this process, intact for as long as the link's peer may read its
/// memory. They prove to the peer that it reads this process, and that no memory has returned to its owner
/// yet.
#[derive(Debug)]
pub(super) struct Canary(Box<[AtomicU64; 2]>);

/// The address and the bytes of a peer's canary.
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

    /// Wipes the canary, before any later write to memory that the peer may be reading.
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

/// The parts of a fetcher that any thread may access.
#[derive(Debug, Default)]
pub(super) struct FetchStatus {
    /// Why this end does not read the peer's memory, if so; the text completes "since".
    unavailable: OnceLock<String>,
    /// System calls made to read the peer's memory.
    pub(super) calls: AtomicU64,
    /// The link to poll when a read has finished.
    link: OnceLock<Weak<dyn Link>>,
}

/// Reads the peer's memory on other threads, where the kernel permits it.
#[derive(Debug)]
pub(super) struct VmFetcher {
    ours: Canary,
    peer: Option<Arc<PeerMemory>>,
    status: Arc<FetchStatus>,
    /// The read in progress.
    read: Option<PendingRead>,
    environment: Arc<dyn Environment>,
}

/// The memory of the peer's process.
#[derive(Debug)]
struct PeerMemory {
    process: Pid,
    /// A pidfd, readable once the process has exited; `None` for this process itself.
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

/// The owner of the part.
enum ReadState {
    /// No thread has started the read.
    Queued(Part),
    /// A thread reads. It then calls this closure if there is one, and otherwise leaves the part here.
    Reading(Option<Box<dyn FnOnce(Option<Part>) + Send>>),
    Finished(PartEnd),
    /// The part was taken, or will not return.
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
    /// The status of an end that does not read, because of `why`.
    pub(super) fn unavailable(why: &str) -> Arc<Self> {
        Arc::new(Self { unavailable: OnceLock::from(why.to_owned()), ..Self::default() })
    }

    /// Describes how large host frames reach named memory of this end, for explain.
    pub(super) fn note(&self) -> String {
        const WHICH: &str = "large host frames that land in named memory of this end";
        match self.unavailable.get() {
            None => format!("{WHICH} are copied once, from the peer's memory (process_vm_readv)"),
            Some(why) => format!("{WHICH} are copied twice, through the ring, since {why}"),
        }
    }

    /// Sets the link to poll when a read has finished.
    pub(super) fn set_link(&self, link: &Arc<dyn Link>) {
        // Set once: later links are ignored.
        let _ = self.link.set(Arc::downgrade(link));
    }

    /// Polls the link until it has taken what was read and has begun the next part.
    fn poll_link(&self) {
        let mut polls = 0;
        while polls < POLLS {
            let Some(link) = self.link.get().and_then(Weak::upgrade) else { return };
            match link.progress() {
                // The current holder of the poll lock may have polled before the read finished.
                Progress::Elsewhere => std::thread::yield_now(),
                Progress::Moved | Progress::Idle => polls += 1,
            }
        }
    }
}

impl VmFetcher {
    /// Opens a fetcher. `process` is the peer's process if it is visible here, `ended` its pidfd, and
    /// `canary` what its hello claims. Reads the peer's memory if that is fast, or if `always` is set. Waits
    /// up to [`OPEN_TIME`] for the peer's memory.
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
            (None, _) => Err("its process is not visible in this PID namespace".to_owned()),
            (_, None) => Err("it sent no canary".to_owned()),
            (Some(_), _) if ended.is_none() && !is_this => Err("its exit could not be detected".to_owned()),
            (Some(process), Some(canary)) => Ok(PeerMemory { process, ended, canary }),
        };
        let found = match found {
            Ok(memory) => memory.probed(always, environment).await,
            Err(why) => Err(why),
        };
        let peer = found.map_err(|why| status.unavailable.get_or_init(|| why)).ok().map(Arc::new);
        (Self { ours, peer, status: status.clone(), read: None, environment: environment.clone() }, status)
    }

    /// Stops reading the peer's memory for good.
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
                _ => unreachable!("no thread has started the read"),
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
                let why = "reading the message from the peer's memory timed out";
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
    format!("{} reads of other processes have not returned", readers::THREADS_MAX)
}

impl PeerMemory {
    /// Checks that the memory is readable in time and is the peer's. Otherwise returns why it is not read;
    /// the text completes "since".
    async fn probed(self, always: bool, environment: &Arc<dyn Environment>) -> Result<Self, String> {
        let (sender, receiver) = oneshot::channel();
        let look = move || {
            let found = match self.is_intact() {
                Ok(true) => match slowness() {
                    Some(why) if !always => Err(why.to_owned()),
                    _ => Ok(self),
                },
                Ok(false) => Err("the process that the kernel reports does not hold its canary".to_owned()),
                Err(error) => Err(read_error(&error)),
            };
            // The opening may have timed out.
            let _ = sender.send(found);
        };
        let Some(_handle) = readers::run(look, || {}) else { return Err(no_thread()) };
        let late = || format!("reading its memory took more than {} ms", OPEN_TIME.as_millis());
        match within(&**environment, environment.now() + OPEN_TIME, receiver).await {
            Some(Ok(found)) => found,
            Some(Err(_)) | None => Err(late()),
        }
    }

    /// Reads a part, and verifies the canary after the last part of a message. Blocks for as long as the
    /// peer's pages fault.
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
                let why = "the peer was lost before its memory was read";
                return PartEnd::Lost(part, Error::new(ErrorKind::PeerLost, why));
            }
        }
        PartEnd::Read(part)
    }

    /// Returns true if this is still the peer's memory, and none of it returned to its owner before the last
    /// read.
    fn is_intact(&self) -> io::Result<bool> {
        // Orders the earlier reads before this one.
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

    /// Fills all of `into` from `address` on, or returns an error.
    fn read<'a>(&self, address: u64, into: &'a mut [MaybeUninit<u8>]) -> io::Result<&'a mut [u8]> {
        read(self.process, address, into)
    }
}

/// Fills all of `into` from `address` on in the process's memory, or returns an error.
fn read(process: Pid, address: u64, into: &mut [MaybeUninit<u8>]) -> io::Result<&mut [u8]> {
    let address = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?;
    let from = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: into.len() };
    let to = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let process = process.as_raw_nonzero().get();
    // SAFETY: M12: the kernel writes no more than `into`, which is borrowed exclusively (M2). It reads the
    // other process's memory, at addresses that it checks. If that process is this one, the memory is kept by
    // a `Buffer` or by the probe (M1).
    let read = unsafe { libc::process_vm_readv(process, &raw const to, 1, &raw const from, 1, 0) };
    match usize::try_from(read) {
        // SAFETY: M4: all of it was just written.
        Ok(len) if len == into.len() => Ok(unsafe { into.assume_init_mut() }),
        Ok(_) => Err(rustix::io::Errno::FAULT.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Returns why `process_vm_readv` is too slow on this machine, if it is; the text completes "since". Measured
/// by the process's first call, on its own memory, in a millisecond.
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

/// Two parallel copies run at more than four fifths of the speed of one, so a read may take 1.25 times as
/// long as a copy.
fn too_slow(copy: Duration, read: Duration) -> Option<String> {
    let times = read.as_secs_f64() / copy.as_secs_f64().max(f64::MIN_POSITIVE);
    (times > 1.25)
        .then(|| format!("process_vm_readv takes {times:.1} times as long as memcpy on this machine"))
}

/// Returns why the kernel does not read; the text completes "since".
fn read_error(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (ptrace is not permitted: see kernel.yama.ptrace_scope, PR_SET_DUMPABLE, user namespaces)"
        }
        _ => "",
    };
    format!("process_vm_readv failed: {error}{remedy}")
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
