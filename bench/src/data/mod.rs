//! The data that a measurement moves: sizes, places in memory, payloads and messages.

pub(crate) mod messages;
pub(crate) mod payload;
pub(crate) mod place;
pub(crate) mod units;
