//! Towline
mod addr;
#[cfg_attr(not(test), expect(dead_code, reason = "the endpoint will be its first caller"))]
mod door;
pub mod environment;
mod error;
mod wire;
pub use addr::{Address, Scheme};
pub use door::{Identity, Token};
pub use error::{Error, ErrorKind, Failed, Result};
