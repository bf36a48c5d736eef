//! Two threads wake each other's tasks in turn, by the same means as the runtime and nothing else: a lower
//! bound of a task's round trip.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::RuntimeThread;
use crate::failure::Failure;
use crate::results::ceiling::Ceiling;
use crate::results::sample::Sample;

/// Measures `wakeups` wake-ups between this thread and `thread`; the first tenth of the time warms up.
pub(super) async fn measure(
    thread: &RuntimeThread,
    wakeups: u32,
    duration: Duration,
) -> Result<Ceiling, Failure> {
    let (there, back) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (called, answer) = (there.clone(), back.clone());
    let far = thread.handle.spawn(async move {
        loop {
            called.notified().await;
            answer.notify_one();
        }
    });
    let mut sample = Sample::new();
    let begin = Instant::now();
    while begin.elapsed() < duration || sample.times.is_empty() {
        let sent = Instant::now();
        for _ in 0..wakeups / 2 {
            there.notify_one();
            back.notified().await;
        }
        if begin.elapsed() >= duration / 10 {
            sample.record(sent.elapsed());
        }
    }
    far.abort();
    Ok(Ceiling::latency("wakeups", sample.times.value_at_quantile(0.5) as f64 / 1e3))
}
