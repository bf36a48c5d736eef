//! Moves buffers between processes with as few copies as the hardware allows.
//!
//! The processes may be one, share a host, or run on several hosts. Both ends of a connection negotiate the
//! fastest path that they have in common:
//!
//! | path | scope | how data moves |
//! |---|---|---|
//! | `mem` | one process | the buffer is handed over |
//! | `shm` | one host | rings in shared memory; arena buffers are lent without a copy |
//! | `tcp` | any host | sockets, with TLS on request |
//! | `ucx` | any host | the UCX library, where it is installed |
//!
//! # First example
//!
//! ```
#![doc = include_str!("../../examples/examples/hello.rs")]
//! ```
//!
//! # Concepts
//!
//! - An [`Endpoint`] is the entry point of a process. It listens at an [`Address`] and connects to others.
//! - A [`Connection`] carries [`Message`]s in order, in both directions at once. A message is a small header and any
//!   number of [`Buffer`]s, its frames.
//! - An operation owns the memory that it is given. It returns the memory once, when nothing else can access it. A
//!   failed operation returns the memory in [`Failed`].
//! - A receiver may inspect an [`Incoming`] message first and choose a [`Destination`] for each frame.
//! - A [`Region`] is memory that one peer reads ([`get`](Connection::get)) or writes ([`put`](Connection::put)) without
//!   the owner's application.
//!
//! # Map
//!
//! | task | where |
//! |---|---|
//! | listen and connect | [`Endpoint`], [`Listener`], [`Address`] |
//! | send and receive, with or without an acknowledgement | [`Connection`], [`Message`], [`Receipt`] |
//! | receive ahead of an event loop | [`Connection::prefetch`], [`Prefetch`] |
//! | choose the memory of a received message, or reject it | [`Connection::recv_into`], [`Incoming`], [`Destination`] |
//! | let a peer read or write memory | [`Connection::expose`], [`Region`], [`RemoteRegion`] |
//! | produce and keep data | [`Buffer`], [`BufferMut`], [`Pool`], [`Arena`], [`memory`] |
//! | handle a failure | [`Error`], [`ErrorKind`], [`Failed`] |
//! | learn that a connection has ended | [`Connection::closed`], [`Connection::close_reason`] |
//! | use plain threads without async | [`blocking`] |
//! | use another event loop (`asyncio`, `poll(2)`) | [`CompletionQueue`]; [`Wakeups`], to poll futures there |
//! | send the objects of another language | [`memory::Pins`], [`packing`] |
//! | authenticate and encrypt | [`Token`], [`Tls`] |
//! | find out which path a connection takes, and why | [`Path`], [`Connection::explain`], [`Connection::measure`] |
//! | count and export | [`Connection::stats`], [`Metrics`] |
//! | run on another runtime, or in a simulation | [`environment`] |
//! | choose and order the backends of an endpoint | [`Builder::backends`], [`backend`] |
//!
//! # Cancel safety
//!
//! A future may be dropped before it ends, for example by `select!` or a timeout. Its memory stays valid in every case.
//!
//! | call | effect of dropping the future |
//! |---|---|
//! | [`Listener::accept`], [`Connection::recv`], [`Connection::incoming`], [`Connection::closed`] | nothing is lost: the next call returns the same |
//! | [`Connection::recv_into`] | the message is kept; the buffer stays with a message that has begun to arrive |
//! | [`Connection::send`], [`Connection::deliver`], [`Connection::put`] | detached: the bytes are still sent, then freed |
//! | [`Connection::get`] | detached: the bytes are still received, then freed with their buffer |
//! | [`Incoming::accept`], [`Incoming::accept_into`] | detached: the message is received and dropped |
//! | [`Incoming::accept`], [`Incoming::accept_into`], before the first poll | the message is rejected |
//! | [`Receipt::delivered`] | the acknowledgement is lost, the message is not |
//! | [`Connection::explain`], [`Arena::take_within`] | nothing is lost |
//! | [`Connection::measure`], [`Connection::be_measured`] | the measurement is incomplete: close the connection |
//! | [`Region::revoke`] | the region is revoked; its memory is freed after the peer's last access |
//! | [`Connection::close`], [`Endpoint::close`] | detached: closing continues; before the first poll, nothing happens |
//! | [`Endpoint::listen`], [`Endpoint::connect`] | everything is released |
//!
//! # Forked children
//!
//! A child forked without `exec`, as by Python's `multiprocessing` with `fork`, must open its own endpoint. Inherited
//! objects are inert in the child:
//!
//! - Dropping one sends nothing to any peer, and frees nothing until the child exits.
//! - Using one fails with `Unsupported` and returns the memory.
//! - Neither waits for a lock that another thread of the parent held.
//! - A call in progress at the fork fails the same way, without its memory.
//!
//! Buffers are the child's own copies and stay readable.
//!
//! # Logging
//!
//! Towline logs events and spans of [`tracing`](https://docs.rs/tracing). Without a subscriber they cost next to nothing.
//! The target `towline::peer` reports peers: at level `info`, connected, left, lost and refused; at `debug`, why each path
//! was chosen. Other targets are module names and may change.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `tls` | on | `tls://` and `towlines://` addresses, by rustls; without it they fail with `Unsupported` |
//! | `metrics` | on | `Endpoint::metrics`, for Prometheus, by prometheus-client |
//! | `internals` | off | internals for this repository's own tests; not stable |

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
pub use api::completion_queue::CompletionQueue;
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
#[doc(hidden)] // The `towline` command's own listener uses it.
pub use handshake::{Admission, Admitted, Source};
pub use handshake::{Identity, Tls, Token};
pub use memory::{Arena, ArenaStats, AvailableMemory, Buffer, BufferMut, MemoryBound, Place, Pool};
#[cfg(feature = "metrics")]
pub use metrics::Metrics;
pub use metrics::Stats;
pub use platform::environment;
pub use progress::prefetch::Prefetch;
pub use progress::waiting::Wait;
pub use transfer::destination::Destination;
pub use transfer::message::{EAGER_LEN_MAX, FRAMES_MAX, FrameInfo, HEADER_LEN_MAX, Message, PAYLOAD_LEN_MAX};
pub use transfer::packing;
pub use transfer::region::{Region, RegionAccess, RemoteRegion};

/// Compiles and runs the README's examples as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
