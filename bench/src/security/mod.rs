//! The security options that every command with connections has.

pub(crate) mod token;
pub(crate) mod trust;
