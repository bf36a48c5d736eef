//! A worker: its state machine ([`state`]), and the shell that runs functions, keeps values, and exchanges them with others.

mod driver;
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
pub(crate) use self::state::{Action, Start, State};
use crate::address;
use crate::background::AtEnd;
use crate::batch;
use crate::error::{Error, ErrorKind, Result};
use crate::function::Registry;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::protocol::{Offer, Role, SLOTS_MAX};

/// Memory for values, where nothing else was said, in bytes.
const MEMORY_BYTES_MAX: u64 = 2 << 30;

/// Runs tasks, and keeps what they made until nobody needs it.
///
/// It has a thread for each slot; all else runs in its endpoint's [environment](towline::environment). There one thread moves
/// what it gives and fetches, unless the endpoint was built [on a runtime](towline::environment::System::on) of several. Dropping
/// it leaves in good order: what it kept is made again elsewhere, where it is needed.
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
    /// Has it leave; when this is dropped, in good order.
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

/// Settles what a [`Worker`] is. [`start`](Self::start) starts it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    registry: Registry,
    slots: u32,
    memory_bytes_max: u64,
    listen: Option<Address>,
    advertise: Option<Address>,
}

impl Worker {
    /// The settings of a worker with these functions: a slot for each processor, and 2 GiB of memory or half of what this process
    /// [may have](towline::AvailableMemory), whichever is less.
    pub fn builder(registry: Registry) -> Builder {
        let slots = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let memory_bytes_max = AvailableMemory::bounded(MEMORY_BYTES_MAX, 2);
        Builder { registry, slots, memory_bytes_max, listen: None, advertise: None }
    }

    /// Waits until it ends, and tells why: it works as long as its scheduler lives. Cancel-safe.
    pub async fn ended(&mut self) -> Error {
        if let Some(error) = &self.ended {
            return error.clone();
        }
        let error = (&mut self.working).await.unwrap_or_else(|_| Error::environment_ended());
        self.ended.insert(error).clone()
    }

    /// Leaves in good order, and tells the scheduler before it goes: within the endpoint's
    /// [`linger`](towline::Builder::linger). What runs is run again elsewhere.
    pub async fn close(self) {
        self.leave(Leaving::Graceful).await;
    }

    /// Bytes of the values that are here or on their way here.
    pub fn memory_bytes(&self) -> u64 {
        self.driver.bytes()
    }

    /// Values that are here.
    pub fn values(&self) -> usize {
        self.driver.values()
    }

    /// What it counts.
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.driver)
    }

    /// Ends it as if it were killed.
    pub(crate) fn abort(self) {
        drop(self.leave(Leaving::Killed));
    }

    fn leave(self, how: Leaving) -> impl Future<Output = ()> {
        let Self { leave, working, .. } = self;
        // One that has ended already has left.
        let _ = leave.send(how);
        async move { _ = working.await }
    }
}

impl Builder {
    /// How many tasks run at the same time, 4,096 at the most.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots.max(1);
        self
    }

    /// Memory for results and inputs, in bytes. When most of it is in use, only tasks that use something up are run here; a task
    /// whose inputs or result take more fails with [`TooLarge`](ErrorKind::TooLarge).
    pub fn memory_bytes_max(mut self, memory_bytes_max: u64) -> Self {
        self.memory_bytes_max = memory_bytes_max;
        self
    }

    /// Where it listens for other workers and clients. By default at a free port: of the loopback interface where the scheduler's
    /// address is one of it, and of every interface elsewhere, which an endpoint without a token or TLS refuses; or under a free
    /// name of this process, for a scheduler at `mem`.
    ///
    /// A worker that listens at every interface (`tcp://*:0`) is found at the address by which the scheduler sees it.
    pub fn listen(mut self, address: Address) -> Self {
        self.listen = Some(address);
        self
    }

    /// Where other workers and clients find it, in place of the address that it listens at: behind a translation of addresses,
    /// say, or in a container whose port is published. Port 0 stands for the port that it listens at.
    pub fn advertise(mut self, address: Address) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Starts the worker, and joins the scheduler at `address`.
    ///
    /// # Errors
    /// [`Transport`](ErrorKind::Transport) if nobody listens there, [`TooLarge`](ErrorKind::TooLarge) for too many slots;
    /// [`Invalid`](ErrorKind::Invalid) for a scheduler of another version, for an address at which others could not find this
    /// worker, and for one without TLS where the scheduler's address asks for it.
    pub async fn start(self, endpoint: &Endpoint, address: &Address) -> Result<Worker> {
        if self.slots > SLOTS_MAX {
            let why = format!("a worker of {} slots: the most are {SLOTS_MAX}", self.slots);
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
        // However it ends; without its connection, which goes with it, the scheduler gives its tasks to others.
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
