//! How a caller waits on a connection: it polls the link itself, spins briefly, then sleeps on its own
//! reactor as the link's leader.
//!
//! The invariant: progress on a link with a source is always noticed, by the leader, by the driver (while the
//! link is armed), or by the driver's sweep within 50 ms. A leader with followers polls in time or loses the
//! link to the driver within a millisecond, because its task may be busy with other work without any sign of
//! it.

mod until;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use self::until::Until;
use crate::backend::{CurrentLink, Link, Progress};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;
use crate::platform::reactor::{Owner, register};
use crate::progress::driver::{Driver, is_ready};

/// How a waiting caller divides its time between spinning and sleeping. Spinning reacts fast and occupies a
/// core. Sleeping frees the core and wakes more slowly.
///
/// ```
/// use towline::{Endpoint, Wait};
///
/// let endpoint = Endpoint::builder().wait(Wait::Sleep).build()?;
/// # drop(endpoint);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Polls until the operation ends, and never yields the core. For threads with a core each. If the peer
    /// or another thread needs this core, every wait lasts until the scheduler takes the core away, which is
    /// milliseconds.
    Spin,
    /// Spins for 50 µs, yielding the core between polls, then sleeps. A yield over 500 µs shows that another
    /// thread needs the core: the thread then sleeps at once, for 16 times as long as the yield took, and up
    /// to 4 s where that repeats.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

/// A link and the callers that wait for it to make progress.
#[derive(Debug)]
pub(crate) struct Waiters {
    link: CurrentLink,
    driver: Arc<Driver>,
    /// The connection's number with the driver.
    number: u64,
    wait: Wait,
    state: Mutex<WaitersState>,
    /// The number of polls by waiters. It shows the driver a link that is not polled.
    polls: AtomicU64,
    /// The driver sleeps on the source.
    driver_polled: AtomicBool,
    /// The process that made the link.
    pub(crate) process: Process,
}

#[derive(Debug, Default)]
struct WaitersState {
    next: u64,
    leader: Option<Leader>,
    /// Oldest first.
    followers: BTreeMap<u64, Waker>,
    reactor: Option<Reactor>,
    /// The number of times that a leader polled or went to sleep.
    leader_polls: u64,
    leader_check: LeaderCheck,
}

/// The waiter that spins and sleeps on the link for all. It has a reactor; otherwise the driver polls the
/// link.
#[derive(Debug)]
struct Leader {
    waiter: u64,
    waker: Waker,
    /// It sleeps, and its reactor wakes it.
    asleep: bool,
    /// It also sleeps on writability.
    writable: bool,
}

/// How the driver detects that a leader with followers does not poll: `leader_polls` has not changed since.
#[derive(Clone, Copy, Debug, Default)]
enum LeaderCheck {
    /// The leader has no followers.
    #[default]
    None,
    /// The leader sleeps and the source is not ready. The driver is notified once when it is, and then
    /// schedules a check.
    OnReady { leader_polls: u64 },
    /// A check by the driver is scheduled.
    Pending { leader_polls: u64 },
}

#[derive(Debug)]
struct Reactor {
    runtime: Id,
    descriptor: AsyncFd<Owner<LinkSource>>,
}

/// A link with a source. It holds the link, so that the descriptor stays open while a reactor has it
/// registered.
#[derive(Debug)]
struct LinkSource(Arc<dyn Link>);

impl AsFd for LinkSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.source().expect("checked before, and a link keeps its source").descriptor
    }
}

impl Waiters {
    pub(crate) fn new(link: CurrentLink, driver: Arc<Driver>, number: u64, wait: Wait) -> Self {
        Self {
            link,
            driver,
            number,
            wait,
            state: Mutex::default(),
            polls: AtomicU64::new(0),
            driver_polled: AtomicBool::new(false),
            process: Process::current(),
        }
    }

