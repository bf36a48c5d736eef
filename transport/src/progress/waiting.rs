//! How a caller waits on a connection: it polls the link itself, spins briefly, then sleeps on its own reactor as the
//! link's lead.
//!
//! The invariant: a link with a source always has somebody who will notice it: the lead, the driver (while it is armed),
//! or the driver's look every 50 ms. And a lead on which others depend is polled when it should be, or loses the link to the
//! driver within a millisecond: its task may be busy with something else, and nothing says so.

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
use crate::backend::{Link, Progress};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;
use crate::platform::reactor::{Owner, register};
use crate::progress::driver::{Driver, is_ready};

/// How a waiting caller divides its time between spinning (fast, burns a core) and sleeping (slow to wake, free).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Polls until something comes, and never gives its core away. For threads that have a core each: if the peer, or anybody
    /// else, needs this one, every wait takes until the scheduler takes the core away, which is milliseconds.
    Spin,
    /// Spins for 50 µs, yielding the core between polls, then sleeps. Where a yield takes over 500 µs, others want the
    /// core: the thread then sleeps at once, for 16 times as long as the yield took, and for up to 4 s where it happens again.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

/// A link, and who is waiting for it to move.
#[derive(Debug)]
pub(crate) struct Waiters {
    link: Arc<dyn Link>,
    driver: Arc<Driver>,
    /// The connection's number with the driver.
    number: u64,
    wait: Wait,
    state: Mutex<State>,
    /// Polls by waiters, so that the driver can see a link that nobody polls.
    polls: AtomicU64,
    /// The driver sleeps on the source.
    driver_polled: AtomicBool,
    /// Whose link it is.
    pub(crate) process: Process,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    leader: Option<Leader>,
    /// Oldest first.
    followers: BTreeMap<u64, Waker>,
    reactor: Option<Reactor>,
    /// How often a lead was polled or fell asleep.
    turns: u64,
    watch: Watch,
}

/// The waiter that spins and sleeps on the link for all. It has a reactor, or the link is the driver's.
#[derive(Debug)]
struct Leader {
    waiter: u64,
    waker: Waker,
    /// It sleeps, and its reactor wakes it.
    asleep: bool,
    /// It sleeps on writability too.
    writable: bool,
}

/// How the driver learns that a lead on which others depend is not polled: no turn has passed since.
#[derive(Clone, Copy, Debug, Default)]
enum Watch {
    /// Nobody depends on one.
    #[default]
    Off,
    /// The lead sleeps, and nothing has come. The driver learns once that the source is ready, and gives it a moment then.
    StandBy { turns: u64 },
    /// The driver looks in a moment.
    Due { turns: u64 },
}

#[derive(Debug)]
struct Reactor {
    runtime: Id,
    descriptor: AsyncFd<Owner<SourceOf>>,
}

/// A link with a source; it holds the link, so that the descriptor stays open while a reactor knows it.
#[derive(Debug)]
struct SourceOf(Arc<dyn Link>);

impl AsFd for SourceOf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.source().expect("checked before, and a link keeps its source").descriptor
    }
}

