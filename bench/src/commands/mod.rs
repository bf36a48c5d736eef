//! The command line: one module for each subcommand, and the options that several of them share.

pub(crate) mod bench;
pub(crate) mod explain;
pub(crate) mod info;
mod listening;
#[cfg(feature = "metrics")]
mod metrics;
pub(crate) mod scheduler;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod token;
pub(crate) mod top;
mod wait_for;
#[cfg(not(feature = "metrics"))]
mod without_metrics;
#[cfg(not(feature = "metrics"))]
use without_metrics as metrics;