    /// Waits until `check` is ready, polling the link meanwhile. `check` must register its waker with
    /// whatever it polls. The caller has checked that the link belongs to this process.
    pub(crate) fn until<T, F>(&self, check: F) -> Until<'_, F>
    where
        F: FnMut(&mut Context<'_>) -> Poll<T> + Unpin,
    {
        Until::new(self, check)
    }

    /// Returns how often waiters have polled so far.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Polls the link on behalf of its callers.
    pub(crate) fn poll_link(&self) -> Progress {
        self.poll(&***self.link.load())
    }

    /// Polls the link, which the caller has loaded.
    fn poll(&self, link: &dyn Link) -> Progress {
        // Two concurrent polls may count once: the count only shows whether any waiter polled.
        self.polls.store(self.polls().wrapping_add(1), Ordering::Relaxed);
        link.progress()
    }

    /// Arms the driver: it sleeps on the source.
    pub(crate) fn poll_by_driver(&self) {
        let link = self.link.load();
        if let Some(source) = link.source() {
            self.driver_polled.store(true, Ordering::Release);
            self.driver.poll_by_driver(self.number, source);
            if !link.arm() {
                self.driver.drive_soon(self.number);
            }
        }
    }

    /// Makes sure that the next progress of the link is noticed: by the leader, if there is one. A driver
    /// armed beside a leader would wake for the leader's work, and take the poll lock from it.
    pub(crate) fn watch(&self) {
        if self.is_driver_polled() {
            return self.poll_by_driver();
        }
        let link = self.link.load();
        let Some(source) = link.source().filter(|source| source.writable || source.doorbell) else {
            return;
        };
        let mut state = self.state();
        self.rearm(&mut state);
        if !source.writable {
            return;
        }
        if state.leader.is_some() {
            self.wake_for_writability(&mut state);
        } else {
            drop(state);
            self.poll_by_driver();
        }
    }

    /// Takes the link from a leader that has not polled in time, and arms the driver.
    pub(crate) fn demote_leader(&self) {
        let mut state = self.state();
        if let Some(leader) = state.leader.take() {
            state.followers.insert(leader.waiter, leader.waker);
        }
        drop(state);
        self.poll_by_driver();
    }

    /// The source is ready. Returns whether the driver leaves the link to its leader for now; a check is then
    /// scheduled.
    pub(crate) fn awaits_leader(&self) -> bool {
        if self.is_driver_polled() {
            return false;
        }
        let mut state = self.state();
        let LeaderCheck::OnReady { leader_polls } = state.leader_check else { return false };
        self.expect_poll(&mut state, leader_polls);
        true
    }

    /// Returns whether the leader has not polled in time and other callers depend on it.
    pub(crate) fn is_leader_overdue(&self) -> bool {
        let mut state = self.state();
        let LeaderCheck::Pending { leader_polls } = state.leader_check else { return false };
        state.leader_check = LeaderCheck::None;
        if leader_polls != state.leader_polls {
            self.check_followed_leader(&mut state);
            return false;
        }
        let link = self.link.load();
        let source = link.source();
        if state.followers.is_empty() && !source.is_some_and(|source| source.writable) {
            return false;
        }
        let asleep = state.leader.as_ref().is_some_and(|leader| leader.asleep);
        // A doorbell is armed until the next poll, which may have been a follower's. So arm it again.
        if let Some(source) = source.filter(|source| asleep && !is_ready(*source) && link.arm()) {
            state.leader_check = LeaderCheck::OnReady { leader_polls };
            self.driver.poll_once_ready(self.number, source);
            return false;
        }
        true
    }

    /// Drops the reactor's registration of a link that was released, and with it the link.
    pub(crate) fn release(&self) {
        let reactor = self.state().reactor.take();
        // Without the lock: this may close the link's descriptors.
        drop(reactor);
    }

    /// Leaves the link to its leader.
    fn disarm(&self, state: &mut WaitersState) {
        if self.driver_polled.swap(false, Ordering::AcqRel)
            && let Some(source) = self.link.load().source()
        {
            self.driver.disarm(self.number, source);
            if matches!(state.leader_check, LeaderCheck::OnReady { .. }) {
                state.leader_check = LeaderCheck::None;
            }
        }
    }

    /// Returns whether the link has no leader.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state().leader.is_none()
    }

    /// Returns whether the leader sleeps and will be woken.
    pub(crate) fn has_sleeping_leader(&self) -> bool {
        self.state().leader.as_ref().is_some_and(|leader| leader.asleep)
    }

    /// Returns whether the driver sleeps on the source.
    pub(crate) fn is_driver_polled(&self) -> bool {
        self.driver_polled.load(Ordering::Acquire)
    }

    /// Makes the driver check the leader, if it has followers.
    fn check_followed_leader(&self, state: &mut WaitersState) {
        if state.followers.is_empty()
            || !matches!(state.leader_check, LeaderCheck::None)
            || self.is_driver_polled()
        {
            return;
        }
        let leader_polls = state.leader_polls;
        self.expect_poll(state, leader_polls);
    }

    fn expect_poll(&self, state: &mut WaitersState, leader_polls: u64) {
        if !matches!(state.leader_check, LeaderCheck::Pending { .. }) {
            state.leader_check = LeaderCheck::Pending { leader_polls };
            self.driver.check_soon(self.number);
        }
    }

    /// Arms the doorbell again for a sleeping leader: another caller has polled the link, which disarms it.
    fn rearm(&self, state: &mut WaitersState) {
        if let Some(leader) = state.leader.as_mut().filter(|leader| leader.asleep)
            && let link = self.link.load()
            && link.source().is_some_and(|source| source.doorbell)
            && !link.arm()
        {
            leader.asleep = false;
            leader.waker.wake_by_ref();
        }
    }

    /// Makes a leader that sleeps on readability only sleep on writability too.
    fn wake_for_writability(&self, state: &mut WaitersState) {
        let leader_polls = state.leader_polls;
        let Some(leader) = state.leader.as_mut().filter(|leader| !leader.writable) else { return };
        leader.asleep = false;
        leader.waker.wake_by_ref();
        self.expect_poll(state, leader_polls);
    }

