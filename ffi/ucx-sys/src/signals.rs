//! Preserves the program's signal handlers. The constructors of `libucs` install handlers when it is loaded:
//! for crashes up to some version (with an alternate stack), for `SIGHUP` in all.

#![expect(unsafe_code, reason = "no safe crate reads and restores handlers")]

use std::env;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;

/// Each of these variables, if set, asks for UCX's handlers. The last one may be 0, for no handler.
const OPT_IN: [&str; 3] = ["UCX_HANDLE_ERRORS", "UCX_ERROR_SIGNALS", "UCX_DEBUG_SIGNO"];

/// The signal actions of the process, and this thread's alternate stack.
pub(crate) struct Signals {
    actions: Vec<(c_int, libc::sigaction)>,
    stack: libc::stack_t,
}

impl Signals {
    /// Reads the current ones.
    pub(crate) fn now() -> Self {
        let actions = (1..=libc::SIGRTMAX()).filter_map(|signal| Some((signal, action(signal)?))).collect();
        let mut stack = MaybeUninit::zeroed();
        // SAFETY: L3: reads this thread's stack into the struct.
        unsafe { libc::sigaltstack(ptr::null(), stack.as_mut_ptr()) };
        // SAFETY: M4: all zeros is a valid value, and the call wrote another or nothing.
        let stack = unsafe { stack.assume_init() };
        Self { actions, stack }
    }

    /// Restores what changed since, unless the environment asks for UCX's handlers.
    pub(crate) fn restore(&self) {
        if OPT_IN.iter().any(|name| env::var_os(name).is_some_and(|value| value != "0")) {
            return;
        }
        for (signal, before) in &self.actions {
            if action(*signal).is_some_and(|now| now.sa_sigaction != before.sa_sigaction) {
                // SAFETY: L3: the action was in force until UCX replaced it.
                unsafe { libc::sigaction(*signal, before, ptr::null_mut()) };
            }
        }
        // SAFETY: L3: so was the stack, and this is the same thread.
        unsafe { libc::sigaltstack(&raw const self.stack, ptr::null_mut()) };
    }
}

/// Returns a signal's action; `None` for a signal that the C library reserves.
fn action(signal: c_int) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::zeroed();
    // SAFETY: L3: reads the action into the struct.
    let failed = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0;
    // SAFETY: M4: all zeros is a valid value, and a call that succeeded wrote another.
    (!failed).then(|| unsafe { action.assume_init() })
}
