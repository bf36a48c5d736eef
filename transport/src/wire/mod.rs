//! The wire protocol, sans-IO: functions take bytes and time as arguments and return bytes. Nothing here owns
//! a socket, a thread or a clock.

mod bounce_copy;
mod chunked_sends;
mod chunks;
pub(crate) mod count;
pub(crate) mod credit;
pub(crate) mod cursor;
pub(crate) mod fetching;
pub(crate) mod handshake;
pub(crate) mod integrity;
pub(crate) mod lending;
pub(crate) mod liveness;
mod one_sided;
mod receives;
pub(crate) mod record;
pub(crate) mod record_budget;
mod send_queue;
mod sends;
mod sequence_window;
pub(crate) mod session;
#[cfg(test)]
mod tests;
