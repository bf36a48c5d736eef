//! How a connection is established: dialling, accepting, choosing a path, opening it.

pub(crate) mod accept;
mod bind;
pub(crate) mod dial;
pub(crate) mod establish;
mod names;
