//! The transport interface: what each backend implements. This file is the contract, and `mem` is the
//! reference implementation.
//!
//! A [`Backend`] is a transport technology. A [`Link`] is one data path to one peer. A link takes [`Op`]s,
//! which own their memory and end exactly once. It announces the peer's messages in order through its
//! [`Inbox`]. A link makes progress either by itself or inside [`Link::progress`], never both.
//!
//! ```
//! use std::sync::Arc;
//! use towline::Endpoint;
//! use towline::backend::{Backend, Mem, Probe, Tcp};
//!
//! // An endpoint with its own list of backends, in order of preference.
//! let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Mem), Arc::new(Tcp)];
//! assert!(backends.iter().all(|backend| matches!(backend.probe(), Probe::Ready { .. })));
//! let endpoint = Endpoint::builder().backends(backends).build()?;
//! # drop(endpoint);
//! # Ok::<(), towline::Error>(())
//! ```

pub(crate) mod caps;
mod current;
mod faulty;
mod inbox;
pub(crate) mod machine;
mod mem;
mod opened;
pub(crate) mod path;
pub(crate) mod shm;
mod staging;
mod streamed;
mod submitted;
mod tcp;
mod ucx;

use std::any::Any;
use std::fmt::Debug;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use current::CurrentLink;
pub use faulty::{Faults, Faulty};
pub use inbox::Inbox;
pub use mem::Mem;
pub use opened::Opened;
pub use shm::Shm;
pub(crate) use staging::Staging;
pub use tcp::Tcp;
pub use ucx::Ucx;

use crate::address::Address;
pub use crate::backend::caps::Caps;
pub use crate::backend::machine::{Machine, Speed};
use crate::error::{Error, Result};
pub use crate::handshake::{Control, Identity, Role};
use crate::memory::{BounceArena, Buffer, BufferMut, Pool};
use crate::platform::environment::Environment;
pub use crate::transfer::message::{Announced, Arrival, Delivery, FrameInfo, Message, SmallSend, Table};
pub use crate::transfer::operation::{Completion, Done, Operation};
pub use crate::transfer::region::{Regions, RemoteRegion};
use crate::wire::record_budget::RecordBudget;

/// One transport technology on this machine.
///
/// The trait is sealed: only this repository implements it, since its methods still change between minor
/// versions. An endpoint takes any list of the backends below.
pub trait Backend: sealed::Sealed + Debug + Send + Sync + 'static {
    /// The backend's name, used as module, scheme, command argument and metric label.
    fn name(&self) -> &'static str;

    /// Returns what the backend can do on this machine, or why it is unavailable. Cheap: called for every
    /// connection.
    fn probe(&self) -> Probe;

    /// Lists the library, devices and memory kinds behind the backend, for reports to users. May take long,
    /// so connections do not call it.
    fn inventory(&self) -> Inventory {
        Inventory::default()
    }

    /// Returns an error if the backend cannot serve `address`, which forces it. Called first when an endpoint
    /// listens on or connects to such an address.
    fn check(&self, _address: &Address) -> Result<()> {
        Ok(())
    }

    /// Returns what the peer needs to open the other end of a connection, at most 16 KiB. `address` is the
    /// one that this end connects to or listens on.
    fn offer(&self, role: Role, address: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>>;

    /// Returns `Err` if the backend cannot connect these two processes. The text completes "refused because".
    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String>;

    /// Predicts the speed of a link between these two processes from this machine's measurements, or `None`
    /// where they tell nothing. Called only to explain, and only for paths that [`reach`](Self::reach)
    /// allows.
    fn predict(&self, _machine: &Machine, _local: &Identity, _peer: &Identity) -> Option<Prediction> {
        None
    }

    /// Returns how the backend ranks where the address leaves the choice to both ends. Cheap, and loads no
    /// library.
    fn preference(&self) -> Preference {
        Preference::Preferred
    }

    /// Returns whether links take over the handshake's stream. The handshake cannot use that stream after the
    /// link opens, so no other backend can be tried.
    fn takes_stream(&self) -> bool {
        false
    }

    /// Returns whether links detect a lost peer by themselves, as those do that take over the handshake's
    /// stream. For other links the handshake keeps its stream and answers heartbeats on it. It ends the link
    /// when the stream ends, or when both ends have drained ([`Inbox::drain`]).
    fn carries_control(&self) -> bool {
        self.takes_stream()
    }

    /// Returns whether third parties can neither read nor change the link's bytes if the handshake is
    /// encrypted. Links that take over the handshake's stream qualify. So do links whose bytes stay within
    /// the process, or in memory that only two processes of one host share. `tls` and `towlines` addresses
    /// allow no other backends.
    fn is_private(&self) -> bool {
        false
    }

    /// Returns whether links checksum their data where [`LinkContext::checked`] asks for it.
    fn checks(&self) -> bool {
        false
    }

    /// Returns whether links spread data over [`LinkContext::lanes`].
    fn stripes(&self) -> bool {
        false
    }

    /// Prepares this end for [`open`](Self::open) if the peer needs more than the offer. Writes the endpoint
    /// info to [`LinkContext::info`]; the other end reads it from [`LinkContext::peer_info`]. Other state
    /// goes to [`LinkContext::prepared`]. The connector prepares first, so the acceptor already has the
    /// connector's endpoint info. An error refuses this path, and the connector proposes another.
    fn prepare(&self, _context: &mut LinkContext) -> Result<()> {
        Ok(())
    }

    /// Opens this end of the data path, on the driver, while the peer opens its own. If either end fails,
    /// both are dropped and the connection takes another path. The first poll of the future completes
    /// everything that the peer relies on.
    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a>;
}