    fn state(&self) -> MutexGuard<'_, WaitersState> {
        self.state.lock()
    }

    /// Makes the waiter the leader, which spins and sleeps for all, and takes the link from the driver.
    /// Returns false if there is another leader, which wakes this waiter when it leaves.
    fn try_lead(&self, waiter: &mut Option<u64>, cx: &mut Context<'_>) -> bool {
        let mut state = self.state();
        let me = *waiter.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        let is_leader = match &mut state.leader {
            Some(leader) if leader.waiter == me => {
                leader.waker.clone_from(cx.waker());
                leader.asleep = false;
                true
            }
            // A task may poll one of its futures and not the others. A waker that wakes one of them wakes the
            // task.
            Some(leader) if !leader.waker.will_wake(cx.waker()) => false,
            _ => {
                state.followers.remove(&me);
                let leader = Leader { waiter: me, waker: cx.waker().clone(), asleep: false, writable: false };
                if let Some(former) = state.leader.replace(leader) {
                    state.followers.insert(former.waiter, former.waker);
                }
                true
            }
        };
        if is_leader {
            state.leader_polls += 1;
            self.disarm(&mut state);
        } else {
            state.follow(me, cx);
            self.rearm(&mut state);
            if self.link.load().source().is_some_and(|source| source.writable) {
                self.wake_for_writability(&mut state);
            }
        }
        self.check_followed_leader(&mut state);
        is_leader
    }

    /// Puts the leader to sleep. Returns false if the link may make progress now, or another waiter leads:
    /// poll again.
    fn park(&self, me: u64, cx: &mut Context<'_>) -> bool {
        let mut state = self.state();
        let Some(leader) = state.leader.as_mut().filter(|leader| leader.waiter == me) else { return false };
        let link = self.link.load();
        let (Ok(runtime), Some(source)) = (Handle::try_current(), link.source()) else {
            self.follow_driver(state, me, cx);
            return true;
        };
        leader.writable = source.writable;
        self.disarm(&mut state);
        if state.reactor.as_ref().is_none_or(|reactor| reactor.runtime != runtime.id()) {
            state.reactor = None;
            let interest = Interest::READABLE | Interest::WRITABLE;
            let Some(descriptor) = register(LinkSource((**link).clone()), interest) else {
                self.follow_driver(state, me, cx);
                return true;
            };
            state.reactor = Some(Reactor { runtime: runtime.id(), descriptor });
        }
        let WaitersState {
            reactor: Some(Reactor { descriptor, .. }),
            leader: Some(leader),
            leader_polls,
            ..
        } = &mut *state
        else {
            return false;
        };
        if !link.arm() {
            return false;
        }
        let mut asleep = self.sleep_until_ready(descriptor.poll_read_ready(cx));
        if source.writable && !source.doorbell {
            asleep = asleep.and(self.sleep_until_ready(descriptor.poll_write_ready(cx)));
        }
        match asleep {
            ParkOutcome::Parked => {
                leader.asleep = true;
                *leader_polls += 1;
                true
            }
            ParkOutcome::Ready => false,
            ParkOutcome::NoReactor => {
                self.follow_driver(state, me, cx);
                true
            }
        }
    }

    /// Makes the leader a follower of the driver, because it has no reactor.
    fn follow_driver(&self, mut state: MutexGuard<'_, WaitersState>, me: u64, cx: &mut Context<'_>) {
        state.leader = None;
        state.follow(me, cx);
        drop(state);
        self.poll_by_driver();
    }

    fn sleep_until_ready<T: AsRawFd>(
        &self,
        ready: Poll<std::io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, T>>>,
    ) -> ParkOutcome {
        match ready {
            Poll::Pending => ParkOutcome::Parked,
            Poll::Ready(Ok(mut guard)) => {
                // Readiness may be cleared only after a poll has found the link idle since.
                if self.link.load().progress() == Progress::Idle {
                    guard.clear_ready();
                }
                ParkOutcome::Ready
            }
            // The caller's runtime is shutting down.
            Poll::Ready(Err(_)) => ParkOutcome::NoReactor,
        }
    }

    fn leave(&self, waiter: u64) {
        let mut state = self.state();
        state.followers.remove(&waiter);
        state.leader.take_if(|leader| leader.waiter == waiter);
        if state.leader.is_none() && !self.is_driver_polled() {
            // The woken waiter leads when it is polled, or passes leadership on when it leaves.
            let next = state.followers.pop_first();
            self.check_followed_leader(&mut state);
            drop(state);
            if let Some((_, waker)) = next {
                waker.wake();
            }
        }
    }
}

impl WaitersState {
    fn follow(&mut self, me: u64, cx: &mut Context<'_>) {
        self.followers
            .entry(me)
            .and_modify(|known| known.clone_from(cx.waker()))
            .or_insert_with(|| cx.waker().clone());
    }
}

/// The result of an attempt to sleep on a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParkOutcome {
    /// The reactor will wake the leader.
    Parked,
    /// The link may make progress now.
    Ready,
    /// The runtime is shutting down: its reactor wakes nothing.
    NoReactor,
}

impl ParkOutcome {
    fn and(self, other: Self) -> Self {
        if self == Self::Parked { other } else { self }
    }
}
