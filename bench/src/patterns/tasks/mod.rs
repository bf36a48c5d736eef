//! The patterns of the task runtime: a scheduler on its own thread, with workers and a client.

mod cores;
mod empty;
mod shuffle;
mod wakeups;
mod work;

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, yield_now};
use towline::environment::System;
use towline::{Address, Endpoint};
use towline_runtime::Scheduler;

pub(crate) use self::work::{Options, run};
use crate::case::Pace;
use crate::case::{Case, Pattern, Wait};
use crate::ceiling::memcpy::Destination;
use crate::failure::Failure;
use crate::process::runtime_thread;
use crate::results::sample::Repeat;
use crate::security::trust::Trust;

/// Runs one repeat of a case of the task runtime.
pub(crate) async fn repeat(
    case: &Case,
    pace: Pace,
    trust: &Trust,
    destination: &mut Destination,
) -> Result<Repeat, Failure> {
    let cluster = Cluster::start(case, trust).await?;
    if case.pattern == Pattern::Shuffle {
        return shuffle::repeat(&cluster, case, pace, trust, destination).await;
    }
    empty::repeat(&cluster, case, pace).await
}

/// A scheduler on its own thread, and what this thread needs to connect to it.
#[derive(Debug)]
struct Cluster {
    thread: RuntimeThread,
    scheduler: Scheduler,
    endpoint: Endpoint,
    /// The path from this thread to the scheduler.
    path: String,
    /// Keeps this thread from sleeping.
    _busy: Option<BusyTask>,
}

impl Cluster {
    async fn start(case: &Case, trust: &Trust) -> Result<Self, Failure> {
        let spins = case.wait == Wait::Spin;
        let thread = RuntimeThread::start("scheduler", spins)?;
        let address: Address = case.transport.local_address().parse()?;
        // Each endpoint works on the thread of its callers, so no further thread is woken.
        let endpoint = |system: Arc<System>| -> Result<Endpoint, Failure> {
            Ok(trust.builder(case.wait)?.environment(system).build()?)
        };
        let its_thread = Arc::new(System::on(thread.handle.clone()));
        let theirs = endpoint(its_thread.clone())?;
        let builder = Scheduler::builder().environment(its_thread);
        let scheduler = thread.run(async move { builder.start(&theirs, &address).await }).await??;
        let endpoint = endpoint(Arc::new(System::on(Handle::current())))?;
        let probe = endpoint.connect(scheduler.address()).await?;
        let path = probe.path().chosen().to_owned();
        probe.abort();
        let awake = spins.then(|| BusyTask(tokio::spawn(spin())));
        Ok(Self { thread, scheduler, endpoint, path, _busy: awake })
    }

    fn address(&self) -> &Address {
        self.scheduler.address()
    }
}

/// A thread with a runtime, until this is dropped.
#[derive(Debug)]
struct RuntimeThread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl RuntimeThread {
    fn start(name: &str, spins: bool) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::run(format!("the thread of the {name}: {error}"));
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move |runtime: &Runtime| {
            runtime.block_on(async {
                let _busy = spins.then(|| BusyTask(tokio::spawn(spin())));
                // Resolves when its sender is dropped.
                let _ = stopped.await;
            });
        };
        let handle = runtime_thread::spawn(name, work).map_err(failed)?;
        Ok(Self { handle, _stop: stop })
    }

    /// Runs `work` on that thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let running = self.handle.spawn(work);
        running.await.map_err(|error| Failure::run(format!("a thread of the bench: {error}")))
    }
}

/// Keeps a thread's runtime busy, so that it polls and never sleeps.
async fn spin() {
    loop {
        yield_now().await;
    }
}

#[derive(Debug)]
struct BusyTask(JoinHandle<()>);

impl Drop for BusyTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