/// Keeps [`Backend`] to this repository. Its tests implement the trait with the feature `internals`.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod sealed {
    pub trait Sealed {}
}

#[cfg(not(feature = "internals"))]
mod sealed {
    #[expect(unnameable_types, reason = "so that no other crate implements `Backend`")]
    pub trait Sealed {}
}

/// The future that opens one end of a data path. Dropping it at any await releases everything, as does
/// dropping its result.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Opened>> + Send + 'a>>;

/// How a backend ranks where an address leaves the choice to both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Used in the order of preference.
    Preferred,
    /// Used between hosts if a path probe finds it 1.2 times as fast at 1 MiB as the first later backend that
    /// takes over the handshake's stream. It then replaces that backend. Not probed until a peer on another
    /// host also has it.
    Probed,
    /// Not used, and why.
    Aside(String),
}

/// The availability of one technology on this machine.
#[derive(Clone, Debug)]
pub enum Probe {
    /// The backend works.
    Ready {
        /// What the backend can do here.
        caps: Caps,
        /// The version of the underlying library, if there is one.
        version: Option<String>,
    },
    /// The backend does not work.
    Unavailable {
        /// Why it does not work.
        reason: String,
        /// What the user can do about it.
        remedy: String,
    },
}

/// The library, devices and memory kinds behind a backend; all empty where the kernel alone is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The library's file.
    pub library: Option<PathBuf>,
    /// Devices that the backend can use. A library with several transports lists each as `transport/device`.
    pub devices: Vec<String>,
    /// The memory kinds that the library supports, by the library's names.
    pub memory: Vec<String>,
    /// What is missing, or why the query failed, as sentences without a full stop.
    pub notes: Vec<String>,
}

/// The predicted speed of a path that was not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The predicted figures.
    pub speed: Speed,
    /// What the figures are derived from; the text completes "as fast as".
    pub basis: &'static str,
}

