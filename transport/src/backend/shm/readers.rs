//! The threads that read the memory of other processes. A page there may fault for as long as its owner likes
//! (userfaultfd, FUSE, NFS), and only the end of this process interrupts such a read. So reads run only on
//! threads that no other work waits for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use crate::platform::mutex::Mutex;
use crate::platform::process::PerProcess;

/// The most reader threads of a process, including those blocked in a read.
pub(super) const THREADS_MAX: usize = 8;
/// The time that an idle thread waits for the next read before it ends.
const IDLE_TIME: Duration = Duration::from_secs(2);

static READERS: PerProcess<Readers> = PerProcess::new(Readers::default);

/// The reader threads of a process.
#[derive(Default)]
struct Readers {
    state: Mutex<ReadersState>,
    /// Notified when a read is queued.
    wanted: Condvar,
}

#[derive(Default)]
struct ReadersState {
    reads: VecDeque<QueuedRead>,
    threads: usize,
    idle: usize,
}

/// A read that no thread has started.
struct QueuedRead {
    wanted: Weak<ReadHandle>,
    read: Box<dyn FnOnce() + Send>,
    afterwards: Box<dyn FnOnce() + Send>,
}

/// Held by the requester of a read. A read that has not started when this is dropped is discarded.
#[derive(Debug)]
pub(super) struct ReadHandle;

/// Runs `read` on the next free thread, and then `afterwards`, which may request another read and does not
/// block for long. `None` if no thread can be started.
pub(super) fn run(
    read: impl FnOnce() + Send + 'static,
    afterwards: impl FnOnce() + Send + 'static,
) -> Option<Arc<ReadHandle>> {
    let (readers, wanted) = (READERS.get(), Arc::new(ReadHandle));
    let mut state = readers.lock();
    // The discarded closures are dropped without the lock.
    let (reads, _forgotten): (VecDeque<_>, VecDeque<_>) =
        state.reads.drain(..).partition(QueuedRead::is_wanted);
    state.reads = reads;
    if state.idle <= state.reads.len() && state.threads < THREADS_MAX {
        let spawned = Builder::new().name("towline-reader".into()).spawn(|| serve(readers));
        match spawned {
            Ok(_) => (state.threads, state.idle) = (state.threads + 1, state.idle + 1),
            Err(_) if state.threads == 0 => {
                drop(state);
                return None;
            }
            Err(_) => {}
        }
    }
    let (read, afterwards) = (Box::new(read), Box::new(afterwards));
    state.reads.push_back(QueuedRead { wanted: Arc::downgrade(&wanted), read, afterwards });
    drop(state);
    readers.wanted.notify_one();
    Some(wanted)
}

/// Runs one thread. It counts as idle except during `read`: `afterwards` may request a read, which this
/// thread then serves.
fn serve(readers: &Readers) {
    let mut state = readers.lock();
    loop {
        match state.reads.pop_front() {
            Some(queued) if !queued.is_wanted() => {
                drop(state);
                drop(queued);
                state = readers.lock();
            }
            Some(QueuedRead { read, afterwards, .. }) => {
                state.idle -= 1;
                drop(state);
                // These closures run wakers and destructors of other code; a panic there must not cost the
                // thread.
                let _ = catch_unwind(AssertUnwindSafe(read));
                readers.lock().idle += 1;
                let _ = catch_unwind(AssertUnwindSafe(afterwards));
                state = readers.lock();
            }
            None => {
                let waited = readers.wanted.wait_timeout(state, IDLE_TIME);
                let (locked, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = locked;
                if timeout.timed_out() && state.reads.is_empty() {
                    (state.threads, state.idle) = (state.threads - 1, state.idle - 1);
                    return;
                }
            }
        }
    }
}

impl QueuedRead {
    fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, ReadersState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn blocked_reads_are_bounded_and_leave_other_threads_free() {
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (tell, told) = mpsc::channel();
        let block = |number| {
            let (held, tell) = (held.clone(), tell.clone());
            run(
                move || {
                    tell.send(number).unwrap();
                    let _ = held.lock().recv();
                },
                || {},
            )
        };
        let stuck: Vec<_> = (1..THREADS_MAX).map(block).collect();
        for _ in 1..THREADS_MAX {
            told.recv_timeout(TIMEOUT).expect("the read began");
        }
        let read = |number| {
            let tell = tell.clone();
            run(move || tell.send(number).unwrap(), || {})
        };
        let last = read(100);
        assert_eq!(told.recv_timeout(TIMEOUT), Ok(100), "one thread is free");
        let full = block(0);
        told.recv_timeout(TIMEOUT).expect("the read began");
        drop(read(200));
        let waits = read(300);
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "no thread is free");
        release.send(()).unwrap();
        assert_eq!(told.recv_timeout(TIMEOUT), Ok(300), "a discarded read does not run");
        drop((release, stuck, last, full, waits));
    }
}
