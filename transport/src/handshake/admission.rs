//! Room for unauthenticated peers: who is admitted, and who makes room.
//!
//! The invariant: a newcomer waits for a bounded time, whatever the peers do that are there already. So no peer can hold a
//! place that another one needs. [Why so](../../../docs/design/0029-admission.md).

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

/// How long a peer that has said nothing keeps its place while newcomers wait; twice that once it has said something.
/// Evictions shorten it, down to [`GRACE_TIME_MIN`].
const GRACE_TIME: Duration = Duration::from_millis(200);
const GRACE_TIME_MIN: Duration = Duration::from_millis(1);
/// In this many times as long as it lasts, grace_time comes back where nobody is evicted.
const RECOVERY: u32 = 10;
/// How often a source may fail to authenticate before its answers are delayed, and by how much then: each failure doubles it.
const FAILURES_FREE: u32 = 8;
const DELAY_MIN: Duration = Duration::from_millis(10);
const DELAY_MAX: Duration = Duration::from_millis(640);
/// One failure is forgotten in this time.
const FAILURE_TIME: Duration = Duration::from_secs(2);
/// How many sources' failures are remembered.
const FAILED_SOURCES_MAX: usize = 256;
/// How long whoever has no descriptors, and no peer to make room, waits before it accepts again.
const PAUSE: Duration = Duration::from_millis(50);
/// After a lack of descriptors, one more place in this time.
const SCARCE_TIME: Duration = Duration::from_millis(500);

/// Where a peer comes from: what it cannot have many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A host, by its address; of IPv6, the network of 64 bits, which one host may have to itself.
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
/// A newcomer that finds none free takes the place of another peer. That one is, in this order: one that failed to
/// authenticate; one of the larger of two classes, those that have said something and those that have not, so that
/// neither crowds out the other; one of the source that has most places there; the one that advanced longest ago.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A place is free, or its peer has failed.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    peers: Vec<Entry>,
    /// How many of the peers of a source are in a class, where there are some.
    counts: HashMap<(Class, Source), usize>,
    next: u64,
    capacity: usize,
    /// When descriptors ran out, and how many places were left then.
    scarce: Option<(Duration, usize)>,
    /// When a peer was last evicted, and what grace_time was left then.
    evicted: Option<(Duration, Duration)>,
    failures: HashMap<Source, Failures>,
}

/// A peer in its place.
#[derive(Debug)]
struct Entry {
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

/// How often a source failed to authenticate.
#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    since: Duration,
}

/// One peer's place, given back when this is dropped.
#[derive(Debug)]
#[must_use = "the place is given back at once"]
pub struct Admitted {
    admission: Admission,
    number: u64,
    source: Source,
    evicted: Arc<Notify>,
}

