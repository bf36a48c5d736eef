//! A worker: its state machine ([`state`]), and its [`driver`], which runs functions, stores values, and
//! exchanges them with peers.

mod counts;
mod driver;
#[cfg(feature = "metrics")]
mod metrics;
mod serving;
mod state;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::Arc;

use tokio::sync::oneshot;
use towline::{Address, AvailableMemory, Endpoint, Scheme};

use self::driver::WorkerDriver;
#[cfg(test)]
pub(crate) use self::state::{Start, WorkerAction, WorkerState};
use crate::address;
use crate::background::AtEnd;
use crate::batch;
use crate::error::{Error, ErrorKind, Result};
use crate::function::Registry;
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::protocol::{Offer, Role, SLOTS_MAX};

/// Default memory limit for values, in bytes.
const MEMORY_BYTES_MAX: u64 = 2 << 30;

/// Runs tasks, and keeps their results until they are no longer needed.
///
/// It has one thread for each slot; all else runs in its endpoint's [environment](towline::environment).
/// There one thread moves its data, unless the endpoint was built
/// [on a runtime](towline::environment::System::on) with several. Dropping the worker leaves in good order:
/// other workers recompute its results where they are needed.
///
/// ```
/// use towline::Endpoint;
/// use towline_runtime::{Client, Function, Registry, Scheduler, TaskResult, Worker};
///
/// const ADD: Function<(i64, i64), i64> = Function::new("add");
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let endpoint = Endpoint::new()?;
/// let scheduler = Scheduler::start(&endpoint, &"towline://127.0.0.1:0".parse()?).await?;
///
/// // In other processes, given the address:
/// let registry = Registry::new().with(ADD, |a, b| TaskResult::Ok(a + b));
/// let worker = Worker::builder(registry).slots(2).start(&endpoint, scheduler.address()).await?;
/// let client = Client::connect(&endpoint, scheduler.address()).await?;
/// assert_eq!(client.submit(ADD, (20, 22))?.result().await?, 42);
/// # drop(worker);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker {
    driver: Arc<WorkerDriver>,
    /// Makes the worker leave; dropping it leaves in good order.
    leave: oneshot::Sender<Leaving>,
    working: oneshot::Receiver<Error>,
    ended: Option<Error>,
}

/// How a worker leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leaving {
    Graceful,
    /// As if its process were killed.
    Killed,
}

/// Settings of a [`Worker`]. [`start`](Self::start) starts it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct WorkerBuilder {
    registry: Registry,
    slots: u32,
    memory_bytes_max: u64,
    listen: Option<Address>,
    advertise: Option<Address>,
}

impl Worker {
    /// Returns the default settings of a worker with these functions: one slot for each processor, and 2 GiB
    /// of memory or half of what is [available](towline::AvailableMemory) to this process, whichever is less.
    pub fn builder(registry: Registry) -> WorkerBuilder {
        let slots = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let memory_bytes_max = AvailableMemory::bounded(MEMORY_BYTES_MAX, 2);
        WorkerBuilder { registry, slots, memory_bytes_max, listen: None, advertise: None }
    }

    /// Waits until the worker ends, and returns the reason. It runs as long as its scheduler lives.
    /// Cancel-safe.
    pub async fn ended(&mut self) -> Error {
        if let Some(error) = &self.ended {
            return error.clone();
        }
        let error = (&mut self.working).await.unwrap_or_else(|_| Error::environment_ended());
        self.ended.insert(error).clone()
    }

    /// Leaves in good order, and notifies the scheduler. Blocks for at most the endpoint's
    /// [`linger`](towline::Builder::linger). Running tasks run again elsewhere.
    pub async fn close(self) {
        self.leave(Leaving::Graceful).await;
    }

    /// Returns the bytes of the values that are here or being fetched.
    pub fn memory_bytes(&self) -> u64 {
        self.driver.bytes()
    }

    /// Returns the number of values that are here.
    pub fn values(&self) -> usize {
        self.driver.values()
    }

