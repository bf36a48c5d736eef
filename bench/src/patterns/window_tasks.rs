//! Tasks that each keep one message in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::PatternContext;
use crate::failure::Failure;
use crate::results::sample::Sample;

/// A window of tasks, and what they measured together.
#[derive(Debug)]
pub(super) struct WindowTasks<T> {
    tasks: JoinSet<Result<T, Failure>>,
    times: SharedSample,
    size_bytes: u64,
}

/// Where every lane writes down its messages.
#[derive(Clone, Debug)]
pub(super) struct SharedSample(Arc<Mutex<Sample>>);

impl SharedSample {
    pub(super) fn record(&self, time: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).record(time);
    }
}

impl<T: Send + 'static> WindowTasks<T> {
    /// Lanes for messages of `size_bytes`.
    pub(super) fn new(size_bytes: usize) -> Self {
        let times = SharedSample(Arc::new(Mutex::new(Sample::new())));
        Self { tasks: JoinSet::new(), times, size_bytes: size_bytes as u64 }
    }

    pub(super) fn times(&self) -> SharedSample {
        self.times.clone()
    }

    pub(super) fn spawn(&mut self, lane: impl Future<Output = Result<T, Failure>> + Send + 'static) {
        self.tasks.spawn(lane);
    }

    /// Waits for every lane and adds to `sample` what they did. The first failure ends them all.
    pub(super) async fn end(mut self, sample: &mut Sample) -> Result<Vec<T>, Failure> {
        let mut ends = Vec::with_capacity(self.tasks.len());
        while let Some(end) = self.tasks.join_next().await {
            ends.push(end.map_err(|error| Failure::run(format!("a lane of messages: {error}")))??);
        }
        let times = self.times.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Both have the same bounds, so adding cannot fail.
        let _ = sample.times.add(&times.times);
        sample.count(times.times.len(), times.times.len() * self.size_bytes);
        Ok(ends)
    }
}

impl WindowTasks<()> {
    /// A window of lanes that deliver messages until `until`. Each takes the next number in the same step as it sends, so
    /// numbers leave in order.
    pub(super) fn delivering(bench: PatternContext<'_>, next: &Arc<AtomicU64>, until: Instant) -> Self {
        let mut window_tasks = Self::new(bench.case.size.0);
        for _ in 0..bench.case.window {
            let (connection, load) = (bench.peer.connection.clone(), bench.load.clone());
            let (next, times) = (next.clone(), window_tasks.times());
            window_tasks.spawn(async move {
                loop {
                    let message = load.message(next.fetch_add(1, Ordering::Relaxed));
                    let sent = Instant::now();
                    connection.deliver(message).await?;
                    times.record(sent.elapsed());
                    if Instant::now() >= until {
                        return Ok(());
                    }
                }
            });
        }
        window_tasks
    }
}
