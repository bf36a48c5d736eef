//! What polls a link: waiting callers, and the driver.

mod bursts;
pub(crate) mod core;
pub(crate) mod driver;
pub(crate) mod pending_receive;
pub(crate) mod prefetch;
pub(crate) mod spinning;
pub(crate) mod waiting;