impl Admission {
    /// So many places, at least one.
    pub fn new(capacity: usize) -> Self {
        let state = State {
            peers: Vec::new(),
            counts: HashMap::new(),
            next: 0,
            capacity: capacity.max(1),
            scarce: None,
            evicted: None,
            failures: HashMap::new(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), freed: Notify::new() }))
    }

    /// A place for a newcomer, at a time of any clock that never goes back; or until when to wait for one. It evicts at most
    /// one other peer.
    fn admit(&self, source: Source, now: Duration) -> Result<Admitted, Duration> {
        let mut state = self.state();
        if state.peers.len() >= state.capacity(now) {
            state.evict(now)?;
        }
        let (number, evicted) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.insert(Entry { number, source, class: Class::Silent, advanced: now, evicted: evicted.clone() });
        Ok(Admitted { admission: self.clone(), number, source, evicted })
    }

    /// A place for a newcomer, as soon as there is one.
    pub(crate) async fn place(&self, source: Source, env: &dyn Environment) -> Admitted {
        loop {
            match self.admit(source, env.now()) {
                Ok(admitted) => return admitted,
                // Whichever comes first.
                Err(until) => drop(within(env, until, self.0.freed.notified()).await),
            }
        }
    }

    /// The same on tokio's clock, whose time here is what has passed since `origin`.
    pub async fn place_since(&self, origin: Instant, source: Source) -> Admitted {
        loop {
            match self.admit(source, origin.elapsed()) {
                Ok(admitted) => return admitted,
                // Whichever comes first.
                Err(until) => drop(timeout_at((origin + until).into(), self.0.freed.notified()).await),
            }
        }
    }

    /// What to do about `error`, with which `accept` failed: how long to wait before the next call. Where descriptors ran out,
    /// peers make room.
    pub fn accept_failed(&self, error: &io::Error, now: Duration) -> Duration {
        // Such an error is the newcomer's, and the next call may succeed.
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

    /// Half of the peers make room, because descriptors ran out: `false` if there was none. The rest of the process needs
    /// some as well, so there are fewer places for a while.
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

impl State {
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

    /// Takes a place from a peer, or says until when none may be taken.
    fn evict(&mut self, now: Duration) -> Result<(), Duration> {
        let grace_time = self.grace_time(now);
        let due = |at: usize| {
            let Entry { class, advanced, .. } = self.peers[at];
            advanced + if class == Class::Active { grace_time * 2 } else { grace_time }
        };
        let at = match self.victim(Class::Failed) {
            Some(at) => at,
            None => {
                let larger = self.largest_victim().ok_or(now + GRACE_TIME)?;
                // One that has said nothing makes room as well, but none that has said something and whose class is smaller.
                let candidates = [larger, self.victim(Class::Silent).unwrap_or(larger)];
                let overdue = candidates.into_iter().find(|at| due(*at) <= now);
                overdue.ok_or_else(|| candidates.map(due).into_iter().min().unwrap_or(now))?
            }
        };
        self.evicted = Some((now, grace_time * 7 / 8));
        self.remove(at).evicted.notify_one();
        Ok(())
    }

    /// Who makes room where nobody has failed.
    fn largest_victim(&self) -> Option<usize> {
        let size = |class| self.peers.iter().filter(|entry| entry.class == class).count();
        let (larger, smaller) = match size(Class::Active) > size(Class::Silent) {
            true => (Class::Active, Class::Silent),
            false => (Class::Silent, Class::Active),
        };
        self.victim(larger).or_else(|| self.victim(smaller))
    }

    /// Who makes room in a class: of the source that has most places in it, the one that advanced longest ago.
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

    fn insert(&mut self, entry: Entry) {
        *self.counts.entry((entry.class, entry.source)).or_default() += 1;
        self.peers.push(entry);
    }

    fn remove(&mut self, at: usize) -> Entry {
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

    /// Puts a peer that has its place still in a class.
    fn put(&mut self, number: u64, class: Class, advanced: Option<Duration>) {
        if let Some(at) = self.position(number) {
            let entry = self.remove(at);
            let advanced = advanced.unwrap_or(entry.advanced);
            self.insert(Entry { class, advanced, ..entry });
        }
    }

    /// Counts a failure of `source`, and tells how long its answer is delayed.
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
        // Beyond what doubles the delay nothing is remembered.
        let count = (count(failures) + 1).min(FAILURES_FREE + 8);
        *failures = Failures { count, since: now };
        match count.checked_sub(FAILURES_FREE + 1) {
            None => Duration::ZERO,
            Some(doubled) => (DELAY_MIN * (1 << doubled)).min(DELAY_MAX),
        }
    }
}

impl Admitted {
    /// Where the peer comes from.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// The peer went on to the next step, of which there are few.
    pub fn advanced(&self, now: Duration) {
        self.admission.state().put(self.number, Class::Active, Some(now));
    }

    /// The peer failed to authenticate: until when its answer is delayed, while it is the first to make room.
    pub(crate) fn failed(&self, now: Duration) -> Duration {
        let mut state = self.admission.state();
        state.put(self.number, Class::Failed, None);
        let delay = state.failed(self.source, now);
        drop(state);
        self.admission.0.freed.notify_one();
        now + delay
    }

    /// Runs `task` while the peer has its place; `None` says that it was evicted, and `task` was dropped.
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
        // Whoever was evicted has none.
        if let Some(at) = state.position(self.number) {
            state.remove(at);
        }
        drop(state);
        self.admission.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
