//! Reading the peer's memory where it lies, by the kernel's hand, and telling the peer when it may not read ours any more.
//!
//! The invariant (M12): what was read counts only if the peer's mark was found behind it, in a process that has not ended. An
//! end wipes its mark before any memory that the peer may be reading goes back to its owner.

#![expect(unsafe_code, reason = "one call has the kernel copy from another process")]

use std::hint::black_box;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::environment::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::fetching::Fetcher;

/// What the probe copies, and how often in each way.
const PROBE_LEN: usize = 1 << 20;
const PROBES: usize = 5;

/// What a process keeps at one place of its memory for as long as a link's peer may read there: random bytes, by which the
/// peer knows that it reads this process, and that nothing went back to its owner yet.
#[derive(Debug)]
pub(super) struct Mark(Box<[AtomicU64; 2]>);

/// A peer's mark: where it is, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MarkAt {
    pub(super) address: u64,
    pub(super) bytes: [u8; 16],
}

impl Mark {
    pub(super) fn new(environment: &dyn Environment) -> Self {
        let mut bytes = [0; 16];
        environment.random(&mut bytes);
        Self(Box::new(words(bytes).map(AtomicU64::new)))
    }

    pub(super) fn at(&self) -> MarkAt {
        let [first, second] = self.0.each_ref().map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        MarkAt { address: self.0.as_ptr().addr() as u64, bytes }
    }

    /// Before anything that is written from now on to memory which the peer may be reading.
    fn wipe(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        fence(Ordering::Release);
    }
}

impl Drop for Mark {
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
pub(super) struct Fetched {
    /// Why it does not, if so, in words that finish "since".
    lacking: OnceLock<String>,
    /// System calls it made for that.
    pub(super) calls: AtomicU64,
}

/// Reads the peer's memory where the kernel permits it.
#[derive(Debug)]
pub(super) struct VmFetcher {
    ours: Mark,
    peer: Option<Memory>,
    seen: Arc<Fetched>,
}

/// The memory of the peer's process.
#[derive(Debug)]
struct Memory {
    process: Pid,
    /// Readable once the process has ended; `None` if it is this one.
    ended: Option<Arc<OwnedFd>>,
    mark: MarkAt,
}

impl Fetched {
    /// Of an end that does not, since `why`.
    pub(super) fn nothing(why: &str) -> Arc<Self> {
        Arc::new(Self { lacking: OnceLock::from(why.to_owned()), ..Self::default() })
    }

    /// What becomes of large frames that come to this end from memory of the host.
    pub(super) fn note(&self) -> String {
        const WHICH: &str = "large host frames that land in named memory of this end";
        match self.lacking.get() {
            None => format!("{WHICH} are copied once, out of the peer's memory (process_vm_readv)"),
            Some(why) => format!("{WHICH} are copied twice, by way of the ring, since {why}"),
        }
    }
}

impl VmFetcher {
    /// `process` is the peer's, where it can be seen from here, and `ended` tells of its end; `mark` is what it showed. Unless it
    /// is to read `always`, it does where that is fast.
    pub(super) fn new(
        ours: Mark,
        (process, ended): (Option<Pid>, Option<Arc<OwnedFd>>),
        mark: Option<MarkAt>,
        always: bool,
    ) -> (Self, Arc<Fetched>) {
        let seen = Arc::<Fetched>::default();
        let is_this = process == Some(rustix::process::getpid());
        let found = match (process, mark) {
            (None, _) => Err("its process is not to be seen from this one's namespace".to_owned()),
            (_, None) => Err("it does not show where its memory is".to_owned()),
            (Some(_), _) if ended.is_none() && !is_this => Err("nothing would tell of its end".to_owned()),
            (Some(process), Some(mark)) => Ok(Memory { process, ended, mark }),
        };
        let found = found.and_then(|memory| match memory.is_there() {
            Ok(true) => match slowness() {
                Some(why) if !always => Err(why.to_owned()),
                _ => Ok(memory),
            },
            Ok(false) => Err("the process that the kernel names is another".to_owned()),
            Err(error) => Err(refused(&error)),
        });
        let peer = found.map_err(|why| seen.lacking.get_or_init(|| why)).ok();
        (Self { ours, peer, seen: seen.clone() }, seen)
    }
}

impl Fetcher for VmFetcher {
    fn fetches(&self) -> bool {
        self.peer.is_some()
    }

    fn fetch<'a>(&mut self, address: u64, into: &'a mut [MaybeUninit<u8>]) -> Result<&'a mut [u8]> {
        let Some(memory) = &self.peer else {
            return Err(Error::new(ErrorKind::Unavailable, "the peer's memory cannot be read"));
        };
        self.seen.calls.fetch_add(1, Ordering::Relaxed);
        memory.read(address, into).map_err(|error| {
            self.peer = None;
            self.seen.lacking.get_or_init(|| refused(&error));
            Error::new(ErrorKind::Unavailable, "the peer's memory cannot be read").caused_by(error)
        })
    }

    fn confirm(&mut self) -> Result<()> {
        self.seen.calls.fetch_add(2, Ordering::Relaxed);
        let is_there = self.peer.as_ref().is_some_and(|memory| memory.is_there().unwrap_or(false));
        if is_there {
            return Ok(());
        }
        Err(Error::new(ErrorKind::PeerLost, "the peer was gone before its memory was read"))
    }

    fn withdraw(&mut self) {
        self.ours.wipe();
    }
}

impl Memory {
    /// Whether this is still the peer's memory, of which nothing went back to its owner before what was read last.
    fn is_there(&self) -> io::Result<bool> {
        // What was read before stays before this.
        fence(Ordering::Acquire);
        let mut bytes = [MaybeUninit::uninit(); 16];
        if *self.read(self.mark.address, &mut bytes)? != self.mark.bytes {
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
fn refused(error: &io::Error) -> String {
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
    fn what_takes_longer_than_two_copies_side_by_side_is_not_worth_it() {
        let of = |micros| Duration::from_micros(micros);
        for read in [0, 50, 100, 124] {
            assert_eq!(too_slow(of(100), of(read)), None);
        }
        let why = too_slow(of(100), of(250)).unwrap();
        assert!(why.contains("2.5 times as long as memcpy"), "{why}");
        assert!(too_slow(Duration::ZERO, of(1)).is_some());
    }

    #[test]
    fn the_probe_has_the_same_to_say_each_time() {
        assert_eq!(slowness(), slowness());
    }
}
