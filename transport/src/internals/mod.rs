//! Internals for this repository's fuzz targets and benchmarks, behind the feature `internals`. Each takes and
//! returns bytes and owns no socket, thread or clock. There is no stability guarantee.
//!
//! | part | used by |
//! |---|---|
//! | [`hello`], [`decode_greeting`], [`Sample`] | the benchmark `bench/benches/wire.rs` |
//! | [`decode`] | that benchmark, and the fuzz target `frames` |
//! | [`decoded_and_encoded`], [`Stream`], [`FuzzArena`] | `frames`; `Stream` also by `one_sided` |
//! | [`greet`], [`greeting_message`], [`proof`] | the fuzz target `handshake` |
//! | [`attend`] | the fuzz target `control` |
//! | [`LendingHarness`] | the fuzz target `lent_frames` |
//!
//! The other items are arguments and results of these. `fuzz/examples/seeds.rs` uses some of them to write the
//! corpora. The feature also makes `backend::sealed` public, so that `tests/` implements `Backend`. An item
//! without a user is removed.

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
