//! What an endpoint takes from the world: a clock, timers, randomness and a place to run its tasks.
//!
//! A simulation implements [`Environment`] and owns all four; [`System`] is the real one.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future that may move between threads.
pub type Task<T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Clock, timers, randomness and spawning for one endpoint.
///
/// Times are durations since an arbitrary origin that never moves: only differences mean anything.
pub trait Environment: Debug + Send + Sync + 'static {
    /// The time now. Never goes back.
    fn now(&self) -> Duration;

    /// Ends once `now()` has reached `at`.
    fn sleep_until(&self, at: Duration) -> Task;

    /// Fills `out` with bytes a stranger cannot guess (a simulation may use its seed).
    fn random(&self, out: &mut [u8]);

    /// Runs `task` to its end, whatever the caller does next.
    fn spawn(&self, task: Task);
}

/// Runs `task` unless `at` comes first; `None` says that it did, and `task` was dropped.
pub(crate) async fn within<T>(
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
