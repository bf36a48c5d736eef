//! Threads with a tokio runtime.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};

/// Runs `work` on a new thread, which makes the runtime. If the caller made it and the thread could not
/// start, the caller would drop the runtime, and tokio panics on that in async code.
pub(crate) fn spawn(name: &str, work: impl FnOnce(&Runtime) + Send + 'static) -> io::Result<Handle> {
    let (made, known) = mpsc::sync_channel(1);
    let run = move || match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            // The receiver waits for this value.
            let _ = made.send(Ok(runtime.handle().clone()));
            work(&runtime);
        }
        Err(error) => drop(made.send(Err(error))),
    };
    thread::Builder::new().name(name.to_owned()).spawn(run)?;
    known.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))
}
