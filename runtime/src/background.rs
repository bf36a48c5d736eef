//! Background jobs of this crate: they run in the environment of an endpoint.
//!
//! A caller's runtime may end or stall while its client or worker lives. An endpoint's environment lives as
//! long as the endpoint. So this crate spawns nothing on the runtime of a caller, and uses none of its
//! timers.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use towline::Endpoint;
use towline::environment::{self, Environment};

/// The jobs of one owner. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct Background {
    environment: Arc<dyn Environment>,
    /// Each job holds a receiver.
    jobs: watch::Sender<()>,
}

impl Background {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self::on(endpoint.environment().clone())
    }

    pub(crate) fn on(environment: Arc<dyn Environment>) -> Self {
        Self { environment, jobs: watch::Sender::new(()) }
    }

    /// Runs `job` to its end, or until this value is dropped.
    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let mut stopped = self.jobs.subscribe();
        self.environment.spawn(Box::pin(async move {
            tokio::select! {
                biased;
                _ = stopped.changed() => {}
                () = job => {}
            }
        }));
    }

    /// Returns the number of jobs that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.jobs.receiver_count()
    }

    /// Waits until all jobs have ended.
    pub(crate) async fn ended(&self) {
        self.jobs.closed().await;
    }
}

/// Runs `work` in the endpoint's environment, for code that needs a tokio runtime. Returns `None` if the
/// environment ends first.
pub(crate) async fn run_in_environment<T: Send + 'static>(
    endpoint: &Endpoint,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let job = Background::of(endpoint);
    // The caller may have stopped waiting.
    job.spawn(async move { _ = sender.send(work.await) });
    receiver.await.ok()
}

/// Runs `work` for at most `time`. Returns `None` on timeout, and drops `work`.
pub(crate) async fn within<T>(
    endpoint: &Endpoint,
    time: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let environment = &**endpoint.environment();
    environment::within(environment, environment.now() + time, work).await
}

/// Calls a function when it is dropped, also where its job is stopped, panics, or ends with its environment.
pub(crate) struct AtEnd<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> AtEnd<F> {
    /// Runs `job`, and drops this guard after it. The returned future owns the guard, so a job that is never
    /// polled ends as well.
    pub(crate) async fn around<T>(self, job: impl Future<Output = T>) -> T {
        let _at_end = self;
        job.await
    }
}

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<F: FnMut()> fmt::Debug for AtEnd<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtEnd").finish_non_exhaustive()
    }
}
