//! Who is calls UCX when the process ends: its libraries take themselves apart at exit, whatever other threads do meanwhile.
//!
//! The invariant: once the first of our exit handlers has returned, nobody is calls, and nobody gets in any more.

#![expect(unsafe_code, reason = "a handler of exit is C")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::platform::mutex::Mutex;

/// The longest that an exit waits for who is calls: polls are short, and the making of a context is not.
const WAIT_MAX: Duration = Duration::from_secs(2);

static EXITING: AtomicBool = AtomicBool::new(false);
static GATES: Mutex<Vec<Weak<ExitGate>>> = Mutex::new(Vec::new());

/// The way into UCX for whoever has one engine, or one context.
#[derive(Debug, Default)]
pub(super) struct ExitGate {
    calls: AtomicUsize,
}

/// Somebody is calls until this is dropped.
#[derive(Debug)]
pub(super) struct CallGuard<'a>(&'a ExitGate);

impl ExitGate {
    pub(super) fn new() -> Arc<Self> {
        static REGISTERED: Once = Once::new();
        // SAFETY: L6: the handler may be called at any time after this, and does not unwind. Where it cannot be registered, nothing
        // waits for anybody.
        REGISTERED.call_once(|| unsafe {
            libc::atexit(close);
        });
        let gate = Arc::new(Self::default());
        let mut gates = GATES.lock();
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(Arc::downgrade(&gate));
        gate
    }

    /// Lets somebody in, unless the process ends.
    pub(super) fn enter(&self) -> Option<CallGuard<'_>> {
        // Either this is seen by the exit, or the exit by this: both are stored before the other is read.
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

/// Waits until nobody is calls.
extern "C" fn close() {
    EXITING.store(true, Ordering::SeqCst);
    let end = Instant::now() + WAIT_MAX;
    // Whoever holds the list makes or drops an engine.
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
