//! Who moves links when nobody waits on them: the driver's two tasks, run by the endpoint's environment.
//!
//! One sleeps on the links that are armed; one looks every 25 ms at the others (they have a lead, who may be computing, so
//! that a link is ready and unpolled for 50 ms at most), sends what was left for later, and lets the heartbeats tick. What
//! it does for every link it spreads over its looks, so that ten thousand of them never hold it up together.

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
use crate::backend::{Progress, Source};
use crate::error::{Error, Result};
use crate::metrics::Meters;
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::platform::reactor::register;

/// A link that is ready at two looks, unpolled between them, is taken over, and at the first ever if nobody waits on it.
/// Work left for later waits for one.
const SWEEP_EVERY: Duration = Duration::from_millis(25);
/// A lead on which others depend is given so long for a turn. One that has had its last at the beginning of such a time loses
/// the link at the end of the next.
const PATIENCE: Duration = Duration::from_micros(350);
/// Polls of one link in a row before the others have their turn.
const POLLS_MAX: u32 = 64;

/// Moves the links of one endpoint.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) meters: Arc<Meters>,
    heartbeat: Duration,
    /// Links that nobody leads: the driver sleeps on this.
    driver_polled: OwnedFd,
    /// Leads of links with a source that the driver checks soon; `driver_polled` tells when.
    checks: Checks,
    /// Every link: the driver looks at this, and never sleeps on it.
    watched: OwnedFd,
    connections: Mutex<BTreeMap<u64, Connected>>,
    next: AtomicU64,
    later: Mutex<Vec<Weak<Core>>>,
    /// The task that sleeps on `driver_polled` runs until this is dropped.
    serving: OnceLock<oneshot::Sender<Infallible>>,
    /// A connection came.
    wanted: Arc<Notify>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The task that waits for a connection sees that none will come; otherwise its environment kept it for ever.
        self.wanted.notify_one();
    }
}

#[derive(Debug)]
struct Connected {
    core: Weak<Core>,
    /// How often it had been polled when it was last seen ready; at the last look, if its source is a doorbell.
    polls_when_ready: Option<u64>,
    has_doorbell: bool,
}

/// Who had a turn last, and what has passed of the next ones' time.
#[derive(Debug, Default)]
struct Turns {
    last: u64,
    owed_nanos: u128,
}

