//! The driver: polls links that no caller polls. Its two tasks run in the endpoint's environment.
//!
//! One task sleeps on the armed links. The other sweeps every 25 ms: it polls links whose leader does not
//! (the leader's task may be computing), so that a ready link stays unpolled for 50 ms at most; it sends
//! deferred work; and it ticks heartbeats. Work that concerns every link is spread over the sweeps, so that
//! ten thousand links never block one sweep.

mod checks;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot};

use self::checks::{CHECKS_DUE, Checks};
use super::core::Core;
use crate::backend::{Progress, WaitSource};
use crate::error::{Error, Result};
use crate::metrics::Meters;
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::platform::reactor::register;

/// The sweep interval. The driver takes over a link that is ready at two sweeps without a poll between them,
/// or at the first sweep if it has no leader. Deferred work waits for one sweep.
const SWEEP_EVERY: Duration = Duration::from_millis(25);
/// The time within which a leader with followers must poll. A leader that last polled at the beginning of one
/// such time loses the link at the end of the next.
const LEADER_POLL_TIME: Duration = Duration::from_micros(350);
/// The most polls of one link in a row before other links are polled.
const POLLS_MAX: u32 = 64;

/// Polls the links of one endpoint.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) meters: Arc<Meters>,
    heartbeat: Duration,
    /// The epoll of links without a leader. The driver sleeps on it.
    driver_polled: OwnedFd,
    /// The leaders that the driver checks soon. `driver_polled` becomes readable when a check is due.
    checks: Checks,
    /// The epoll of every link with a source. The driver sweeps it and never sleeps on it.
    watched: OwnedFd,
    connections: Mutex<BTreeMap<u64, DrivenConnection>>,
    next: AtomicU64,
    later: Mutex<Vec<Weak<Core>>>,
    /// Dropping this ends the task that sleeps on `driver_polled`.
    serving: OnceLock<oneshot::Sender<Infallible>>,
    /// Notified when a connection is added.
    wanted: Arc<Notify>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Ends the task that waits for a connection; otherwise its environment would keep the task for ever.
        self.wanted.notify_one();
    }
}

#[derive(Debug)]
struct DrivenConnection {
    core: Weak<Core>,
    /// Its poll count when it was last seen ready; for a doorbell source, at the last sweep.
    polls_when_ready: Option<u64>,
    has_doorbell: bool,
}

/// The position of the heartbeat ticks: the last link ticked, and the time accrued towards the next ticks.
#[derive(Debug, Default)]
struct TickCursor {
    last: u64,
    accrued_nanos: u128,
}

