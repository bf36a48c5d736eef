//! What a link transfers: messages, regions, and the operations that own memory in flight.

pub(crate) mod destination;
pub(crate) mod message;
pub(crate) mod operation;
pub mod packing;
pub(crate) mod region;
