//! How a connection comes about: dialling, choosing a path, opening it.

pub(crate) mod accept;
mod bind;
pub(crate) mod dial;
pub(crate) mod establish;
mod names;
