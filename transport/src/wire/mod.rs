//! The bytes peers exchange, sans-IO: every function here is given bytes and returns bytes.

pub(crate) mod credit;
pub(crate) mod handshake;
pub(crate) mod liveness;
