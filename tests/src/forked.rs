//! A child forked without `exec`, as Python's `multiprocessing` makes them: it has one thread and a copy of
//! all memory.

#![expect(unsafe_code, reason = "no safe crate forks")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Lifetime of a child whose parent has ended.
const LIFETIME_SECONDS: u32 = 100;

/// A child whose exit status has not been collected.
#[derive(Debug)]
pub struct Forked(Pid);

impl Forked {
    /// Forks. The child runs `work` and exits without the parent's exit handlers.
    pub fn new(work: impl FnOnce()) -> Self {
        // SAFETY: M10: the child runs this thread alone. It takes locks that other threads may have held only
        // as the code under test does, which claims to support that. It ends below.
        let forked = unsafe { libc::fork() };
        assert!(forked >= 0, "{}", std::io::Error::last_os_error());
        let Some(child) = Pid::from_raw(forked) else {
            // A death signal of the parent would be sent when the thread that forked ends.
            // SAFETY: sets a timer of this process, whose signal ends it.
            unsafe { libc::alarm(LIFETIME_SECONDS) };
            let done = catch_unwind(AssertUnwindSafe(work));
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 1 }) }
        };
        Self(child)
    }

    /// Waits until the child has exited. Panics unless it exits within `limit` and with success.
    pub fn assert_done(self, limit: Duration) {
        let begin = Instant::now();
        loop {
            if let Some((_, status)) = waitpid(Some(self.0), WaitOptions::NOHANG).expect("it is our child") {
                std::mem::forget(self);
                assert_eq!(status.exit_status(), Some(0), "the forked child failed: {status:?}");
                return;
            }
            assert!(begin.elapsed() < limit, "the forked child did not end within {limit:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // The child may have ended already.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}
