//! A cluster within one process.

use towline::{Address, Endpoint};

use crate::client::Client;
use crate::error::Result;
use crate::function::Registry;
use crate::scheduler::Scheduler;
use crate::worker::Worker;

/// A scheduler, workers and a client in this process. They communicate over `mem`, which hands data over
/// without a copy.
///
/// Everything runs in the [environment](towline::environment) of its endpoint, except the scheduler, which
/// has a thread, and functions, which have one thread for each slot. Dropping the cluster ends it.
///
/// ```
/// use towline_runtime::{Function, LocalCluster, Registry, TaskResult};
///
/// const DOUBLE: Function<(i64,), i64> = Function::new("double");
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let cluster = LocalCluster::start(2, Registry::new().with(DOUBLE, |n: i64| TaskResult::Ok(2 * n))).await?;
/// let two = cluster.client().submit(DOUBLE, (1,))?;
/// let four = cluster.client().submit(DOUBLE, (&two,))?;
/// assert_eq!(four.result().await?, 4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LocalCluster {
    client: Client,
    workers: Vec<Worker>,
    scheduler: Scheduler,
    endpoint: Endpoint,
    registry: Registry,
}

impl LocalCluster {
    /// Starts a cluster of `workers` workers with one slot each and these functions.
    ///
    /// # Errors
    /// [`Transport`](crate::ErrorKind::Transport) if a thread cannot be started.
    pub async fn start(workers: usize, registry: Registry) -> Result<Self> {
        let endpoint = Endpoint::new()?;
        let scheduler = Scheduler::start(&endpoint, &"mem://".parse::<Address>()?).await?;
        let client = Client::connect(&endpoint, scheduler.address()).await?;
        let mut cluster = Self { client, workers: Vec::new(), scheduler, endpoint, registry };
        for _ in 0..workers {
            cluster.join().await?;
        }
        Ok(cluster)
    }

    /// The client of this cluster. Other clients may connect to [`address`](Self::address).
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The scheduler of this cluster.
    pub const fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The address of the scheduler, valid within this process.
    pub const fn address(&self) -> &Address {
        self.scheduler.address()
    }

    /// The endpoint that all parts share.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The workers, in the order in which they joined.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn join(&mut self) -> Result<()> {
        let builder = Worker::builder(self.registry.clone()).slots(1);
        self.workers.push(builder.start(&self.endpoint, self.scheduler.address()).await?);
        // After this reply the client knows the worker.
        self.client.stats().await.map(drop)
    }

    /// Ends a worker: in good order, or as if its process were killed.
    ///
    /// # Panics
    /// If there is no worker of that index.
    pub fn end_worker(&mut self, index: usize, killed: bool) {
        let worker = self.workers.remove(index);
        if killed {
            worker.abort();
        }
    }
}