impl Driver {
    pub(crate) fn start(environment: Arc<dyn Environment>, heartbeat: Duration) -> Result<Arc<Self>> {
        let epoll = || epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::io(errno.into()));
        let driver_polled = epoll()?;
        let driver = Arc::new(Self {
            environment,
            meters: Arc::new(Meters::new()),
            heartbeat,
            checks: Checks::new(&driver_polled, LEADER_POLL_TIME)?,
            driver_polled,
            watched: epoll()?,
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            later: Mutex::default(),
            serving: OnceLock::new(),
            wanted: Arc::default(),
        });
        driver.environment.spawn(Box::pin(run_sweeps(Arc::downgrade(&driver))));
        Ok(driver)
    }

    /// Returns the number for a new connection.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Polls `core`'s link from now on, until it ends.
    pub(crate) fn adopt(self: &Arc<Self>, core: &Arc<Core>) -> Result<()> {
        let has_doorbell = core.link.load().source().is_some_and(|source| source.doorbell);
        let connected = DrivenConnection { core: Arc::downgrade(core), polls_when_ready: None, has_doorbell };
        self.connections().insert(core.number, connected);
        self.wanted.notify_one();
        if let Some(source) = core.link.load().source() {
            let data = epoll::EventData::new_u64(core.number);
            let add = |to: &OwnedFd, flags| {
                epoll::add(to, source.descriptor, data, flags).map_err(|errno| Error::io(errno.into()))
            };
            add(&self.driver_polled, epoll::EventFlags::empty())?;
            add(&self.watched, epoll::EventFlags::IN)?;
            self.serve_armed()?;
            core.waiters.poll_by_driver();
        }
        Ok(())
    }

    /// Removes a connection. Its descriptor may be closed afterwards.
    pub(crate) fn forget(&self, core: &Core) {
        // Loaded first: the link may be released as soon as the connection is unknown.
        let link = core.link.load();
        let was_known = self.connections().remove(&core.number).is_some();
        if !was_known {
            return;
        }
        if let Some(source) = link.source() {
            // This fails only if the descriptor is not registered.
            let _ = epoll::delete(&self.driver_polled, source.descriptor);
            let _ = epoll::delete(&self.watched, source.descriptor);
        }
        core.log_end();
    }

    /// Arms a link: the driver sleeps on its source.
    pub(crate) fn poll_by_driver(&self, number: u64, source: WaitSource<'_>) {
        self.modify(number, source, interest(source));
    }

    /// Arms a link for one event: its leader sleeps, and the driver is notified once when the source is
    /// ready.
    pub(crate) fn poll_once_ready(&self, number: u64, source: WaitSource<'_>) {
        self.modify(number, source, interest(source) | epoll::EventFlags::ONESHOT);
    }

    /// Disarms a link: its leader polls it.
    pub(crate) fn disarm(&self, number: u64, source: WaitSource<'_>) {
        self.modify(number, source, epoll::EventFlags::empty());
    }

    fn modify(&self, number: u64, source: WaitSource<'_>, flags: epoll::EventFlags) {
        // This fails only for a link that was removed because it ended.
        let _ =
            epoll::modify(&self.driver_polled, source.descriptor, epoll::EventData::new_u64(number), flags);
    }

    /// Makes `core`'s link send deferred work within 50 ms, but not within the current sweep interval: until
    /// then it may leave with other data.
    pub(crate) fn later(&self, core: &Arc<Core>) {
        self.later.lock().push(Arc::downgrade(core));
    }

    /// Returns all open connections.
    pub(crate) fn living(&self) -> Vec<Arc<Core>> {
        self.connections().values().filter_map(|connected| connected.core.upgrade()).collect()
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, DrivenConnection>> {
        self.connections.lock()
    }

    fn core(&self, number: u64) -> Option<Arc<Core>> {
        self.connections().get(&number).and_then(|connected| connected.core.upgrade())
    }

    /// Starts the task that sleeps on the armed links, once.
    fn serve_armed(self: &Arc<Self>) -> Result<()> {
        if self.serving.get().is_some() {
            return Ok(());
        }
        let descriptor = self.driver_polled.try_clone().map_err(Error::io)?;
        let (alive, mut dropped) = oneshot::channel();
        if self.serving.set(alive).is_err() {
            return Ok(());
        }
        let driver = Arc::downgrade(self);
        self.environment.spawn(Box::pin(async move {
            // An environment without a reactor has no links with a source.
            let Some(descriptor) = register(descriptor, Interest::READABLE) else { return };
            loop {
                let ready = tokio::select! {
                    ready = descriptor.readable() => ready,
                    _ = &mut dropped => return,
                };
                let (Ok(mut ready), Some(driver)) = (ready, driver.upgrade()) else { return };
                let numbers = ready_in(descriptor.get_ref().descriptor());
                if numbers.is_empty() {
                    ready.clear_ready();
                }
                for number in numbers {
                    if number == CHECKS_DUE {
                        driver.checks.take_due().into_iter().for_each(|number| driver.check(number));
                    } else if let Some(core) = driver.core(number)
                        && !core.waiters.awaits_leader()
                    {
                        driver.drive(&core);
                    }
                }
                drop(driver);
                tokio::task::yield_now().await;
            }
        }));
        Ok(())
    }

    /// Polls a link that has work already, although its source does not show it.
    pub(crate) fn drive_soon(self: &Arc<Self>, number: u64) {
        let driver = Arc::downgrade(self);
        self.environment.spawn(Box::pin(async move {
            if let Some(driver) = driver.upgrade()
                && let Some(core) = driver.core(number)
            {
                driver.drive(&core);
            }
        }));
    }

    /// Schedules a check of a link's leader. If the leader has not polled by then, the driver takes the link
    /// over.
    pub(crate) fn check_soon(self: &Arc<Self>, number: u64) {
        // Without that task nothing reads the timer. An environment without a reactor has no such links.
        if self.serving.get().is_some_and(|serving| !serving.is_closed()) {
            return self.checks.add(number);
        }
        let moment = self.environment.sleep_until(self.environment.now() + LEADER_POLL_TIME);
        let driver = Arc::downgrade(self);
        self.environment.spawn(Box::pin(async move {
            moment.await;
            if let Some(driver) = driver.upgrade() {
                driver.check(number);
            }
        }));
    }

    /// Takes a link over if its leader is overdue.
    fn check(&self, number: u64) {
        if let Some(core) = self.core(number)
            && core.waiters.is_leader_overdue()
        {
            self.replace_leader(&core);
        }
    }

    fn replace_leader(&self, core: &Arc<Core>) {
        core.waiters.demote_leader();
        self.drive(core);
    }

    /// Polls one link, a bounded number of times.
    fn drive(&self, core: &Arc<Core>) {
        let mut polls = (0..POLLS_MAX).map(|_| core.link.load().progress());
        let last = polls.find(|progress| *progress != Progress::Moved);
        if core.inbox.ended().is_some() {
            self.forget(core);
        } else if last != Some(Progress::Elsewhere) {
            // The state of a link in the middle of another poll is meaningless. The other poller arms it.
            core.waiters.watch();
        }
    }

    /// Ticks one link: it sends deferred work and pings.
    fn tick(&self, core: &Arc<Core>) {
        core.link.load().tick();
        if core.inbox.ended().is_some() {
            self.forget(core);
        } else {
            core.waiters.watch();
        }
    }

    /// Returns the links to tick, `elapsed` after the last call: each about every `tick_every`, one after
    /// another.
    fn due_for_tick(
        &self,
        cursor: &mut TickCursor,
        elapsed: Duration,
        tick_every: Duration,
    ) -> Vec<Arc<Core>> {
        let connections = self.connections();
        cursor.accrued_nanos += elapsed.as_nanos() * connections.len() as u128;
        let count = (cursor.accrued_nanos / tick_every.as_nanos()).min(connections.len() as u128);
        cursor.accrued_nanos %= tick_every.as_nanos();
        let next =
            connections.range((Excluded(cursor.last), Unbounded)).chain(connections.range(..=cursor.last));
        let chosen = next.take(count as usize).inspect(|(number, _)| cursor.last = **number);
        chosen.filter_map(|(_, connected)| connected.core.upgrade()).collect()
    }

    /// Takes over links that were ready at two sweeps and not polled between them.
    fn sweep(&self) {
        for number in ready_in(&self.watched) {
            let Some(core) = self.core(number) else { continue };
            let polls = core.waiters.polls();
            let before = match self.connections().get_mut(&number) {
                Some(connected) => connected.polls_when_ready.replace(polls),
                None => continue,
            };
            // A leader that makes progress at each poll never waits, and polls all the same.
            if before.map_or_else(|| core.waiters.is_abandoned(), |before| before == polls) {
                self.replace_leader(&core);
            }
        }
        self.sweep_doorbells();
    }

    /// Takes over doorbell links that were not polled since the last sweep, or polls them for a sleeping
    /// leader. Until their doorbell is armed, nothing shows that they are ready.
    fn sweep_doorbells(&self) {
        let connections = self.connections();
        let with_doorbell = connections.values().filter(|connected| connected.has_doorbell);
        // Drop upgraded handles without the lock: dropping the last one takes it.
        let cores: Vec<_> = with_doorbell.filter_map(|connected| connected.core.upgrade()).collect();
        drop(connections);
        for core in cores.into_iter().filter(|core| !core.waiters.is_driver_polled()) {
            let polls = core.waiters.polls();
            let before = match self.connections().get_mut(&core.number) {
                Some(connected) => connected.polls_when_ready.replace(polls),
                None => continue,
            };
            if before != Some(polls) {
                continue;
            }
            if core.waiters.has_sleeping_leader() {
                self.drive(&core);
            } else {
                // Its leader may be delayed before it arms the doorbell.
                self.replace_leader(&core);
            }
        }
    }
}

