//! Towline moves host and device buffers between processes with as few copies as the hardware allows: inside a process, and
//! between processes of one host or of several. Both ends negotiate the fastest path they have in common: a hand-over within a
//! process (`mem`), rings in shared memory within a host (`shm`), sockets beyond (`tcp`).
//!
//! ```
#![doc = include_str!("../../examples/examples/hello.rs")]
//! ```
//!
//! An [`Endpoint`] is a process's entry point: it listens at an [`Address`] and connects to others. A [`Connection`] carries
//! [`Message`]s, each a small header and any number of [`Buffer`]s, in order and both ways at once. Memory moves into an
//! operation and comes out of it once: when nobody else can touch it. A failed one returns it in [`Failed`]. The receiver may
//! look at an [`Incoming`] message first and choose a [`Destination`] for each frame, and a [`Region`] is memory that one peer may
//! read ([`get`](Connection::get)) or write ([`put`](Connection::put)) by itself.
//!
//! # What is cancel-safe
//!
//! What happens if a future is dropped before it ended, by `select!` or a timeout for example. It never harms memory.
//!
//! | call | a dropped future |
//! |---|---|
//! | [`Listener::accept`], [`Connection::recv`], [`Connection::incoming`] | loses nothing: the next call gets the same |
//! | [`Connection::recv_into`] | loses no message, but its buffer, which goes with the message once that has begun to land |
//! | [`Connection::send`], [`Connection::deliver`], [`Connection::put`] | is detached: the bytes still leave, then their memory is freed |
//! | [`Connection::get`] | is detached: the bytes still come, and are freed with their buffer |
//! | [`Incoming::accept`], [`Incoming::accept_into`] | is detached: the message is taken, and forgotten; before its first poll, rejected |
//! | [`Receipt::delivered`] | loses the receiver's word, not the message |
//! | [`Connection::explain`], [`Arena::take_within`] | loses nothing |
//! | [`Connection::measure`], [`Connection::be_measured`] | leaves a measurement half done: close the connection |
//! | [`Region::revoke`] | has revoked it: the memory is freed once the peer's last access ended |
//! | [`Connection::close`], [`Endpoint::close`] | is detached: the closing goes on; before its first poll, nothing |
//! | [`Endpoint::listen`], [`Endpoint::connect`] | leaves nothing behind |
//!
//! # In a forked child
//!
//! A child forked without `exec`, as Python's `multiprocessing` makes them by `fork`, must open its own endpoint. What it inherited
//! is inert there: dropping it says nothing to any peer (and frees nothing until the child exits), using it fails with
//! `Unsupported` and gives memory back, and neither waits for a lock that another thread of the parent held. A call that was under
//! way at the fork fails the same way, without its memory. Buffers are the child's own copies and stay readable.
//!
//! # What is logged
//!
//! Events and spans of [`tracing`](https://docs.rs/tracing), nothing else: an application that installs no subscriber pays next to
//! nothing. The target `towline::peer` tells of peers, at the level `info`: connected, left, lost and refused, and at `debug` why each
//! path was chosen. Other targets are names of modules, and may change.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `tls` | on | `tls://` and `towlines://` addresses, by rustls. Without it they are refused with `Unsupported` |
//! | `metrics` | on | `Endpoint::metrics`, for Prometheus, by prometheus-client |
//! | `internals` | off | for this repository's own tests; promises nothing |
//!
//! # Where to look
//!
//! | to do this | look at |
//! |---|---|
//! | listen and connect | [`Endpoint`], [`Listener`], [`Address`] |
//! | send and receive, with or without a word from the receiver | [`Connection`], [`Message`], [`Receipt`] |
//! | choose the memory of what arrives, or refuse it | [`Connection::recv_into`], [`Incoming`], [`Destination`] |
//! | let a peer read or write memory by itself | [`Connection::expose`], [`Region`], [`RemoteRegion`] |
//! | produce and keep data | [`Buffer`], [`BufferMut`], [`Pool`], [`Arena`] |
//! | act on a failure | [`Error`], [`ErrorKind`], [`Failed`] |
//! | do all that without async | [`blocking`] |
//! | authenticate and encrypt | [`Token`], [`Tls`] |
//! | learn which path a connection takes, and why | [`Path`], [`Connection::explain`], [`Metrics`] |
//!
//! [`blocking`] has the same calls for plain threads, and [`Wakeups`] lets any other event loop (`asyncio`, `poll(2)`) sleep on one
//! descriptor and poll by hand, without an async runtime. [`memory`] has the buffers, pools and places; [`Path`] tells why a connection
//! goes the way it goes, [`Connection::explain`] what was expected of every way, and [`Connection::measure`] what this one does. [`backend`] is what a transport technology must offer, [`environment`] what a simulation replaces.

mod address;
mod api;
pub mod backend;
mod connect;
mod error;
mod events;
mod handshake;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
pub mod memory;
mod metrics;
mod platform;
mod progress;
mod transfer;
mod wire;

pub use address::{Address, Scheme};
pub use api::blocking;
pub use api::connection::{Connection, Receipt, Receiver, Sender};
pub use api::endpoint::{BackendReport, BackendState, Builder, Endpoint};
pub use api::explain::{Explained, Explanation, Measured, PeerCandidate, PeerView};
pub use api::incoming::Incoming;
pub use api::listener::Listener;
pub use api::wakeups::Wakeups;
pub use backend::Inventory;
pub use backend::caps::Caps;
pub use backend::path::{Candidate, CandidateState, Path};
pub use error::{Error, ErrorKind, Failed, Result};
#[cfg(feature = "tls")]
pub use handshake::TlsBuilder;
#[doc(hidden)] // For the command's own listener.
pub use handshake::{Admission, Admitted, Source};
pub use handshake::{Identity, Tls, Token};
pub use memory::{Arena, ArenaStats, AvailableMemory, Buffer, BufferMut, MemoryBound, Place, Pool};
#[cfg(feature = "metrics")]
pub use metrics::Metrics;
pub use metrics::Stats;
pub use platform::environment;
pub use progress::waiting::Wait;
pub use transfer::destination::Destination;
pub use transfer::message::{EAGER_LEN_MAX, FRAMES_MAX, FrameInfo, HEADER_LEN_MAX, Message, PAYLOAD_LEN_MAX};
pub use transfer::region::{Region, RegionAccess, RemoteRegion};

/// The README's example is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
