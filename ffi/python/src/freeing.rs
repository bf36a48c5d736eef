//! A thread that frees large memory, so that no thread does so while it is attached to the interpreter: to unmap
//! 1 GiB takes milliseconds, in small pages a hundred. To detach for it would cost the wait for the interpreter
//! afterwards.
//!
//! The invariant: the thread only drops what it gets. It never attaches.

use std::process;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;

/// What may be dropped on any thread.
type Freed = Box<dyn Send>;

struct FreeingThread {
    /// A forked child has no such thread.
    process: u32,
    sender: Sender<Freed>,
}

static THREAD: Mutex<Option<FreeingThread>> = Mutex::new(None);

/// Has `memory` dropped by the thread, which the first call starts. Drops it here if that fails.
pub(crate) fn free(memory: impl Send + 'static) {
    // Another thread, or one of the parent at a fork, may hold the lock.
    let Ok(mut current) = THREAD.try_lock() else { return };
    let process = process::id();
    if current.as_ref().is_none_or(|thread| thread.process != process) {
        // The parent's channel may be in use by threads that this process does not have.
        std::mem::forget(current.take());
        *current = FreeingThread::start(process);
    }
    if let Some(thread) = &*current {
        // It returns the memory if the thread has ended.
        drop(thread.sender.send(Box::new(memory)));
    }
}

impl FreeingThread {
    fn start(process: u32) -> Option<Self> {
        let (sender, receiver) = mpsc::channel();
        let free = move || receiver.into_iter().for_each(drop);
        thread::Builder::new().name("towline-free".to_owned()).spawn(free).ok()?;
        Some(Self { process, sender })
    }
}
