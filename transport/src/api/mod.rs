//! The types that users hold: endpoint, listener, connection, incoming message, and their blocking
//! counterparts.

pub mod blocking;
pub(crate) mod completion_queue;
pub(crate) mod connection;
pub(crate) mod endpoint;
pub(crate) mod explain;
pub(crate) mod incoming;
pub(crate) mod listener;
pub(crate) mod wakeups;
