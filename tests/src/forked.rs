//! A child forked without `exec`, as Python's `multiprocessing` makes them: one thread of this process, and a copy of all the
//! memory.

#![expect(unsafe_code, reason = "no safe crate forks")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// How long a child lives whose parent died.
const LIFETIME_SECONDS: u32 = 100;

/// A child that lives, or has not been asked for how it ended.
#[derive(Debug)]
pub struct Forked(Pid);

impl Forked {
    /// Forks: the child does `work` and exits, without running what its parent left for the end.
    pub fn new(work: impl FnOnce()) -> Self {
        // SAFETY: M10: the child runs this thread alone, touches none of the locks that others may have held except as the code
        // under test does, whose claim that is, and ends below.
        let forked = unsafe { libc::fork() };
        assert!(forked >= 0, "{}", std::io::Error::last_os_error());
        let Some(child) = Pid::from_raw(forked) else {
            // A signal at the parent's death would come at the death of the thread that forked.
            // SAFETY: sets a timer of this process, whose signal ends it.
            unsafe { libc::alarm(LIFETIME_SECONDS) };
            let done = catch_unwind(AssertUnwindSafe(work));
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 1 }) }
        };
        Self(child)
    }

    /// Waits until it has done its work, which must have ended well, and within `limit`.
    pub fn assert_done(self, limit: Duration) {
        let begin = Instant::now();
        loop {
            if let Some((_, status)) = waitpid(Some(self.0), WaitOptions::NOHANG).expect("it is our child") {
                std::mem::forget(self);
                assert_eq!(status.exit_status(), Some(0), "what a fork did went wrong: {status:?}");
                return;
            }
            assert!(begin.elapsed() < limit, "a fork did not end within {limit:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}
