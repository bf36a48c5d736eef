//! A small task runtime on [`towline`]. Clients submit tasks, a scheduler assigns them to workers, and
//! workers keep results and fetch inputs directly from each other.
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
//! A [`Function`] is a name with types that clients and workers share. A [`Registry`] maps it to the code
//! that a worker runs. Arguments and results are serde types. Large data in them is [`Data`]: it never passes
//! through the scheduler, and is copied only where the path requires it. [`Client::submit`] returns a
//! [`Future`], which can be passed as an argument of other tasks.
//!
//! [`LocalCluster`] is a whole cluster in one process. [`Scheduler`], [`Worker`] and [`Client`] are its
//! parts, for several processes and hosts.
//!
//! Background work runs in the [environment](towline::environment) of the endpoint: by default on the one
//! thread that each endpoint has. Any executor may poll the returned futures, on any thread. None of them
//! ends with a caller's runtime.

mod address;
mod background;
mod batch;
mod client;
mod error;
mod function;
mod guard;
mod local;
#[cfg(feature = "metrics")]
mod metrics;
mod peers;
mod protocol;
mod scheduler;
#[cfg(test)]
mod simulated;
mod stats;
mod value;
mod worker;

pub use batch::kind_of;
pub use client::{Argument, Arguments, Client, Future};
pub use error::{BoxError, Error, ErrorKind, Result, TaskResult};
pub use function::{Callable, Function, Registry};
pub use local::LocalCluster;
#[cfg(feature = "metrics")]
pub use metrics::Metrics;
pub use scheduler::{Scheduler, SchedulerBuilder};
pub use stats::{PairStats, StageCounts, Stats, WorkerStats};
pub use value::Data;
pub use worker::{Worker, WorkerBuilder};