async fn run_sweeps(driver: Weak<Driver>) {
    let Some(strong) = driver.upgrade() else { return };
    let tick_every = strong.heartbeat / 4;
    let wanted = strong.wanted.clone();
    let (mut cursor, mut swept) = (TickCursor::default(), strong.environment.now());
    drop(strong);
    // Work deferred before the last sweep. Work deferred since may still leave with other data.
    let mut later: Vec<Weak<Core>> = Vec::new();
    loop {
        let Some(strong) = driver.upgrade() else { return };
        let now = strong.environment.now();
        let sleep = strong.environment.sleep_until(now + SWEEP_EVERY.min(tick_every));
        let nothing_to_do = strong.connections().is_empty();
        drop(strong);
        if nothing_to_do {
            later.clear();
            wanted.notified().await;
        }
        sleep.await;
        let Some(driver) = driver.upgrade() else { return };
        driver.sweep();
        let left = std::mem::take(&mut *driver.later.lock());
        for core in std::mem::replace(&mut later, left).into_iter().filter_map(|core| core.upgrade()) {
            core.queued_for_poll.store(false, Ordering::Release);
            driver.tick(&core);
        }
        let now = driver.environment.now();
        for core in driver.due_for_tick(&mut cursor, now.saturating_sub(swept), tick_every) {
            driver.tick(&core);
        }
        swept = now;
    }
}

/// Returns the events that show that a link can make progress.
fn interest(source: WaitSource<'_>) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::IN;
    flags.set(epoll::EventFlags::OUT, source.writable && !source.doorbell);
    flags
}

/// Returns whether a source shows now that its link can make progress.
pub(crate) fn is_ready(source: WaitSource<'_>) -> bool {
    let mut flags = PollFlags::IN;
    flags.set(PollFlags::OUT, interest(source).contains(epoll::EventFlags::OUT));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // If `poll` fails, the source counts as ready, so that the leader is checked.
    poll(&mut [PollFd::from_borrowed_fd(source.descriptor, flags)], Some(&now))
        .map_or(true, |ready| ready > 0)
}

/// Returns the numbers of the links that are ready in `epoll`, at most 256.
fn ready_in(epoll: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(256);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match epoll::wait(epoll, spare_capacity(&mut events), Some(&now)) {
        Ok(_) => events.iter().map(|event| event.data.u64()).collect(),
        Err(_) => Vec::new(),
    }
}
