//! Internals for this repository's fuzz targets and benchmarks, behind the feature `internals`. Bytes go in
//! and come out: nothing here owns a socket, a thread or a clock. There is no stability guarantee.

mod arena;
mod handshake;
mod records;
mod stream;

pub use crate::backend::shm::lending_harness::{Exported, LendingHarness};
pub use arena::FuzzArena;
pub use handshake::{
    ControlOutcome, GreetingConfig, GreetingOutcome, Peer, PeerAction, attend, decode_greeting, greet,
    greeting_message, hello, proof,
};
pub use records::{Sample, decode, decoded_and_encoded};
pub use stream::{PendingAccept, PendingGet, PendingPut, PendingSend, Stream};
