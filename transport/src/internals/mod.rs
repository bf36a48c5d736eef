//! The inside as this repository's fuzz targets and benchmarks see it, behind the feature `internals`: bytes go in and come
//! out, and nothing here owns a socket, a thread or a clock. It promises nothing to anybody else.

mod arena;
mod handshake;
mod records;
mod stream;

pub use crate::backend::shm::lending_harness::{Exported, LendingHarness};
pub use arena::ModelArena;
pub use handshake::{
    ControlOutcome, GreetingConfig, GreetingOutcome, Peer, PeerAction, attend, decode_greeting, greet,
    greeting_message, hello, proof,
};
pub use records::{Sample, decode, decoded_and_encoded};
pub use stream::{PendingGet, PendingPut, PendingReceive, PendingSend, Stream};
