//! What this end lends on: memory of others, whose leases go back to them once they are back here.
//!
//! Nobody here may ever ask for memory, nor lend again, and the owner waits for its own: so while anything is lent on, a task
//! looks what has come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::memory::arena::borrowed::OpaqueHandle;
use crate::platform::environment::Environment;
use crate::platform::process::PerProcess;

/// How long whoever waits for its memory may have to wait for us, who are in between.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// A lease of another's memory that was lent on. It does not hold the memory's pipes: only who can read does, so that two ends
/// which lent on to each other do not wait for one another's pipes.
#[derive(Debug)]
pub(super) struct Forwarded {
    _lease: OpaqueHandle,
    sweeping: &'static Sweeping,
}

/// What this process lends on.
#[derive(Debug, Default)]
struct Sweeping {
    /// How much is out.
    out: AtomicUsize,
    /// A task looks.
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

/// Has `sweep` called now and then on a task of `environment`, while anything is lent on and no other task does.
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
            // What was lent on before that was seen relies on this task.
            if sweeping.out.load(Ordering::SeqCst) == 0 {
                return;
            }
            let Some(again) = SweepTask::start(sweeping) else { return };
            run = again;
        }
    }));
}

/// The task that looks. Where its environment ends before it does, another may.
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
