//! The bytes peers exchange, sans-IO: every function here is given bytes and returns bytes.

mod chunks;
pub(crate) mod count;
pub(crate) mod credit;
mod deposit;
pub(crate) mod fetching;
pub(crate) mod handshake;
pub(crate) mod integrity;
mod ledger;
pub(crate) mod lending;
pub(crate) mod liveness;
mod one_sided;
mod outbox;
mod receives;
pub(crate) mod record;
mod sends;
pub(crate) mod session;
mod spreads;
#[cfg(test)]
mod tests;
pub(crate) mod unfinished;
