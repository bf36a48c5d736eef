//! The scheduler: its state machine ([`state`]) and its [`driver`].
//!

mod driver;
#[cfg(test)]
mod invariants;
mod lifecycle;
#[cfg(feature = "metrics")]
mod metrics;
mod peers;
mod placing;
mod queue;
mod stall_timeout;
mod state;
mod stats;
mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use towline::environment::{Environment, System};
use towline::{Address, AvailableMemory, Endpoint};

use self::driver::{SchedulerDriver, accept};
use self::stall_timeout::STALL_TIMEOUT;
#[cfg(test)]
pub(crate) use self::state::{Departure, SchedulerAction, SchedulerState};
use crate::background::{AtEnd, Background};
use crate::error::Result;
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;

/// The driver passes the time to the state four times within the stall timeout, within these bounds.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_secs(1);
/// Default memory limit for the tasks of one client, in bytes.
const CLIENT_BYTES_MAX: u64 = 2 << 30;

/// Assigns tasks to workers, and tracks where results are. Only messages pass through it, no data.
///
/// It runs on a thread of its own, or in [another environment](SchedulerBuilder::environment). Dropping it ends it:
/// its workers and clients then get [`SchedulerLost`](crate::ErrorKind::SchedulerLost).
///
/// ```
/// use towline::Endpoint;
/// use towline_runtime::Scheduler;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let scheduler = Scheduler::start(&Endpoint::new()?, &"towline://127.0.0.1:0".parse()?).await?;
/// println!("workers and clients find it at {}", scheduler.address());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scheduler {
    address: Address,
    driver: Arc<SchedulerDriver>,
    accepting: Background,
    closing: Arc<Notify>,
}

/// Settings of a [`Scheduler`]. [`start`](Self::start) starts it.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct SchedulerBuilder {
    stall_timeout: Duration,
    client_bytes_max: Option<u64>,
    environment: Option<Arc<dyn Environment>>,
}

impl Scheduler {
    /// Returns the default settings: stalled tasks wait 60 s, and the tasks of one client take at most 2 GiB
    /// here, or a quarter of the memory [available](towline::AvailableMemory) to this process.
    pub const fn builder() -> SchedulerBuilder {
        SchedulerBuilder { stall_timeout: STALL_TIMEOUT, client_bytes_max: None, environment: None }
    }

    /// Starts a scheduler that listens at `address`.
    ///
    /// # Errors
    /// As [`Endpoint::listen`].
    pub async fn start(endpoint: &Endpoint, address: &Address) -> Result<Self> {
        Self::builder().start(endpoint, address).await
    }

    /// Returns the number of task entries: tasks that a client has not released, and tasks that others need
    /// or were computed from.
    pub fn tasks(&self) -> usize {
        self.driver.lock().state.tasks()
    }

    /// The address for workers and clients.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Returns its metrics.
    #[cfg(feature = "metrics")]
    pub fn metrics(&self) -> Metrics {
        Metrics::of(&self.driver)
    }

    /// Ends the scheduler, and closes its connections in good order. Blocks for at most the endpoint's
    /// [`linger`](towline::Builder::linger).
    pub async fn close(self) {
        self.closing.notify_one();
        self.accepting.ended().await;
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.driver.end();
    }
}

impl SchedulerBuilder {
    /// Sets how long tasks wait in a stall: no worker has joined, or the memory of all workers is full of
    /// results that clients keep. After this time, and at the latest after twice that, they fail with
    /// [`TimedOut`](crate::ErrorKind::TimedOut).
    pub const fn stall_timeout(mut self, stall_timeout: Duration) -> Self {
        self.stall_timeout = stall_timeout;
        self
    }

    /// Sets the memory limit for one client's tasks, in bytes: their arguments, and about 300 bytes for each
    /// task. A client that exceeds it is refused with [`TooLarge`](crate::ErrorKind::TooLarge). Results do
    /// not count: workers hold them.
    pub const fn client_bytes_max(mut self, client_bytes_max: u64) -> Self {
        self.client_bytes_max = Some(client_bytes_max);
        self
    }

    /// Sets where the scheduler runs. The default is a thread of its own, so that a long decision delays no
    /// heartbeat of the endpoint.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Starts the scheduler, which listens at `address`.
    ///
    /// # Errors
    /// As [`Endpoint::listen`], and [`Transport`](crate::ErrorKind::Transport) if no thread can be started.
    pub async fn start(self, endpoint: &Endpoint, address: &Address) -> Result<Scheduler> {
        let listener = endpoint.listen(address).await?;
        let address = listener.address().clone();
        tracing::info!(%address, "scheduler started");
        let driver = SchedulerDriver::new(endpoint.clone(), address.clone());
        let (driver, closing) = (Arc::new(driver), Arc::new(Notify::new()));
        driver.lock().state.set_stall_timeout(self.stall_timeout);
        let client_bytes_max =
            self.client_bytes_max.unwrap_or_else(|| AvailableMemory::bounded(CLIENT_BYTES_MAX, 4));
        driver.lock().state.set_client_bytes_max(client_bytes_max);
        let tick = (self.stall_timeout / 4).clamp(TICK_MIN, TICK_MAX);
        let environment = match self.environment {
            Some(environment) => environment,
            None => Arc::new(System::start()?),
        };
        let accepting = Background::on(environment.clone());
        let accept = accept(endpoint.clone(), environment, driver.clone(), listener, tick, closing.clone());
        let over = AtEnd({
            let driver = driver.clone();
            move || driver.end()
        });
        accepting.spawn(over.around(accept));
        Ok(Scheduler { address, driver, accepting, closing })
    }
}
