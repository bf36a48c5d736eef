//! Forwarding: lends memory that other peers lent to this end, and returns their leases once ours are
//! returned.
//!
//! The owner waits for its memory, but nothing at this end may ever need memory or lend again. So while
//! anything is forwarded, a task sweeps for returned leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::memory::arena::borrowed::OpaqueHandle;
use crate::platform::environment::Environment;
use crate::platform::process::PerProcess;

/// The longest time by which this process may delay the return of a forwarded lease to its owner.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// The lease of a peer's memory that this end has forwarded. It does not hold the memory's pipes: only
/// processes that can read do. Otherwise two ends that forward to each other would wait for each other's
/// pipes.
#[derive(Debug)]
pub(super) struct Forwarded {
    _lease: OpaqueHandle,
    sweeping: &'static Sweeping,
}

/// What this process forwards.
#[derive(Debug, Default)]
struct Sweeping {
    /// The number of forwarded leases that are out.
    out: AtomicUsize,
    /// Whether a task sweeps.
    runs: AtomicBool,
}

static SWEEPING: PerProcess<Sweeping> = PerProcess::new(Sweeping::default);

impl Forwarded {
    pub(super) fn new(lease: OpaqueHandle) -> Self {
        let sweeping = SWEEPING.get();
        sweeping.out.fetch_add(1, Ordering::SeqCst);
        Self { _lease: lease, sweeping }
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.sweeping.out.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts a task that calls `sweep` periodically while anything is forwarded, unless one runs already.
pub(super) fn keep_sweeping(environment: &Arc<dyn Environment>, sweep: fn()) {
    let sweeping = SWEEPING.get();
    if sweeping.out.load(Ordering::SeqCst) == 0 {
        return;
    }
    let Some(mut run) = SweepTask::start(sweeping) else { return };
    let weak = Arc::downgrade(environment);
    environment.spawn(Box::pin(async move {
        loop {
            let Some(environment) = weak.upgrade() else { return };
            let pause = environment.sleep_until(environment.now() + SWEEP_EVERY);
            drop(environment);
            pause.await;
            sweep();
            if sweeping.out.load(Ordering::SeqCst) > 0 {
                continue;
            }
            drop(run);
            // A lease forwarded after the first check relies on this task.
            if sweeping.out.load(Ordering::SeqCst) == 0 {
                return;
            }
            let Some(again) = SweepTask::start(sweeping) else { return };
            run = again;
        }
    }));
}

/// Marks the running sweep task. If its environment ends first, another task may start.
struct SweepTask(&'static Sweeping);

impl SweepTask {
    fn start(sweeping: &'static Sweeping) -> Option<Self> {
        (!sweeping.runs.swap(true, Ordering::SeqCst)).then_some(Self(sweeping))
    }
}

impl Drop for SweepTask {
    fn drop(&mut self) {
        self.0.runs.store(false, Ordering::SeqCst);
    }
}
