//! A client: submits tasks, and fetches their results on demand.

mod arguments;
mod driver;
mod future;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde::Serialize;
use serde::de::DeserializeOwned;
use towline::{Address, Endpoint};

pub use self::arguments::{Argument, Arguments};
use self::driver::ClientDriver;
pub use self::future::Future;
#[cfg(test)]
pub(crate) use self::state::{ClientState, TRIES_MAX};
use crate::background::{AtEnd, Background};
use crate::batch;
use crate::error::{Error, ErrorKind, Result};
use crate::function::Function;
use crate::peers::Peers;
use crate::protocol::{self, ARGUMENTS_LEN_MAX, Blob, INPUTS_MAX, Role};
use crate::stats::Stats;
use crate::value::{EncodedArguments, Value};

/// Values that are fetched concurrently by one gather.
const GATHERED_MAX: usize = 64;

/// Submits tasks to a scheduler. Dropping the client releases its tasks, and ends its futures.
///
/// Its methods may be called from any thread and awaited on any executor. They need no tokio runtime, and
/// outlive the runtime that the client was created on. Its messages are sent and received in its endpoint's
/// [environment](towline::environment).
///
/// ```
/// use towline_runtime::{Data, Function, LocalCluster, Registry, TaskResult};
///
/// const FILL: Function<(u8, usize), Data> = Function::new("fill");
/// const SUM: Function<(Vec<Data>,), u64> = Function::new("sum");
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let registry = Registry::new()
///     .with(FILL, |byte, len| TaskResult::Ok(Data::from(vec![byte; len])))
///     .with(SUM, |blocks: Vec<Data>| {
///         let sum = |block: &Data| block.as_slice().into_iter().flatten().map(|byte| u64::from(*byte)).sum::<u64>();
///         TaskResult::Ok(blocks.iter().map(sum).sum())
///     });
/// let cluster = LocalCluster::start(2, registry).await?;
///
/// // A list of futures stands where the function takes a list: the blocks go from worker to worker, and not here.
/// let blocks = cluster.client().map(FILL, [(1, 1000), (2, 1000)])?;
/// let sum = cluster.client().submit(SUM, (&blocks,))?;
/// assert_eq!(sum.result().await?, 3000);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    driver: Arc<ClientDriver>,
    /// Exchanges messages with the scheduler.
    _receiving: Background,
    /// Selects the worker for the next scattered value, in turn.
    next_worker: AtomicU32,
}

impl Client {
    /// Joins the scheduler at `address`.
    ///
    /// # Errors
    /// [`Transport`](ErrorKind::Transport) if no scheduler listens there, [`Invalid`](ErrorKind::Invalid) for
    /// a scheduler of another version.
    pub async fn connect(endpoint: &Endpoint, address: &Address) -> Result<Self> {
        let connection = endpoint.connect(address).await?;
        let number = batch::handshake(endpoint, &connection, Role::Client).await?;
        let driver = Arc::new(ClientDriver::new(number, Peers::new(endpoint.clone(), address.clone())));
        let receiving = Background::of(endpoint);
        // However the job ends, pending calls fail.
        let over = AtEnd({
            let driver = driver.clone();
            move || driver.end(&Error::environment_ended())
        });
        receiving.spawn(over.around(driver.clone().receive_messages(connection)));
        Ok(Self { driver, _receiving: receiving, next_worker: AtomicU32::new(0) })
    }

