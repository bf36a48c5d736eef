//! What users hold.

pub mod blocking;
pub(crate) mod connection;
pub(crate) mod endpoint;
pub(crate) mod explain;
pub(crate) mod incoming;
pub(crate) mod listener;
pub(crate) mod wakeups;
