//! The leaders that the driver checks soon, and the timer that wakes the driver for them.
//!
//! tokio's timers have a granularity of one millisecond, about three times the time that a leader has. So the
//! driver sleeps on a kernel timer, in the epoll of its links.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::{Error, Result};
use crate::platform::mutex::Mutex;

/// The epoll data of the timer. No connection has this number.
pub(super) const CHECKS_DUE: u64 = u64::MAX;

/// The connections whose leaders are checked, and when.
#[derive(Debug)]
pub(super) struct Checks {
    timer: OwnedFd,
    delay: Duration,
    /// Oldest first: all checks have the same delay.
    pending: Mutex<VecDeque<(Instant, u64)>>,
}

impl Checks {
    /// Makes a timer in `epoll`. A check is due `delay` after it is added.
    pub(super) fn new(epoll: &OwnedFd, delay: Duration) -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let io = |errno: rustix::io::Errno| Error::io(errno.into());
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io)?;
        epoll::add(epoll, &timer, epoll::EventData::new_u64(CHECKS_DUE), epoll::EventFlags::IN)
            .map_err(io)?;
        Ok(Self { timer, delay, pending: Mutex::default() })
    }

    /// Schedules a check of a connection's leader.
    pub(super) fn add(&self, number: u64) {
        let mut pending = self.pending.lock();
        // Recorded first, so that the timer does not fire before.
        pending.push_back((Instant::now() + self.delay, number));
        if pending.len() == 1 {
            self.set_timer(self.delay);
        }
    }

    /// Takes the connections whose checks are due, and sets the timer for the rest.
    pub(super) fn take_due(&self) -> Vec<u64> {
        let mut pending = self.pending.lock();
        let now = Instant::now();
        let due = pending.iter().take_while(|(at, _)| *at <= now).count();
        let due = pending.drain(..due).map(|(_, number)| number).collect();
        // A time of zero disarms the timer. Either call makes the descriptor unreadable.
        let next = pending.front().map_or(Duration::ZERO, |(at, _)| at.saturating_duration_since(now));
        self.set_timer(next);
        due
    }

    fn set_timer(&self, after: Duration) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: value };
        // This fails only for invalid times.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}
