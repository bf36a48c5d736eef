//! The environment of an endpoint: a clock, timers, randomness and task spawning.
//!
//! [`System`] is the real environment. A simulation implements [`Environment`] and controls all four.
//! Background tasks run in the environment and never on a caller's runtime, which may end or idle while the
//! endpoint lives.
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
    /// Returns the current time. Never goes back.
    fn now(&self) -> Duration;

    /// Returns a timer that ends once `now()` has reached `at`. Any executor may poll it, on any thread.
    fn sleep_until(&self, at: Duration) -> Task;

    /// Fills `out` with bytes that a peer cannot guess. A simulation may derive them from its seed.
    fn random(&self, out: &mut [u8]);

    /// Runs `task` to its end, independently of the caller. It is dropped unfinished only when the
    /// environment itself ends.
    fn spawn(&self, task: Task);
}

/// The system environment: the monotonic clock, the operating system's randomness, and one driver thread that
/// runs the tasks. Dropping it ends the thread.
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
    /// `Io` if a thread or a reactor cannot be created.
    pub fn start() -> Result<Self> {
        let (made, known) = mpsc::sync_channel(1);
        let dropped = Arc::new(Notify::new());
        let ended = dropped.clone();
        // The thread creates its runtime. A runtime created here would be dropped here if no thread can be
        // started, and tokio panics then if the caller is async code.
        let run = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                // The caller waits for this message.
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

    /// Runs the tasks on `runtime`, without a thread of its own. The runtime must have I/O and time enabled.
    /// On a runtime of several threads, background work uses several. On the callers' own runtime, it wakes
    /// no other thread.
    ///
    /// Its endpoints make progress only while the runtime runs, so the runtime should outlive them. After its
    /// end their calls fail with `Closed`, and polling a timer that began before panics.
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
            // A timer belongs to the runtime on which it is made.
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

/// Runs `task` until `at`. Returns `None`, and drops `task`, if `at` comes first. Any executor may poll it.
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
