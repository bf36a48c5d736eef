//! The core of a connection: its link, its waiters, and the state that users and the driver share.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::MutexGuard;

use super::driver::Driver;
use super::pending_receive::PendingReceive;
use super::prefetch::Prefetched;
use super::waiting::{Wait, Waiters};
use crate::backend::path::Path;
use crate::backend::{Caps, Completion, CurrentLink, Done, Identity, Inbox, Op, Opened, SmallSend};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::events;
use crate::memory::{Place, Pool};
use crate::metrics::ConnectionCounts;
use crate::platform::environment::Environment;
use crate::platform::process::{Inherited, Own};
use crate::transfer::region::Regions;

/// The state of one connection, shared with its driver.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) number: u64,
    pub(crate) link: CurrentLink,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) waiters: Waiters,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    /// Work is queued for the driver's sweep.
    pub(crate) queued_for_poll: AtomicBool,
    /// The waiters' poll count when the last message was sent.
    pub(super) polls_at_send: AtomicU64,
    /// A flush of coalesced messages is scheduled for when the sender's task yields.
    pub(super) flushing: AtomicBool,
    /// The message that a cancelled `recv` had begun to receive. Locked by the caller that receives.
    pub(crate) pending: tokio::sync::Mutex<Option<PendingReceive>>,
    /// The messages received ahead of the callers, if a task receives.
    pub(crate) prefetched: OnceLock<Arc<Prefetched>>,
    pub(crate) counts: Arc<ConnectionCounts>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) peer: Identity,
    pub(crate) path: Path,
    linger: Duration,
    /// The last `Op::Expect` told the link to receive payload into pool memory.
    expects_in_pool: AtomicBool,
    pub(crate) span: tracing::Span,
}

/// The parts that a connection is made of.
pub(crate) struct CoreParts {
    pub(crate) opened: Opened,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    pub(crate) peer: Identity,
    pub(crate) path: Path,
    pub(crate) wait: Wait,
    pub(crate) linger: Duration,
}

/// Owns a connection: dropping it closes the connection in good order, in the background.
#[derive(Debug)]
pub(crate) struct OwnedCore(Own<Arc<Core>>);

impl OwnedCore {
    /// Makes a connection of its parts, and registers its link with the driver.
    pub(crate) fn new(parts: CoreParts) -> Result<Self> {
        let CoreParts { opened, inbox, regions, driver, pools, peer, path, wait, linger } = parts;
        let (number, link) = (driver.number(), CurrentLink::new(opened.link().clone()));
        let span = tracing::info_span!("connection", number, %peer, path = path.chosen());
        let counts = Arc::new(ConnectionCounts::of(link.clone()));
        driver.meters.adopt(number, &counts, path.chosen(), peer.to_string());
        let core = Arc::new(Core {
            number,
            waiters: Waiters::new(link.clone(), driver.clone(), number, wait),
            link,
            inbox,
            pools,
            queued_for_poll: AtomicBool::new(false),
            polls_at_send: AtomicU64::new(u64::MAX),
            flushing: AtomicBool::new(false),
            pending: tokio::sync::Mutex::default(),
            prefetched: OnceLock::new(),
            counts: counts.clone(),
            regions,
            driver: driver.clone(),
            peer,
            path,
            linger,
            expects_in_pool: AtomicBool::new(false),
            span,
        });
        driver.adopt(&core)?;
        events::connected(number, &core.path);
        let environment = driver.environment.clone();
        core.inbox
            .wake_at_end(Waker::from(Arc::new(ReleaseAtEnd { core: Arc::downgrade(&core), environment })));
        let handle = Self(Own::new(core));
        // From now on dropping the last handle ends the link.
        let _ = opened.take();
        Ok(handle)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }
}

impl Core {
    /// Returns whether this process made the connection, and did not inherit it by a fork.
    pub(crate) fn is_ours(&self) -> bool {
        self.waiters.process.is_this()
    }

