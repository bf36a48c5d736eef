//! The bytes peers exchange, sans-IO: every function here is given bytes and returns bytes.

pub(crate) mod handshake;
