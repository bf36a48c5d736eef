//! Towline
pub mod environment;
mod error;
pub use error::{Error, ErrorKind, Failed, Result};
