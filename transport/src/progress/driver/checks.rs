//! Which leaders the driver checks soon, and the timer that wakes it for them.
//!
//! tokio's timers have a granularity of one millisecond, which is four times the time that a leader has. So the driver sleeps
//! on a timer of the kernel's, in the epoll of its links.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::{Error, Result};
use crate::platform::mutex::Mutex;

/// What the driver's epoll tells when checks are due. No connection has this number.
pub(super) const CHECKS_DUE: u64 = u64::MAX;

/// The connections whose leaders are checked, and when.
#[derive(Debug)]
pub(super) struct Checks {
    timer: OwnedFd,
    patience: Duration,
    /// Oldest first: all have the same time.
    pending: Mutex<VecDeque<(Instant, u64)>>,
}

impl Checks {
    /// Checks are due `patience` after they were added. `epoll` tells so.
    pub(super) fn new(epoll: &OwnedFd, patience: Duration) -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let io = |errno: rustix::io::Errno| Error::io(errno.into());
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io)?;
        epoll::add(epoll, &timer, epoll::EventData::new_u64(CHECKS_DUE), epoll::EventFlags::IN)
            .map_err(io)?;
        Ok(Self { timer, patience, pending: Mutex::default() })
    }

    /// Has a connection's leader checked.
    pub(super) fn add(&self, number: u64) {
        let mut pending = self.pending.lock();
        // Noted first, so that the timer does not fire before.
        pending.push_back((Instant::now() + self.patience, number));
        if pending.len() == 1 {
            self.set_timer(self.patience);
        }
    }

    /// Takes the connections whose checks are due, and sets the timer for the rest.
    pub(super) fn take_due(&self) -> Vec<u64> {
        let mut pending = self.pending.lock();
        let now = Instant::now();
        let due = pending.iter().take_while(|(at, _)| *at <= now).count();
        let due = pending.drain(..due).map(|(_, number)| number).collect();
        // A time of zero disarms the timer. Either call ends that the descriptor is readable.
        let next = pending.front().map_or(Duration::ZERO, |(at, _)| at.saturating_duration_since(now));
        self.set_timer(next);
        due
    }

    fn set_timer(&self, after: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: value };
        // Fails only for times that are not valid.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}