/// Everything that one connection gives its backend to open a link.
#[derive(Debug)]
pub struct LinkContext {
    /// Which end this is.
    pub role: Role,
    /// The identity of this process.
    pub local: Identity,
    /// The identity of the peer.
    pub peer: Identity,
    /// The address that this end connects to or listens on, with its options.
    pub address: Address,
    /// What this end offered for this connection.
    pub offer: Vec<u8>,
    /// What the peer offered.
    pub peer_offer: Vec<u8>,
    /// The endpoint info sent to the peer after both ends have authenticated, at most 16 KiB. An acceptor
    /// sends one only in reply to the connector's.
    pub info: Vec<u8>,
    /// The peer's endpoint info; empty if it sent none.
    pub peer_info: Vec<u8>,
    /// State that [`Backend::prepare`] keeps for [`Backend::open`]; dropped with the context if this path is
    /// not taken.
    pub prepared: Option<Box<dyn Any + Send + Sync>>,
    /// The connection's secret, equal at both ends. With a token or over TLS, only the two ends know it.
    pub secret: [u8; 32],
    /// Whether this end trusts the peer if both run as the same user of one host. A trusted peer may map all
    /// of this end's arenas, and this end relies on the peer not to change what it lends.
    pub trusts: bool,
    /// The handshake's stream, for backends that take it over.
    pub control: Option<Control>,
    /// The connection's further streams, where both ends agreed on some and the backend stripes.
    pub lanes: Vec<Control>,
    /// Where the link announces messages and its end.
    pub inbox: Arc<Inbox>,
    /// The regions that the peer may access.
    pub regions: Arc<Regions>,
    /// Host memory for received data.
    pub pool: Pool,
    /// Shared memory for bounce copies: copies of frames outside any arena, lent to the peer.
    pub bounce_arena: BounceArena,
    /// Counts records that were received in part.
    pub(crate) unfinished: RecordBudget,
    /// Clock, timers, randomness and tasks.
    pub environment: Arc<dyn Environment>,
    /// The heartbeat interval: how often a silent peer is pinged. After three unanswered intervals the peer
    /// is lost.
    pub heartbeat: Duration,
    /// Whether both ends agreed on checksums for all data.
    pub checked: bool,
}

/// One data path to one peer.
///
/// The rules, each covered by a conformance case:
/// 1. Every [`Op`] ends exactly once within the stated times, and returns its memory. It never ends before
///    the last access to that memory by kernel, hardware or peer.
/// 2. Messages are announced in the order they were sent. A large message delays neither small messages nor
///    gets and puts.
/// 3. No method blocks: `submit` and `progress` may be called from any thread, at any time, and from `Drop`.
/// 4. After [`end`](Self::end), or when the peer is lost, [`Inbox::end`] is called once and every later
///    operation fails. The connection then drops the link. A link alongside the handshake's stream may call
///    [`Inbox::drain`] first; the handshake then ends the link.
/// 5. A receiver that acknowledges nothing bounds what the peer can have in flight.
/// 6. Memory of [`Access::Foreign`](crate::memory::Access::Foreign) may change while it is sent. A link reads it
///    by pointer, stages no copy, and never gives it to the receiver. A change affects the content of the
///    payload alone: a checksum covers the bytes that leave, from one read.
pub trait Link: Debug + Send + Sync + 'static {
    /// Returns the capabilities that this link guarantees.
    fn caps(&self) -> Caps;

    /// Submits an operation. It may end within this call or at any later time.
    fn submit(&self, op: Op);

    /// Sends a small message by copying it, if that is cheaper than an operation. Its memory is free on
    /// return. Returns the message if the link does not copy it; the caller then submits it.
    fn copy(&self, small: SmallSend) -> Option<SmallSend> {
        Some(small)
    }

    /// Moves what can be moved without waiting, up to a limit. The caller holds the link's poll lock
    /// meanwhile. Returns at once if another thread holds it; that thread then does the work.
    fn progress(&self) -> Progress {
        Progress::Idle
    }

    /// Returns the descriptor to wait on until `progress` has work, or `None` for a link that moves by
    /// itself.
    fn source(&self) -> Option<WaitSource<'_>> {
        None
    }

    /// Arms the source before the caller stops polling: from now on new work makes the source ready. Returns
    /// false if there is work already; no doorbell rings for it. The default suits sources that the operating
    /// system keeps ready.
    fn arm(&self) -> bool {
        true
    }

    /// Handles the passage of time: sends due heartbeats, detects missed ones, and sends delayed records.
    /// Called several times per heartbeat interval.
    fn tick(&self) {}

    /// Ends the link now. Everything in flight fails with `why` and returns its memory.
    fn end(&self, why: Error);

    /// Returns the link's counters.
    fn stats(&self) -> LinkStats;

    /// Returns which optional paths this link uses or does not use, as sentences without a full stop, for
    /// explain.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The result of one poll of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something moved; more may follow.
    Moved,
    /// Nothing to move until the source is ready.
    Idle,
    /// Another thread is polling.
    Elsewhere,
}