    /// Submits a call of `function` with these arguments: a tuple of values, and of futures in place of
    /// values. Does not block: the message is queued in memory until the connection can send it.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for arguments that cannot be serialized, or a future of another
    /// client; [`TooLarge`](ErrorKind::TooLarge) for more than 1 MiB of arguments, without the futures'
    /// values, and once the scheduler has refused this client because its tasks take
    /// [too much memory](crate::SchedulerBuilder::client_bytes_max);
    /// [`SchedulerLost`](ErrorKind::SchedulerLost).
    pub fn submit<P, R>(&self, function: Function<P, R>, arguments: impl Arguments<P>) -> Result<Future<R>> {
        let EncodedArguments { bytes, placeholders, inputs } = EncodedArguments::of(&arguments)?;
        let (len, count) = (bytes.len(), placeholders.len());
        let arguments = protocol::TaskArguments { bytes: Blob(bytes.into()), placeholders };
        if !arguments.are_within_limits(inputs.len()) {
            let why = format!(
                "the arguments take {len} bytes and {count} futures, and the limits are {ARGUMENTS_LEN_MAX} and {INPUTS_MAX}: scatter what is large"
            );
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let key = self.driver.submit(function.name(), function.types(), inputs, arguments)?;
        Ok(Future::new(self.driver.clone(), key))
    }

    /// Submits one task for each of these arguments.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); all of the tasks are then released.
    pub fn map<P, R, A: Arguments<P>>(
        &self,
        function: Function<P, R>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Vec<Future<R>>> {
        arguments.into_iter().map(|arguments| self.submit(function, arguments)).collect()
    }

    /// Fetches the results of all futures, in order. The workers keep them.
    ///
    /// # Errors
    /// The first failure, as [`Future::result`].
    pub async fn gather<T: DeserializeOwned>(&self, futures: &[Future<T>]) -> Result<Vec<T>> {
        let mut results = Vec::with_capacity(futures.len());
        let mut rest = futures.iter();
        let mut pending = FuturesOrdered::new();
        loop {
            while pending.len() < GATHERED_MAX
                && let Some(future) = rest.next()
            {
                pending.push_back(self.driver.value(future.key()));
            }
            let Some(value) = pending.next().await else { return Ok(results) };
            results.push(value?.read()?);
        }
    }

    /// Stores a value at a worker, so that tasks can take it as an input. If that worker is lost, so is the
    /// value.
    ///
    /// # Errors
    /// [`Lost`](ErrorKind::Lost) if no worker has joined, [`TooLarge`](ErrorKind::TooLarge) if the worker has
    /// no room.
    pub async fn scatter<T: Serialize>(&self, value: T) -> Result<Future<T>> {
        let value = Value::of(&value)?;
        let mut workers = self.driver.peers().all();
        if workers.is_empty() {
            // The reply follows the messages about workers that joined before it.
            self.driver.stats().await?;
            workers = self.driver.peers().all();
        }
        let turn = self.next_worker.fetch_add(1, Ordering::Relaxed) as usize;
        let Some((worker, _)) = workers.get(turn % workers.len().max(1)) else {
            return Err(Error::new(ErrorKind::Lost, "no worker has joined"));
        };
        let key = self.driver.scatter(*worker)?;
        let future = Future::new(self.driver.clone(), key);
        // The worker reports the value to the scheduler, which frees keys that it does not know. So wait
        // until it knows this key.
        self.driver.who_has(key).await?;
        self.driver.peers().put(*worker, key, &value).await?;
        Ok(future)
    }

    /// Returns the addresses of the workers that have the result.
    ///
    /// # Errors
    /// [`SchedulerLost`](ErrorKind::SchedulerLost).
    pub async fn who_has<T>(&self, future: &Future<T>) -> Result<Vec<String>> {
        let workers = self.driver.who_has(future.key()).await?;
        Ok(workers.into_iter().filter_map(|worker| self.driver.peers().address(worker)).collect())
    }

    /// Returns the state of the cluster: workers, memory, tasks, and transfers between workers.
    ///
    /// # Errors
    /// [`SchedulerLost`](ErrorKind::SchedulerLost).
    pub async fn stats(&self) -> Result<Stats> {
        self.driver.stats().await
    }

    /// Returns the addresses of the workers that have joined, as far as this client was notified.
    pub fn workers(&self) -> Vec<String> {
        self.driver.peers().all().into_iter().map(|(_, address)| address).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.end(&Error::closed());
    }
}
