//! Admission of unauthenticated peers: a bounded number of places, and the rules of eviction.
//!
//! Invariant: a new peer waits for a bounded time, whatever the admitted peers do. So no peer can keep a
//! place that another one needs. [Why](../../../docs/design/0029-admission.md).

use std::collections::{HashMap, hash_map};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;

/// How long a peer that has sent nothing keeps its place while others wait; twice that once it has sent
/// something. Evictions shorten it, down to [`GRACE_TIME_MIN`].
const GRACE_TIME: Duration = Duration::from_millis(200);
const GRACE_TIME_MIN: Duration = Duration::from_millis(1);
/// The grace time recovers by one part in this many of the time that passes without an eviction.
const RECOVERY: u32 = 10;
/// How many failures a source may have before its answers are delayed, and the shortest and longest delay.
/// Each further failure doubles the delay.
const FAILURES_FREE: u32 = 8;
const DELAY_MIN: Duration = Duration::from_millis(10);
const DELAY_MAX: Duration = Duration::from_millis(640);
/// The time after which one failure is forgotten.
const FAILURE_TIME: Duration = Duration::from_secs(2);
/// The most sources whose failures are remembered.
const FAILED_SOURCES_MAX: usize = 256;
/// How long `accept` pauses if descriptors have run out and no peer could be evicted.
const PAUSE: Duration = Duration::from_millis(50);
/// After descriptors ran out, one more place is allowed for each of these intervals.
const SCARCE_TIME: Duration = Duration::from_millis(500);

/// The origin of a peer, by which places are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A host, by its address; for IPv6 its network of 64 bits, since one host may own all of that.
    Host(IpAddr),
    /// A user of this host.
    User(u32),
    /// This process, which is never evicted.
    Process,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self::Host(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()
            }
            address => address,
        })
    }
}

/// A bounded number of places for unauthenticated peers.
///
/// A peer that finds no free place takes another peer's. The victim is, in this order: a peer that failed to
/// authenticate; a peer of the larger class, active or silent, so that neither class crowds out the other;
/// one of the source with most places in that class; the one that advanced longest ago.
#[derive(Clone, Debug)]
pub struct Admission(Arc<AdmissionShared>);

#[derive(Debug)]
struct AdmissionShared {
    state: Mutex<AdmissionState>,
    /// Notified if a place is free, or its peer has failed to authenticate.
    freed: Notify,
}

#[derive(Debug)]
struct AdmissionState {
    peers: Vec<AdmittedPeer>,
    /// The number of peers of each source in each class, without zeros.
    counts: HashMap<(Class, Source), usize>,
    next: u64,
    capacity: usize,
    /// When descriptors ran out, and the number of places at that time.
    scarce: Option<(Duration, usize)>,
    /// When a peer was last evicted, and the grace time at that time.
    evicted: Option<(Duration, Duration)>,
    failures: HashMap<Source, Failures>,
}

/// An admitted peer.
#[derive(Debug)]
struct AdmittedPeer {
    number: u64,
    source: Source,
    class: Class,
    advanced: Duration,
    evicted: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Silent,
    Active,
    Failed,
}

/// The authentication failures of a source.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    since: Duration,
}

/// One peer's place, released on drop.
#[derive(Debug)]
#[must_use = "the place is released at once"]
pub struct Admitted {
    admission: Admission,
    number: u64,
    source: Source,
    evicted: Arc<Notify>,
}

impl Admission {
    /// Creates `capacity` places, at least one.
    pub fn new(capacity: usize) -> Self {
        let state = AdmissionState {
            peers: Vec::new(),
            counts: HashMap::new(),
            next: 0,
            capacity: capacity.max(1),
            scarce: None,
            evicted: None,
            failures: HashMap::new(),
        };
        Self(Arc::new(AdmissionShared { state: Mutex::new(state), freed: Notify::new() }))
    }

    /// Admits a peer at time `now` of any monotonic clock, and evicts at most one other peer. If there is no
    /// place, returns the time at which to try again.
    fn admit(&self, source: Source, now: Duration) -> Result<Admitted, Duration> {
        let mut state = self.state();
        if state.peers.len() >= state.capacity(now) {
            state.evict(now)?;
        }
        let (number, evicted) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.insert(AdmittedPeer {
            number,
            source,
            class: Class::Silent,
            advanced: now,
            evicted: evicted.clone(),
        });
        Ok(Admitted { admission: self.clone(), number, source, evicted })
    }

