//! The platform: clock, timers, tasks, descriptors, and the detection of forks.

pub mod environment;
pub(crate) mod mutex;
pub(crate) mod process;
pub(crate) mod reactor;