impl Driver {
    pub(crate) fn start(environment: Arc<dyn Environment>, heartbeat: Duration) -> Result<Arc<Self>> {
        let epoll = || epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| Error::io(errno.into()));
        let driver_polled = epoll()?;
        let driver = Arc::new(Self {
            environment,
            meters: Arc::new(Meters::new()),
            heartbeat,
            checks: Checks::new(&driver_polled, PATIENCE)?,
            driver_polled,
            watched: epoll()?,
            connections: Mutex::default(),
            next: AtomicU64::new(0),
            later: Mutex::default(),
            serving: OnceLock::new(),
            wanted: Arc::default(),
        });
        driver.environment.spawn(Box::pin(look_after(Arc::downgrade(&driver))));
        Ok(driver)
    }

    /// The number of a connection to come.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Moves `core`'s link from now on, until it ends.
    pub(crate) fn adopt(self: &Arc<Self>, core: &Arc<Core>) -> Result<()> {
        let has_doorbell = core.link.source().is_some_and(|source| source.doorbell);
        let connected = Connected { core: Arc::downgrade(core), polls_when_ready: None, has_doorbell };
        self.connections().insert(core.number, connected);
        self.wanted.notify_one();
        if let Some(source) = core.link.source() {
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

    /// Forgets a connection; its descriptor may be closed afterwards.
    pub(crate) fn forget(&self, core: &Core) {
        let was_known = self.connections().remove(&core.number).is_some();
        if !was_known {
            return;
        }
        core.log_end();
        if let Some(source) = core.link.source() {
            // Not being registered is the only failure, and is what is wanted.
            let _ = epoll::delete(&self.driver_polled, source.descriptor);
            let _ = epoll::delete(&self.watched, source.descriptor);
        }
    }

    /// Sleeps on a link's source.
    pub(crate) fn poll_by_driver(&self, number: u64, source: Source<'_>) {
        self.modify(number, source, interest(source));
    }

    /// Learns once that a link is ready whose lead sleeps on it.
    pub(crate) fn stand_by(&self, number: u64, source: Source<'_>) {
        self.modify(number, source, interest(source) | epoll::EventFlags::ONESHOT);
    }

    /// Leaves it to its lead.
    pub(crate) fn disarm(&self, number: u64, source: Source<'_>) {
        self.modify(number, source, epoll::EventFlags::empty());
    }

    fn modify(&self, number: u64, source: Source<'_>, flags: epoll::EventFlags) {
        // Fails only for a link that was forgotten because it ended.
        let _ =
            epoll::modify(&self.driver_polled, source.descriptor, epoll::EventData::new_u64(number), flags);
    }

    /// Lets `core`'s link send its laggards within 50 ms, but not within 25: until then they may leave with something else.
    pub(crate) fn later(&self, core: &Arc<Core>) {
        self.later.lock().push(Arc::downgrade(core));
    }

    /// All living connections.
    pub(crate) fn living(&self) -> Vec<Arc<Core>> {
        self.connections().values().filter_map(|connected| connected.core.upgrade()).collect()
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Connected>> {
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
                        && !core.waiters.is_left_to_its_leader()
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

    /// Moves a link that has something to do already, though its source does not show it.
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

    /// Takes a link over in a moment, unless its lead has polled it by then.
    pub(crate) fn check_soon(self: &Arc<Self>, number: u64) {
        // Without that task, nobody reads the timer. An environment without a reactor has no such links.
        if self.serving.get().is_some_and(|serving| !serving.is_closed()) {
            return self.checks.add(number);
        }
        let moment = self.environment.sleep_until(self.environment.now() + PATIENCE);
        let driver = Arc::downgrade(self);
        self.environment.spawn(Box::pin(async move {
            moment.await;
            if let Some(driver) = driver.upgrade() {
                driver.check(number);
            }
        }));
    }

    /// Takes a link over whose lead has let its moment pass.
    fn check(&self, number: u64) {
        if let Some(core) = self.core(number)
            && core.waiters.is_overdue()
        {
            self.take_over(&core);
        }
    }

    fn take_over(&self, core: &Arc<Core>) {
        core.waiters.take_over();
        self.drive(core);
    }

    /// Moves one link, for a while.
    fn drive(&self, core: &Arc<Core>) {
        let mut polls = (0..POLLS_MAX).map(|_| core.link.progress());
        let last = polls.find(|progress| *progress != Progress::Moved);
        if core.inbox.ended().is_some() {
            self.forget(core);
        } else if last != Some(Progress::Elsewhere) {
            // What a link looks like in the middle of another's poll says nothing; whoever polls it watches it.
            core.waiters.watch();
        }
    }

    /// Lets time pass for one link: it sends its laggards, and asks for signs of life.
    fn tick(&self, core: &Arc<Core>) {
        core.link.tick();
        if core.inbox.ended().is_some() {
            self.forget(core);
        } else {
            core.waiters.watch();
        }
    }

    /// Whose turn it is, `elapsed` after the turns before: everybody's about every `tick_every`, one after another.
    fn in_turn(&self, turns: &mut Turns, elapsed: Duration, tick_every: Duration) -> Vec<Arc<Core>> {
        let connections = self.connections();
        turns.owed_nanos += elapsed.as_nanos() * connections.len() as u128;
        let count = (turns.owed_nanos / tick_every.as_nanos()).min(connections.len() as u128);
        turns.owed_nanos %= tick_every.as_nanos();
        let next =
            connections.range((Excluded(turns.last), Unbounded)).chain(connections.range(..=turns.last));
        let chosen = next.take(count as usize).inspect(|(number, _)| turns.last = **number);
        chosen.filter_map(|(_, connected)| connected.core.upgrade()).collect()
    }

    /// Takes over links that were ready at two looks and were not polled between them.
    fn sweep(&self) {
        for number in ready_in(&self.watched) {
            let Some(core) = self.core(number) else { continue };
            let polls = core.waiters.polls();
            let before = match self.connections().get_mut(&number) {
                Some(connected) => connected.polls_when_ready.replace(polls),
                None => continue,
            };
            // Whoever finds something at each poll never waits, and is there all the same.
            if before.map_or_else(|| core.waiters.is_abandoned(), |before| before == polls) {
                self.take_over(&core);
            }
        }
        self.sweep_doorbells();
    }

    /// Takes over links that nobody polled since the last look, or polls them where somebody should: nothing shows that they are
    /// ready before their doorbell was asked for.
    fn sweep_doorbells(&self) {
        let connections = self.connections();
        let with_doorbell = connections.values().filter(|connected| connected.has_doorbell);
        // Upgraded handles are dropped without the lock, which whoever drops the last one takes.
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
                // Its lead may be held up before it asked for the doorbell.
                self.take_over(&core);
            }
        }
    }
}

async fn look_after(driver: Weak<Driver>) {
    let Some(strong) = driver.upgrade() else { return };
    let tick_every = strong.heartbeat / 4;
    let wanted = strong.wanted.clone();
    let (mut turns, mut swept) = (Turns::default(), strong.environment.now());
    drop(strong);
    // What was left before the last look; what was left since may still leave with something else.
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
            core.left_for_later.store(false, Ordering::Release);
            driver.tick(&core);
        }
        let now = driver.environment.now();
        for core in driver.in_turn(&mut turns, now.saturating_sub(swept), tick_every) {
            driver.tick(&core);
        }
        swept = now;
    }
}

/// What shows that a link can be moved.
fn interest(source: Source<'_>) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::IN;
    flags.set(epoll::EventFlags::OUT, source.writable && !source.doorbell);
    flags
}

/// Whether a source shows now that its link can be moved.
pub(crate) fn is_ready(source: Source<'_>) -> bool {
    let mut flags = PollFlags::IN;
    flags.set(PollFlags::OUT, interest(source).contains(epoll::EventFlags::OUT));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked is taken as ready: then its lead had its time.
    poll(&mut [PollFd::from_borrowed_fd(source.descriptor, flags)], Some(&now))
        .map_or(true, |ready| ready > 0)
}

/// The numbers of the links that are ready in `epoll`, at most 256.
fn ready_in(epoll: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(256);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match epoll::wait(epoll, spare_capacity(&mut events), Some(&now)) {
        Ok(_) => events.iter().map(|event| event.data.u64()).collect(),
        Err(_) => Vec::new(),
    }
}