    /// Waits for a place and returns it.
    pub(crate) async fn place(&self, source: Source, env: &dyn Environment) -> Admitted {
        loop {
            match self.admit(source, env.now()) {
                Ok(admitted) => return admitted,
                // Whichever happens first.
                Err(until) => drop(within(env, until, self.0.freed.notified()).await),
            }
        }
    }

    /// As [`place`](Self::place), on tokio's clock, with time measured from `origin`.
    pub async fn place_since(&self, origin: Instant, source: Source) -> Admitted {
        loop {
            match self.admit(source, origin.elapsed()) {
                Ok(admitted) => return admitted,
                // Whichever happens first.
                Err(until) => drop(timeout_at((origin + until).into(), self.0.freed.notified()).await),
            }
        }
    }

    /// Handles an error of `accept`. Returns how long to wait before the next call. If descriptors ran out,
    /// peers are evicted.
    pub fn accept_failed(&self, error: &io::Error, now: Duration) -> Duration {
        // These errors concern the new connection only, and the next call may succeed.
        const OF_NEWCOMER: [Errno; 10] = [
            Errno::CONNABORTED,
            Errno::INTR,
            Errno::PROTO,
            Errno::PERM,
            Errno::NETDOWN,
            Errno::NETUNREACH,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::OPNOTSUPP,
        ];
        let is_over = Errno::from_io_error(error).is_some_and(|errno| OF_NEWCOMER.contains(&errno));
        if is_over || self.make_room(now) { Duration::ZERO } else { PAUSE }
    }

    /// Evicts half of the peers, because descriptors ran out. Returns false if there was none. The rest of
    /// the process needs descriptors too, so the number of places stays reduced for a while.
    fn make_room(&self, now: Duration) -> bool {
        let mut state = self.state();
        let before = state.peers.len();
        state.scarce = Some((now, before / 2));
        while state.peers.len() > before / 2 {
            let Some(at) = state.victim(Class::Failed).or_else(|| state.largest_victim()) else { break };
            state.remove(at).evicted.notify_one();
        }
        state.peers.len() < before
    }

    fn state(&self) -> MutexGuard<'_, AdmissionState> {
        self.0.state.lock()
    }
}

impl AdmissionState {
    fn capacity(&self, now: Duration) -> usize {
        self.scarce.map_or(self.capacity, |(since, left)| {
            let more = now.saturating_sub(since).as_millis() / SCARCE_TIME.as_millis();
            left.saturating_add(more.try_into().unwrap_or(usize::MAX)).clamp(1, self.capacity)
        })
    }

    fn grace_time(&self, now: Duration) -> Duration {
        let left = |(at, left)| left + now.saturating_sub(at) / RECOVERY;
        self.evicted.map_or(GRACE_TIME, left).clamp(GRACE_TIME_MIN, GRACE_TIME)
    }

    /// Evicts a peer, or returns the time until which none may be evicted.
    fn evict(&mut self, now: Duration) -> Result<(), Duration> {
        let grace_time = self.grace_time(now);
        let due = |at: usize| {
            let AdmittedPeer { class, advanced, .. } = self.peers[at];
            advanced + if class == Class::Active { grace_time * 2 } else { grace_time }
        };
        let at = match self.victim(Class::Failed) {
            Some(at) => at,
            None => {
                let larger = self.largest_victim().ok_or(now + GRACE_TIME)?;
                // A silent peer may also be evicted from the smaller class, but an active one may not.
                let candidates = [larger, self.victim(Class::Silent).unwrap_or(larger)];
                let overdue = candidates.into_iter().find(|at| due(*at) <= now);
                overdue.ok_or_else(|| candidates.map(due).into_iter().min().unwrap_or(now))?
            }
        };
        self.evicted = Some((now, grace_time * 7 / 8));
        self.remove(at).evicted.notify_one();
        Ok(())
    }

    /// Returns the victim if no peer has failed to authenticate.
    fn largest_victim(&self) -> Option<usize> {
        let size = |class| self.peers.iter().filter(|entry| entry.class == class).count();
        let (larger, smaller) = match size(Class::Active) > size(Class::Silent) {
            true => (Class::Active, Class::Silent),
            false => (Class::Silent, Class::Active),
        };
        self.victim(larger).or_else(|| self.victim(smaller))
    }

