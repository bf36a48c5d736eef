//! Empty tasks: how many a second pass through one scheduler, and how long one takes by itself.
//!
//! The scheduler has one thread; the client and all workers share another. The round trip of a task therefore
//! needs [`WAKEUPS`] wake-ups.

use std::time::Instant;

use tokio::task::yield_now;
use towline_runtime::{Client, Function, Future, Registry, TaskResult, Worker};

use super::Cluster;
use super::cores::PinnedThreads;
use super::wakeups;
use crate::case::Case;
use crate::case::Pace;
use crate::failure::Failure;
use crate::process::cpu_clock::CpuClock;
use crate::results::sample::{Repeat, Sample};

const EMPTY: Function<(), ()> = Function::new("empty");

/// Client to scheduler, to worker, to scheduler, to client. Worker and client share a thread, so the fetch
/// has none.
const WAKEUPS: u32 = 4;
/// Tasks that are submitted before the thread yields to its other jobs.
const AT_ONCE: usize = 256;

pub(super) async fn repeat(cluster: &Cluster, case: &Case, pace: Pace) -> Result<Repeat, Failure> {
    let registry = Registry::new().with_async(EMPTY, || async { TaskResult::Ok(()) });
    let mut workers = Vec::with_capacity(case.workers);
    for _ in 0..case.workers {
        let builder =
            Worker::builder(registry.clone()).slots(1).listen(case.transport.local_address().parse()?);
        workers.push(builder.start(&cluster.endpoint, cluster.address()).await?);
    }
    let client = Client::connect(&cluster.endpoint, cluster.address()).await?;
    // No thread may start after this: it would inherit the core.
    let _pinned = PinnedThreads::keep(&cluster.thread).await?;
    let load = Batch { client: &client, tasks: case.window };
    let begin = Instant::now();
    while begin.elapsed() < pace.warmup {
        load.run(&mut Sample::new(), case.window.min(AT_ONCE)).await?;
    }

    let mut sample = Sample::new();
    let scheduler_before = scheduler_seconds(cluster).await?;
    let begin = Instant::now();
    loop {
        load.run(&mut sample, load.tasks).await?;
        sample.elapsed = begin.elapsed();
        if sample.elapsed >= pace.duration {
            break;
        }
    }
    sample.scheduler_s = Some(scheduler_seconds(cluster).await? - scheduler_before);
    let mut ceilings = Vec::new();
    if case.window == 1 {
        ceilings.push(wakeups::measure(&cluster.thread, WAKEUPS, pace.ceiling()).await?);
    }
    Ok(Repeat { path: cluster.path.clone(), sample, ceilings })
}

async fn scheduler_seconds(cluster: &Cluster) -> Result<f64, Failure> {
    cluster.thread.run(async { CpuClock::Thread.seconds() }).await
}

struct Batch<'a> {
    client: &'a Client,
    /// Tasks that the scheduler has at the same time.
    tasks: usize,
}

impl Batch<'_> {
    /// Submits `tasks` tasks and waits until the scheduler has finished with them. The recorded time is a
    /// task's share of the total; for a single task, its round trip with its result.
    async fn run(&self, sample: &mut Sample, tasks: usize) -> Result<(), Failure> {
        let begin = Instant::now();
        if tasks == 1 {
            self.client.submit(EMPTY, ())?.result().await?;
        } else {
            let mut futures: Vec<Future<()>> = Vec::with_capacity(tasks);
            for number in 0..tasks {
                futures.push(self.client.submit(EMPTY, ())?);
                if number % AT_ONCE == 0 {
                    yield_now().await;
                }
            }
            for future in &futures {
                future.done().await?;
            }
            drop(futures);
            // The scheduler has dropped the released tasks once the next one is done.
            self.client.submit(EMPTY, ())?.done().await?;
        }
        sample.record(begin.elapsed() / tasks as u32);
        sample.count(tasks as u64, 0);
        Ok(())
    }
}
