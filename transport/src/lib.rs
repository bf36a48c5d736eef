//! Towline
mod error;
pub use error::{Error, ErrorKind, Failed, Result};