    /// Returns the victim of a class: of the source with most places in it, the peer that advanced longest
    /// ago.
    fn victim(&self, class: Class) -> Option<usize> {
        let of_class =
            || self.counts.iter().filter(|((of, source), _)| *of == class && *source != Source::Process);
        let most = of_class().map(|(_, count)| *count).max()?;
        let sources = of_class().filter(|(_, count)| **count == most);
        let sources: Vec<Source> = sources.map(|((_, source), _)| *source).collect();
        let peers = self.peers.iter().enumerate();
        let of_sources = peers.filter(|(_, entry)| entry.class == class && sources.contains(&entry.source));
        of_sources.min_by_key(|(_, entry)| (entry.advanced, entry.number)).map(|(at, _)| at)
    }

    fn insert(&mut self, entry: AdmittedPeer) {
        *self.counts.entry((entry.class, entry.source)).or_default() += 1;
        self.peers.push(entry);
    }

    fn remove(&mut self, at: usize) -> AdmittedPeer {
        let entry = self.peers.swap_remove(at);
        if let hash_map::Entry::Occupied(mut count) = self.counts.entry((entry.class, entry.source)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        entry
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.peers.iter().position(|entry| entry.number == number)
    }

    /// Moves an admitted peer to a class.
    fn put(&mut self, number: u64, class: Class, advanced: Option<Duration>) {
        if let Some(at) = self.position(number) {
            let entry = self.remove(at);
            let advanced = advanced.unwrap_or(entry.advanced);
            self.insert(AdmittedPeer { class, advanced, ..entry });
        }
    }

    /// Counts a failure of `source`. Returns how long to delay its answer.
    fn failed(&mut self, source: Source, now: Duration) -> Duration {
        let count = |failures: &Failures| {
            let forgotten = now.saturating_sub(failures.since).as_nanos() / FAILURE_TIME.as_nanos();
            failures.count.saturating_sub(forgotten.try_into().unwrap_or(u32::MAX))
        };
        if self.failures.len() >= FAILED_SOURCES_MAX && !self.failures.contains_key(&source) {
            self.failures.retain(|_, failures| count(failures) > 0);
            let least = self.failures.iter().min_by_key(|(_, failures)| count(failures));
            if let (true, Some(least)) = (self.failures.len() >= FAILED_SOURCES_MAX, least.map(|(of, _)| *of))
            {
                self.failures.remove(&least);
            }
        }
        let failures = self.failures.entry(source).or_insert(Failures { count: 0, since: now });
        // The count is capped where the delay reaches its maximum.
        let count = (count(failures) + 1).min(FAILURES_FREE + 8);
        *failures = Failures { count, since: now };
        match count.checked_sub(FAILURES_FREE + 1) {
            None => Duration::ZERO,
            Some(doubled) => (DELAY_MIN * (1 << doubled)).min(DELAY_MAX),
        }
    }
}

impl Admitted {
    /// Returns the origin of the peer.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Records that the peer completed a step of the handshake, of which there are few.
    pub fn advanced(&self, now: Duration) {
        self.admission.state().put(self.number, Class::Active, Some(now));
    }

    /// Records that the peer failed to authenticate. Returns the time until which to delay its answer; it is
    /// evicted first meanwhile.
    pub(crate) fn failed(&self, now: Duration) -> Duration {
        let mut state = self.admission.state();
        state.put(self.number, Class::Failed, None);
        let delay = state.failed(self.source, now);
        drop(state);
        self.admission.0.freed.notify_one();
        now + delay
    }

    /// Runs `task` while the peer has its place. Returns `None` if the peer was evicted, and drops `task`.
    pub async fn hold<T>(&self, task: impl Future<Output = T>) -> Option<T> {
        let (mut task, mut evicted) = (std::pin::pin!(task), std::pin::pin!(self.evicted.notified()));
        std::future::poll_fn(|cx| {
            if evicted.as_mut().poll(cx).is_ready() {
                return std::task::Poll::Ready(None);
            }
            task.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        // An evicted peer has no place.
        if let Some(at) = state.position(self.number) {
            state.remove(at);
        }
        drop(state);
        self.admission.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