    /// Drops the link, which has ended, with its descriptors.
    fn release(&self) {
        if let Some(why) = self.inbox.ended() {
            self.driver.forget(self);
            self.link.release(why);
            self.waiters.release();
        }
    }

    /// Logs how the connection ended, if it has.
    pub(crate) fn log_end(&self) {
        // In a forked child a lock of the application's subscriber may be held for ever.
        if self.is_ours()
            && let Some(why) = self.inbox.ended()
        {
            events::ended(self.number, &self.path, &why);
        }
    }

    /// Fails in a process that inherited the connection.
    ///
    /// # Errors
    /// `Unsupported`, with the remedy.
    pub(crate) fn check(&self) -> Result<()> {
        self.waiters.process.check()
    }

    /// Submits `op` to the link. Returns false if it failed at once, because this process only inherited the
    /// link.
    pub(crate) fn submit(&self, op: Op) -> bool {
        match self.check() {
            Ok(()) => self.link.load().submit(op),
            Err(error) => {
                op.fail(error);
                return false;
            }
        }
        true
    }

    /// Lets the link copy a small message. Returns the message if the link cannot.
    pub(crate) fn copy(self: &Arc<Self>, small: SmallSend) -> Option<SmallSend> {
        if !self.is_ours() {
            return Some(small);
        }
        let more = small.more;
        let left = self.link.load().copy(small);
        if more && left.is_none() {
            self.flush_on_yield();
        }
        left
    }

    /// Submits `op` and waits for its end, polling the link meanwhile.
    pub(crate) async fn perform<V: Inherited>(self: &Arc<Self>, op: Op, completion: &Completion<V>) -> V {
        let more = matches!(op, Op::Send { more: true, .. });
        if !self.submit(op) {
            return completion.try_take().unwrap_or_else(V::inherited);
        }
        if more {
            self.flush_on_yield();
        }
        self.waiters.until(|cx| completion.poll_take(cx)).await
    }

    /// Waits for an operation of this connection, polling the link meanwhile.
    pub(crate) async fn finish<V: Inherited>(&self, completion: &Completion<V>) -> V {
        if !self.is_ours() {
            return completion.take_uncontended().unwrap_or_else(V::inherited);
        }
        self.waiters.until(|cx| completion.poll_take(cx)).await
    }