/// A descriptor to wait on.
#[derive(Clone, Copy, Debug)]
pub struct WaitSource<'a> {
    /// Readable when `progress` may have work.
    pub descriptor: BorrowedFd<'a>,
    /// Whether to wait for writability too, because output is blocked.
    pub writable: bool,
    /// Whether the descriptor is a doorbell: the peer rings it only after [`Link::arm`], called after the
    /// last poll before sleeping. It may be readable with no work to do.
    pub doorbell: bool,
}

/// The counters of one link, for diagnosis only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Payload bytes that this end copied, in user space or by having the kernel read the peer's memory.
    pub bytes_copied: u64,
    /// The part of `bytes_copied` that went to memory which the peer reads in place, so that the peer copied
    /// none.
    pub bytes_bounced: u64,
    /// System calls that moved data, or tried to.
    pub system_calls: u64,
    /// How many times a message waited for credit.
    pub credit_stalls: u64,
}

/// Work for a link. An operation is data: it owns its memory, and a wrapper can inspect it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Op {
    /// Sends a message. Ends when its memory can be reused.
    Send {
        /// The message.
        message: Operation<Message>,
        /// Resolved by the receiver's acknowledgement.
        receipt: Done<Delivery>,
        /// Whether the sender waits for the acknowledgement, so that the receiver must not delay it.
        ack_now: bool,
        /// Whether more may follow at once, so that the message need not leave before the next `progress`.
        more: bool,
    },
    /// Declares how the application will receive: in pool memory, so that large messages may stream ahead of
    /// the accept, or in memory that it names. Named memory is the default.
    Expect {
        /// Whether the application receives in pool memory.
        in_pool: bool,
    },
    /// Receives an announced message whose payload has not arrived. Takes one buffer of sufficient capacity
    /// for each frame, or `None` to discard the frame, which returns an empty buffer. Only for messages that
    /// are `Waiting`.
    Accept {
        /// The message's number.
        id: u64,
        /// One destination for each frame.
        destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>,
    },
    /// The application's acknowledgement of a message that it did not accept, or that was `Here`. (An accept
    /// that ended well has already acknowledged it.)
    Ack {
        /// The message's number.
        id: u64,
        /// Delivered or rejected.
        delivery: Delivery,
        /// Whether the sender waits for it.
        ack_now: bool,
    },
    /// Reads from the peer's region into `into`, from the buffer's length up to its capacity.
    Get {
        /// The region.
        region: RemoteRegion,
        /// The first byte to read.
        offset: u64,
        /// The destination.
        into: Operation<BufferMut, BufferMut>,
    },
    /// Writes `from` into the peer's region. Ends when the bytes are there.
    Put {
        /// The region.
        region: RemoteRegion,
        /// The first byte to write.
        offset: u64,
        /// The bytes to write.
        from: Operation<Buffer>,
    },
    /// Closes the link in order: ends when everything submitted before has left and the peer has received the
    /// close.
    Close(Done<()>),
}

impl Op {
    /// Fails the operation and returns its memory.
    pub fn fail(self, error: Error) {
        match self {
            Self::Send { message, receipt, .. } => {
                receipt.resolve(Err(error.clone()));
                message.fail(error);
            }
            Self::Accept { destinations, .. } => destinations.fail(error),
            Self::Get { into, .. } => into.fail(error),
            Self::Put { from, .. } => from.fail(error),
            Self::Close(done) => done.resolve(Err(error)),
            Self::Expect { .. } | Self::Ack { .. } => {}
        }
    }
}

/// The backends of this build, in the order of preference.
pub fn all() -> Vec<Arc<dyn Backend>> {
    vec![Arc::new(mem::Mem), Arc::new(shm::Shm::default()), Arc::new(ucx::Ucx::default()), Arc::new(tcp::Tcp)]
}

/// Planned backends: their names are recognised, and they are available nowhere.
pub const PLANNED: [&str; 1] = ["ib"];
