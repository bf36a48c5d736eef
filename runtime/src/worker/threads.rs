//! A pool of threads for functions that compute or block: one for each slot.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::guard::discard_payload;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it ends the threads once they have run the queued jobs.
#[derive(Debug)]
pub(crate) struct Threads(Arc<JobQueue>);

#[derive(Default)]
struct JobQueue {
    state: Mutex<ThreadsState>,
    changed: Condvar,
}

#[derive(Default)]
struct ThreadsState {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

impl std::fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Threads {
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let threads = Self(Arc::default());
        for _ in 0..count {
            let queue = threads.0.clone();
            thread::Builder::new().name("towline-task".into()).spawn(move || queue.work())?;
        }
        Ok(threads)
    }

    /// Runs the job as soon as a thread is free. A thread survives a job that panics.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(Box::new(job));
        drop(state);
        self.0.changed.notify_one();
    }
}

impl JobQueue {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
                    tracing::error!("a job of a worker's thread panicked");
                    discard_payload(payload);
                }
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            } else if state.is_closed {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.0.changed.notify_all();
    }
}