    /// Locks the message that a cancelled call had begun to receive, while this caller receives.
    pub(crate) async fn begun(&self) -> Result<Own<MutexGuard<'_, Option<PendingReceive>>>> {
        let process = self.waiters.process;
        process.check()?;
        let begun = match self.pending.try_lock() {
            Ok(begun) => begun,
            Err(_) => {
                let mut queue = Own::of(process, Box::pin(self.pending.lock()));
                self.waiters.until(move |cx| queue.as_mut().poll(cx).map(Result::<_>::Ok)).await?
            }
        };
        Ok(Own::of(process, begun))
    }

    /// Submits `op` without waiting. It takes effect with the next poll, or within 50 ms.
    pub(crate) fn submit_deferred(self: &Arc<Self>, op: Op) {
        if self.submit(op) {
            self.poll_by_next_sweep();
        }
    }

    /// Makes the driver poll the link within 50 ms, if nothing else polls it before.
    pub(crate) fn poll_by_next_sweep(self: &Arc<Self>) {
        let is_queued = &self.queued_for_poll;
        if is_queued.load(Ordering::Acquire) || !self.is_ours() || self.link.load().source().is_none() {
            return;
        }
        if !is_queued.swap(true, Ordering::AcqRel) {
            self.driver.later(self);
        }
    }

    /// Tells the link whether the application receives into pool memory, if that changed.
    pub(crate) fn expect(self: &Arc<Self>, in_pool: bool) {
        if self.expects_in_pool.load(Ordering::Relaxed) != in_pool {
            self.expects_in_pool.store(in_pool, Ordering::Relaxed);
            self.submit_deferred(Op::Expect { in_pool });
        }
    }

    /// Returns the endpoint's pool of `place`.
    ///
    /// # Errors
    /// `Unsupported` if it has none.
    pub(crate) fn pool(&self, place: Place) -> Result<&Pool> {
        self.pools.get(&place).ok_or_else(|| {
            let hint = "give the endpoint a pool of that place";
            Error::new(ErrorKind::Unsupported, format!("this endpoint has no pool of {place} memory: {hint}"))
        })
    }

    pub(crate) fn check_one_sided(&self, on_host: bool) -> Result<()> {
        let refused = |why| Err(Error::new(ErrorKind::Unsupported, why).by(self.backend()));
        self.check().map_err(|error| error.by(self.backend()))?;
        if !self.link.load().caps().contains(Caps::ONE_SIDED) {
            return refused("this link has no get and put");
        }
        if !on_host {
            return refused("get and put need host memory");
        }
        Ok(())
    }

    pub(crate) fn environment(&self) -> &dyn Environment {
        &*self.driver.environment
    }

    pub(crate) fn backend(&self) -> &'static str {
        self.path.chosen()
    }

    /// Adds the operation, the address and the connection's number, which spans and metrics use as well, to
    /// `error`.
    pub(crate) fn placed(&self, error: Error, doing: &'static str) -> Error {
        error.by(self.backend()).during(doing).on(self.named())
    }

    /// Adds the address and the connection's number to the reason of an end.
    pub(crate) fn ended(&self, why: Error) -> Error {
        why.by(self.backend()).on(self.named())
    }

    fn named(&self) -> impl std::fmt::Display {
        format!("{} (connection {})", self.path.address, self.number)
    }

    pub(crate) fn failed<T>(&self, failed: Failed<T>, doing: &'static str) -> Failed<T> {
        Failed { error: self.placed(failed.error, doing), returned: failed.returned }
    }

    /// Ends the link once `linger` has passed, if it has not ended before.
    pub(crate) fn end_after_linger(self: &Arc<Self>) {
        if !self.is_ours() {
            return;
        }
        if self.link.load().source().is_some() && self.inbox.ended().is_none() {
            self.waiters.poll_by_driver();
        }
        let core = self.clone();
        let environment = &self.driver.environment;
        let timeout = environment.sleep_until(environment.now().saturating_add(self.linger));
        environment.spawn(Box::pin(async move {
            let mut timeout = timeout;
            let mut ended = std::pin::pin!(core.inbox.until_ended());
            let timed_out = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                timeout.as_mut().poll(cx).map(|()| true)
            })
            .await;
            if timed_out {
                let why = "the peer did not take part in closing in time";
                core.link.load().end(Error::new(ErrorKind::TimedOut, why));
            }
            core.driver.forget(&core);
        }));
    }
}

/// Releases a connection's link once it has ended, whoever holds a handle. It runs on the driver, because the
/// link ends with its locks held.
#[derive(Debug)]
struct ReleaseAtEnd {
    core: Weak<Core>,
    environment: Arc<dyn Environment>,
}

impl Wake for ReleaseAtEnd {
    fn wake(self: Arc<Self>) {
        let core = self.core.clone();
        self.environment.spawn(Box::pin(async move {
            if let Some(core) = core.upgrade() {
                core.release();
            }
        }));
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.driver.forget(self);
        let end = self.inbox.ended().map(|end| end.kind());
        self.driver.meters.retire(self.number, &self.counts, end);
    }
}

impl Drop for OwnedCore {
    fn drop(&mut self) {
        let core = &self.0;
        if !core.is_ours() {
            return;
        }
        if let Some(prefetched) = core.prefetched.get() {
            prefetched.stop();
        }
        if core.inbox.ended().is_some() {
            return core.driver.forget(core);
        }
        core.link.load().submit(Op::Close(Done::with(|_| ())));
        core.end_after_linger();
    }
}
