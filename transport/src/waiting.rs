//! How a caller waits on a connection: it polls the link itself, spins briefly, then sleeps on its own reactor as the
//! link's lead.
//!
//! The invariant: a link with a source always has somebody who will notice it: the lead, the driver (while it is armed),
//! or the driver's look every 50 ms.

mod until;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use self::until::Until;
use crate::backend::{Link, Progress};
use crate::driver::Driver;
use crate::process::Process;
use crate::reactor::{Owner, register};

/// How a waiting caller divides its time between spinning (fast, burns a core) and sleeping (slow to wake, free).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Never sleeps.
    Spin,
    /// Spins for 50 µs, then sleeps.
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
    armed: AtomicBool,
    /// Whose link it is.
    pub(crate) process: Process,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    lead: Option<Lead>,
    /// Oldest first.
    followers: BTreeMap<u64, Waker>,
    reactor: Option<Reactor>,
}

#[derive(Debug)]
struct Lead {
    waiter: u64,
    waker: Waker,
    /// It sleeps on writability too.
    writable: bool,
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
            armed: AtomicBool::new(false),
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
    pub(crate) fn arm(&self) {
        if let Some(source) = self.link.source() {
            self.armed.store(true, Ordering::Release);
            self.driver.arm(self.number, source);
            if !self.link.doze() {
                self.driver.drive_soon(self.number);
            }
        }
    }

    /// Sees to it, after the driver moved the link, that somebody notices when it can be moved on: the lead, if there is one. A
    /// driver armed beside a lead would wake for what the lead is about to do, and take the baton from it.
    pub(crate) fn watch(&self) {
        if self.is_armed() {
            return self.arm();
        }
        if !self.link.source().is_some_and(|source| source.writable) {
            return;
        }
        let state = self.state();
        match &state.lead {
            Some(lead) if !lead.writable => lead.waker.wake_by_ref(),
            Some(_) => {}
            None => {
                drop(state);
                self.arm();
            }
        }
    }

    fn disarm(&self) {
        if self.armed.swap(false, Ordering::AcqRel)
            && let Some(source) = self.link.source()
        {
            self.driver.disarm(self.number, source);
        }
    }

    /// Whether nobody waits now.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state().lead.is_none()
    }

    /// Whether the driver sleeps on the source.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the waiter the lead, who spins and sleeps for all; false if there is one, who will wake it when its turn comes.
    fn lead(&self, waiter: &mut Option<u64>, cx: &mut Context<'_>) -> bool {
        let mut state = self.state();
        let me = *waiter.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        let State { lead, followers, .. } = &mut *state;
        match lead {
            Some(lead) if lead.waiter != me => {
                if !lead.writable && self.link.source().is_some_and(|source| source.writable) {
                    lead.waker.wake_by_ref();
                }
                followers
                    .entry(me)
                    .and_modify(|known| known.clone_from(cx.waker()))
                    .or_insert_with(|| cx.waker().clone());
                false
            }
            Some(lead) => {
                lead.waker.clone_from(cx.waker());
                true
            }
            None => {
                followers.remove(&me);
                *lead = Some(Lead { waiter: me, waker: cx.waker().clone(), writable: false });
                // While it polls, the driver need not wake for every packet.
                self.disarm();
                true
            }
        }
    }

    /// Lets the lead sleep. False: the link may move now, poll again.
    fn park(&self, cx: &mut Context<'_>) -> bool {
        let (Ok(runtime), Some(source)) = (Handle::try_current(), self.link.source()) else {
            // No reactor here.
            self.arm();
            return true;
        };
        let mut state = self.state();
        if let Some(lead) = &mut state.lead {
            lead.writable = source.writable;
        }
        self.disarm();
        if state.reactor.as_ref().is_none_or(|reactor| reactor.runtime != runtime.id()) {
            state.reactor = None;
            let interest = Interest::READABLE | Interest::WRITABLE;
            let Some(descriptor) = register(SourceOf(self.link.clone()), interest) else {
                self.arm();
                return true;
            };
            state.reactor = Some(Reactor { runtime: runtime.id(), descriptor });
        }
        let Some(Reactor { descriptor, .. }) = &state.reactor else { return true };
        if !self.link.doze() {
            return false;
        }
        let mut asleep = self.sleep_until_ready(descriptor.poll_read_ready(cx));
        if source.writable && !source.bell {
            asleep &= self.sleep_until_ready(descriptor.poll_write_ready(cx));
        }
        asleep
    }

    /// True if the reactor will wake the lead; false if the link may move now.
    fn sleep_until_ready<T: AsRawFd>(
        &self,
        ready: Poll<std::io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, T>>>,
    ) -> bool {
        match ready {
            Poll::Pending => true,
            Poll::Ready(Ok(mut guard)) => {
                // Readiness may be forgotten only after the link was seen to be dry since.
                if self.link.progress() == Progress::Idle {
                    guard.clear_ready();
                }
                false
            }
            Poll::Ready(Err(_)) => {
                // The caller's runtime is shutting down.
                self.arm();
                true
            }
        }
    }

    fn leave(&self, waiter: u64) {
        let mut state = self.state();
        state.followers.remove(&waiter);
        state.lead.take_if(|lead| lead.waiter == waiter);
        if state.lead.is_none() {
            // Whoever is woken leads when it is polled, or passes it on when it leaves in its turn.
            let next = state.followers.pop_first();
            drop(state);
            if let Some((_, waker)) = next {
                waker.wake();
            }
        }
    }
}