    /// Returns its metrics.
    #[cfg(feature = "metrics")]
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.driver)
    }

    /// Ends it as if its process were killed.
    pub(crate) fn abort(self) {
        drop(self.leave(Leaving::Killed));
    }

    fn leave(self, how: Leaving) -> impl Future<Output = ()> {
        let Self { leave, working, .. } = self;
        // The worker may have ended already.
        let _ = leave.send(how);
        async move { _ = working.await }
    }
}

impl WorkerBuilder {
    /// Sets how many tasks run at the same time, at most 4,096.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots.max(1);
        self
    }

    /// Sets the memory limit for results and inputs, in bytes. When most of it is in use, only tasks with
    /// inputs run here. A task whose inputs or result take more fails with [`TooLarge`](ErrorKind::TooLarge).
    pub fn memory_bytes_max(mut self, memory_bytes_max: u64) -> Self {
        self.memory_bytes_max = memory_bytes_max;
        self
    }

    /// Sets where the worker listens for workers and clients. The default is a free port: of the loopback
    /// interface if the scheduler's address is on it, else of every interface, which an endpoint without a
    /// token or TLS refuses. For a scheduler at `mem` it is a free name of this process.
    ///
    /// The scheduler publishes the observed IP address of a worker that listens at every interface
    /// (`tcp://*:0`).
    pub fn listen(mut self, address: Address) -> Self {
        self.listen = Some(address);
        self
    }

    /// Sets the address that is published to workers and clients, in place of the listener's: behind address
    /// translation, say, or in a container with a published port. Port 0 stands for the listener's port.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Starts the worker, and joins the scheduler at `address`.
    ///
    /// # Errors
    /// [`Transport`](ErrorKind::Transport) if no scheduler listens there, [`TooLarge`](ErrorKind::TooLarge)
    /// for too many slots; [`Invalid`](ErrorKind::Invalid) for a scheduler of another version, for an address
    /// that peers could not connect to, and for one without TLS where the scheduler's address requires it.
    pub async fn start(self, endpoint: &Endpoint, address: &Address) -> Result<Worker> {
        if self.slots > SLOTS_MAX {
            let why = format!("a worker with {} slots: the maximum is {SLOTS_MAX}", self.slots);
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let listener = endpoint.listen(&self.address_beside(address)?).await?;
        let advertised =
            address::offer_address(endpoint, listener.address(), self.advertise.as_ref(), address).await?;
        let connection = endpoint.connect(address).await?;
        let offer = Offer {
            address: advertised.to_string(),
            slots: self.slots,
            memory_bytes_max: self.memory_bytes_max,
        };
        let number = batch::handshake(endpoint, &connection, Role::Worker(offer)).await?;
        tracing::info!(number, address = %listener.address(), %advertised, "worker joined");
        let peers = Peers::new(endpoint.clone(), address.clone());
        let driver = WorkerDriver::start(peers, self.registry, self.slots as usize, self.memory_bytes_max)?;
        let ((leave, leaving), (ended_sender, working)) = (oneshot::channel(), oneshot::channel());
        // However the job ends: it drops the connection too, so that the scheduler reassigns its tasks.
        let over = AtEnd({
            let driver = driver.clone();
            move || driver.close()
        });
        let work = over.around(driver.clone().work(connection, listener, leaving));
        endpoint.environment().spawn(Box::pin(async move { _ = ended_sender.send(work.await) }));
        Ok(Worker { driver, leave, working, ended: None })
    }

    fn address_beside(&self, scheduler: &Address) -> Result<Address> {
        if let Some(address) = &self.listen {
            return Ok(address.clone());
        }
        let beside: Address = match scheduler.scheme() {
            Scheme::Mem => "mem://".parse()?,
            scheme if address::is_same_host(scheduler) => Address::new(scheme, "127.0.0.1", 0)?,
            scheme => Address::new(scheme, "*", 0)?,
        };
        Ok(beside.with_options_of(scheduler)?)
    }
}
