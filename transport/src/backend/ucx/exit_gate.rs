//! Keeps UCX calls out of the process's exit: UCX's libraries run destructors at exit while other threads may
//! still call them.
//!
//! The invariant: once the first of our exit handlers has returned, no call into UCX is running, and none
//! starts any more.

#![expect(unsafe_code, reason = "a C exit handler")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::platform::mutex::Mutex;

/// The longest time that an exit waits for running calls. Polls are short; creating a context is not.
const WAIT_MAX: Duration = Duration::from_secs(2);

static EXITING: AtomicBool = AtomicBool::new(false);
static GATES: Mutex<Vec<Weak<ExitGate>>> = Mutex::new(Vec::new());

/// Counts the running UCX calls of one engine or one context.
#[derive(Debug, Default)]
pub(super) struct ExitGate {
    calls: AtomicUsize,
}

/// One running call, until this is dropped.
#[derive(Debug)]
pub(super) struct CallGuard<'a>(&'a ExitGate);

impl ExitGate {
    pub(super) fn new() -> Arc<Self> {
        static REGISTERED: Once = Once::new();
        // SAFETY: L6: the handler may be called at any time after this, and does not unwind. If it cannot be
        // registered, an exit does not wait for running calls.
        REGISTERED.call_once(|| unsafe {
            libc::atexit(close);
        });
        let gate = Arc::new(Self::default());
        let mut gates = GATES.lock();
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(Arc::downgrade(&gate));
        gate
    }

    /// Starts a call, unless the process is exiting.
    pub(super) fn enter(&self) -> Option<CallGuard<'_>> {
        // Both sides store before they load, so either the exit handler sees this call, or this call sees the
        // exit.
        self.calls.fetch_add(1, Ordering::SeqCst);
        let guard = CallGuard(self);
        (!EXITING.load(Ordering::SeqCst)).then_some(guard)
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until no call is running.
extern "C" fn close() {
    EXITING.store(true, Ordering::SeqCst);
    let end = Instant::now() + WAIT_MAX;
    // The list is locked only while an engine is created or dropped.
    let gates: Vec<_> = loop {
        match GATES.try_lock() {
            Some(gates) => break gates.iter().filter_map(Weak::upgrade).collect(),
            None if Instant::now() < end => thread::yield_now(),
            None => return,
        }
    };
    while gates.iter().any(|gate| gate.calls.load(Ordering::SeqCst) > 0) && Instant::now() < end {
        thread::yield_now();
    }
}
