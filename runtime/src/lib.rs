//! A small task runtime on [`towline`]: clients describe tasks, a scheduler says where they run, and workers keep what they
//! made and fetch what they lack straight from each other.
//!
//! ```
//! use towline_runtime::{Function, LocalCluster, Registry, TaskResult};
//!
//! const ADD: Function<(i64, i64), i64> = Function::new("add");
//!
//! #[tokio::main]
//! async fn main() -> towline_runtime::Result<()> {
//!     let registry = Registry::new().with(ADD, |a, b| TaskResult::Ok(a + b));
//!     let cluster = LocalCluster::start(2, registry).await?;
//!     let three = cluster.client().submit(ADD, (1, 2))?;
//!     let seven = cluster.client().submit(ADD, (&three, 4))?;
//!     assert_eq!(seven.result().await?, 7);
//!     Ok(())
//! }
//! ```
//!
//! A [`Function`] is a name and types that clients and workers share, a [`Registry`] says what it runs. Arguments and results are
//! serde types; bulk data in them is [`Data`], which never passes the scheduler and stays in the memory it is in as far as the
//! path allows. [`Client::submit`] returns a [`Future`], which is an argument of other tasks as it is.
//!
//! [`LocalCluster`] is all of it in one process; [`Scheduler`], [`Worker`] and [`Client`] are its parts, for processes and hosts.
//!
//! What they do beside their callers runs in the [environment](towline::environment) of their endpoint: by default on the one
//! thread that each endpoint has. Any executor may poll their futures, on any thread, and none of them ends with a caller's runtime.

mod address;
mod background;
mod batch;
mod client;
mod error;
mod function;
mod guard;
mod local;
mod metrics;
mod peers;
mod protocol;
mod scheduler;
#[cfg(test)]
mod simulated;
mod stats;
mod value;
mod worker;

pub use client::{Argument, Arguments, Client, Future};
pub use error::{BoxError, Error, ErrorKind, Result, TaskResult};
pub use function::{Callable, Function, Registry};
pub use local::LocalCluster;
pub use metrics::Metrics;
pub use scheduler::{Builder as SchedulerBuilder, Scheduler};
pub use stats::{PairStats, StageCounts, Stats, WorkerStats};
pub use value::Data;
pub use worker::{Builder as WorkerBuilder, Worker};
