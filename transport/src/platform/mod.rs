//! What the process and its environment give: clock, timers, tasks, descriptors, and what a fork inherits.

pub mod environment;
pub(crate) mod mutex;
pub(crate) mod process;
pub(crate) mod reactor;