impl Waiters {
    pub(crate) fn new(link: Arc<dyn Link>, driver: Arc<Driver>, number: u64, wait: Wait) -> Self {
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

    /// Waits until `check` is ready, moving the link meanwhile. `check` must leave its waker with whatever it polls. Whoever
    /// calls knows that the link is this process's.
    pub(crate) fn until<T, F>(&self, check: F) -> Until<'_, F>
    where
        F: FnMut(&mut Context<'_>) -> Poll<T> + Unpin,
    {
        Until::new(self, check)
    }

    /// How often waiters polled so far.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Moves the link on behalf of its callers.
    pub(crate) fn poll_link(&self) -> Progress {
        // What two count at the same time may count once: all that it tells is whether anybody polled.
        self.polls.store(self.polls().wrapping_add(1), Ordering::Relaxed);
        self.link.progress()
    }

    /// Lets the driver sleep on the source.
    pub(crate) fn poll_by_driver(&self) {
        if let Some(source) = self.link.source() {
            self.driver_polled.store(true, Ordering::Release);
            self.driver.poll_by_driver(self.number, source);
            if !self.link.arm() {
                self.driver.drive_soon(self.number);
            }
        }
    }

    /// Sees to it that somebody notices when the link can be moved on: the lead, if there is one. A driver armed beside a lead
    /// would wake for what the lead is about to do, and take the poll lock from it.
    pub(crate) fn watch(&self) {
        if self.is_driver_polled() {
            return self.poll_by_driver();
        }
        let Some(source) = self.link.source().filter(|source| source.writable || source.doorbell) else {
            return;
        };
        let mut state = self.state();
        self.doze_again(&mut state);
        if !source.writable {
            return;
        }
        if state.leader.is_some() {
            self.wake_for_output(&mut state);
        } else {
            drop(state);
            self.poll_by_driver();
        }
    }

    /// Takes the link from its lead, who has not polled it in time, for the driver.
    pub(crate) fn take_over(&self) {
        let mut state = self.state();
        if let Some(leader) = state.leader.take() {
            state.followers.insert(leader.waiter, leader.waker);
        }
        drop(state);
        self.poll_by_driver();
    }

    /// The driver was told that the source is ready: whether its lead is given a moment to poll it.
    pub(crate) fn is_left_to_its_leader(&self) -> bool {
        if self.is_driver_polled() {
            return false;
        }
        let mut state = self.state();
        let Watch::StandBy { turns } = state.watch else { return false };
        self.expect_turn(&mut state, turns);
        true
    }

    /// Whether the lead has let its moment pass, and others depend on it.
    pub(crate) fn is_overdue(&self) -> bool {
        let mut state = self.state();
        let Watch::Due { turns } = state.watch else { return false };
        state.watch = Watch::Off;
        if turns != state.turns {
            self.see_to(&mut state);
            return false;
        }
        let source = self.link.source();
        if state.followers.is_empty() && !source.is_some_and(|source| source.writable) {
            return false;
        }
        let asleep = state.leader.as_ref().is_some_and(|leader| leader.asleep);
        // A doorbell rings for who asked since the last poll, which may have been a follower's.
        if let Some(source) = source.filter(|source| asleep && !is_ready(*source) && self.link.arm()) {
            state.watch = Watch::StandBy { turns };
            self.driver.stand_by(self.number, source);
            return false;
        }
        true
    }

    /// Leaves the link to whoever leads it now.
    fn disarm(&self, state: &mut State) {
        if self.driver_polled.swap(false, Ordering::AcqRel)
            && let Some(source) = self.link.source()
        {
            self.driver.disarm(self.number, source);
            if matches!(state.watch, Watch::StandBy { .. }) {
                state.watch = Watch::Off;
            }
        }
    }

    /// Nobody polls the link, or the driver does.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state().leader.is_none()
    }

    /// Its lead sleeps, and will be woken.
    pub(crate) fn has_sleeping_leader(&self) -> bool {
        self.state().leader.as_ref().is_some_and(|leader| leader.asleep)
    }

    /// Whether the driver sleeps on the source.
    pub(crate) fn is_driver_polled(&self) -> bool {
        self.driver_polled.load(Ordering::Acquire)
    }

    /// Has the driver watch over whoever leads, if others depend on it.
    fn see_to(&self, state: &mut State) {
        if state.followers.is_empty() || !matches!(state.watch, Watch::Off) || self.is_driver_polled() {
            return;
        }
        let turns = state.turns;
        self.expect_turn(state, turns);
    }

    fn expect_turn(&self, state: &mut State, turns: u64) {
        if !matches!(state.watch, Watch::Due { .. }) {
            state.watch = Watch::Due { turns };
            self.driver.check_soon(self.number);
        }
    }

    /// Asks for the doorbell again on behalf of a lead that sleeps: somebody else polled the link meanwhile, which silences it.
    fn doze_again(&self, state: &mut State) {
        if let Some(leader) = state.leader.as_mut().filter(|leader| leader.asleep)
            && self.link.source().is_some_and(|source| source.doorbell)
            && !self.link.arm()
        {
            leader.asleep = false;
            leader.waker.wake_by_ref();
        }
    }

    /// Has a lead that sleeps on bytes alone sleep on room too.
    fn wake_for_output(&self, state: &mut State) {
        let turns = state.turns;
        let Some(leader) = state.leader.as_mut().filter(|leader| !leader.writable) else { return };
        leader.asleep = false;
        leader.waker.wake_by_ref();
        self.expect_turn(state, turns);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Makes the waiter the lead, who spins and sleeps for all, and takes the link from the driver; false if there is another,
    /// who will wake it when its turn comes.
    fn leader(&self, waiter: &mut Option<u64>, cx: &mut Context<'_>) -> bool {
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
            // A task polls one of its futures, and may leave the others be: what wakes one of them wakes this one.
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
            state.turns += 1;
            self.disarm(&mut state);
        } else {
            state.follow(me, cx);
            self.doze_again(&mut state);
            if self.link.source().is_some_and(|source| source.writable) {
                self.wake_for_output(&mut state);
            }
        }
        self.see_to(&mut state);
        is_leader
    }

    /// Lets the lead sleep. False: the link may move now, or another leads, so poll again.
    fn park(&self, me: u64, cx: &mut Context<'_>) -> bool {
        let mut state = self.state();
        let Some(leader) = state.leader.as_mut().filter(|leader| leader.waiter == me) else { return false };
        let (Ok(runtime), Some(source)) = (Handle::try_current(), self.link.source()) else {
            self.leave_to_driver(state, me, cx);
            return true;
        };
        leader.writable = source.writable;
        self.disarm(&mut state);
        if state.reactor.as_ref().is_none_or(|reactor| reactor.runtime != runtime.id()) {
            state.reactor = None;
            let interest = Interest::READABLE | Interest::WRITABLE;
            let Some(descriptor) = register(SourceOf(self.link.clone()), interest) else {
                self.leave_to_driver(state, me, cx);
                return true;
            };
            state.reactor = Some(Reactor { runtime: runtime.id(), descriptor });
        }
        let State { reactor: Some(Reactor { descriptor, .. }), leader: Some(leader), turns, .. } =
            &mut *state
        else {
            return false;
        };
        if !self.link.arm() {
            return false;
        }
        let mut asleep = self.sleep_until_ready(descriptor.poll_read_ready(cx));
        if source.writable && !source.doorbell {
            asleep = asleep.and(self.sleep_until_ready(descriptor.poll_write_ready(cx)));
        }
        match asleep {
            Asleep::Yes => {
                leader.asleep = true;
                *turns += 1;
                true
            }
            Asleep::No => false,
            Asleep::Never => {
                self.leave_to_driver(state, me, cx);
                true
            }
        }
    }

    /// The lead has no reactor: it follows the driver.
    fn leave_to_driver(&self, mut state: MutexGuard<'_, State>, me: u64, cx: &mut Context<'_>) {
        state.leader = None;
        state.follow(me, cx);
        drop(state);
        self.poll_by_driver();
    }

    fn sleep_until_ready<T: AsRawFd>(
        &self,
        ready: Poll<std::io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, T>>>,
    ) -> Asleep {
        match ready {
            Poll::Pending => Asleep::Yes,
            Poll::Ready(Ok(mut guard)) => {
                // Readiness may be forgotten only after the link was seen to be dry since.
                if self.link.progress() == Progress::Idle {
                    guard.clear_ready();
                }
                Asleep::No
            }
            // The caller's runtime is shutting down.
            Poll::Ready(Err(_)) => Asleep::Never,
        }
    }

    fn leave(&self, waiter: u64) {
        let mut state = self.state();
        state.followers.remove(&waiter);
        state.leader.take_if(|leader| leader.waiter == waiter);
        if state.leader.is_none() && !self.is_driver_polled() {
            // Whoever is woken leads when it is polled, or passes it on when it leaves in its turn.
            let next = state.followers.pop_first();
            self.see_to(&mut state);
            drop(state);
            if let Some((_, waker)) = next {
                waker.wake();
            }
        }
    }
}

impl State {
    fn follow(&mut self, me: u64, cx: &mut Context<'_>) {
        self.followers
            .entry(me)
            .and_modify(|known| known.clone_from(cx.waker()))
            .or_insert_with(|| cx.waker().clone());
    }
}

/// Whether a reactor wakes the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asleep {
    /// It will.
    Yes,
    /// The link may move now.
    No,
    /// It cannot.
    Never,
}

impl Asleep {
    fn and(self, other: Self) -> Self {
        if self == Self::Yes { other } else { self }
    }
}
