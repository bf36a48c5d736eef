//! What an endpoint takes from the world: a clock, timers, randomness and a place to run its tasks.
//!
//! A simulation implements [`Environment`] and owns all four; [`System`] is the real one. Background tasks
//! run here and never on the runtime of a caller, which may end or stand idle while the endpoint lives.
//!
//! ```
//! use std::sync::Arc;
//! use towline::Endpoint;
//! use towline::environment::System;
//!
//! // An endpoint without a thread of its own: its tasks run on the application's tokio runtime.
//! # #[tokio::main]
//! # async fn main() -> towline::Result<()> {
//! let here = System::on(tokio::runtime::Handle::current());
//! let endpoint = Endpoint::builder().environment(Arc::new(here)).build()?;
//! # drop(endpoint);
//! # Ok(())
//! # }
//! ```

#[cfg(any(test, feature = "internals"))]
pub(crate) mod clockwork;

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use crate::error::{Error, Result};

/// A boxed future that may move between threads.
pub type Task<T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Clock, timers, randomness and spawning for one endpoint.
///
/// Times are durations since an arbitrary origin that never moves: only differences mean anything.
pub trait Environment: Debug + Send + Sync + 'static {
    /// The time now. Never goes back.
    fn now(&self) -> Duration;

    /// Ends once `now()` has reached `at`. Any executor may poll it, on any thread.
    fn sleep_until(&self, at: Duration) -> Task;

    /// Fills `out` with bytes an unauthenticated peer cannot guess (a simulation may use its seed).
    fn random(&self, out: &mut [u8]);

    /// Runs `task` to its end, whatever the caller does next. It is dropped unfinished only where the
    /// environment itself ends.
    fn spawn(&self, task: Task);
}

/// The real world: the monotonic clock, the operating system's randomness, and one driver thread that runs
/// the tasks. The thread ends when this is dropped.
#[derive(Debug)]
pub struct System {
    origin: Instant,
    driver: Handle,
    /// Stops the driver thread; `None` on a runtime of the application.
    dropped: Option<Arc<Notify>>,
}

impl System {
    /// Starts the driver thread.
    ///
    /// # Errors
    /// `Io` if there is no thread, or no reactor, to be had.
    pub fn start() -> Result<Self> {
        let (made, known) = mpsc::sync_channel(1);
        let dropped = Arc::new(Notify::new());
        let ended = dropped.clone();
        // The thread makes its runtime. One that was made here would be dropped here where no thread can be
        // had, and tokio panics then if the caller is async code.
        let run = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                // Whoever asked waits for it.
                let _ = made.send(Ok(runtime.handle().clone()));
                runtime.block_on(ended.notified());
            }
            Err(error) => drop(made.send(Err(error))),
        };
        std::thread::Builder::new().name("towline-driver".into()).spawn(run).map_err(Error::io)?;
        let ended = || Err(io::Error::other("the driver thread ended at once"));
        let driver = known.recv().unwrap_or_else(|_| ended()).map_err(Error::io)?;
        Ok(Self { origin: Instant::now(), driver, dropped: Some(dropped) })
    }

    /// Runs the tasks on this runtime, which has I/O and time enabled, without a thread of its own. On a
    /// runtime of several threads, background work uses several; on that of its callers, it wakes no other
    /// thread.
    ///
    /// Its endpoints make progress only while the runtime runs, which should outlive them: afterwards their
    /// calls fail with `Closed`, and polling a timer that began before panics.
    pub fn on(runtime: Handle) -> Self {
        Self { origin: Instant::now(), driver: runtime, dropped: None }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.notify_one();
        }
    }
}

impl Environment for System {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Task {
        let (at, driver) = (self.origin.checked_add(at), self.driver.clone());
        Box::pin(async move {
            let Some(at) = at else { return std::future::pending().await };
            // A timer belongs to the runtime that it was made on.
            let timer = {
                let _on_driver = driver.enter();
                tokio::time::sleep_until(at.into())
            };
            timer.await;
        })
    }

    fn random(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system gives random bytes");
    }

    fn spawn(&self, task: Task) {
        self.driver.spawn(task);
    }
}

/// Runs `task` unless `at` comes first; `None` says that it did, and `task` was dropped. Any executor may
/// poll it.
pub async fn within<T>(
    environment: &dyn Environment,
    at: Duration,
    task: impl Future<Output = T>,
) -> Option<T> {
    let mut timer = environment.sleep_until(at);
    let mut task = std::pin::pin!(task);
    std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(value) = task.as_mut().poll(cx) {
            return std::task::Poll::Ready(Some(value));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}
