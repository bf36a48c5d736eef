//! Towline
pub mod environment;
mod error;
pub mod memory;
pub use error::{Error, ErrorKind, Failed, Result};
pub use memory::{Buffer, BufferMut, Place, Pool};
