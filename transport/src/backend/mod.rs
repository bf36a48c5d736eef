//! The seam: what one transport technology must offer. This file is the contract; `mem` is its reference.
//!
//! A [`Backend`] is a technology, a [`Link`] one data path to one peer. A link takes [`Op`]s, which own their memory and
//! end exactly once, and announces what the peer sent through its [`Inbox`], in order. It moves either by itself or
//! inside [`Link::progress`], never both.
//!
//! ```
//! use std::sync::Arc;
//! use towline::Endpoint;
//! use towline::backend::{Backend, Probe, mem::Mem, tcp::Tcp};
//!
//! // An endpoint with a choice of its own, in the order of preference.
//! let backends: Vec<Arc<dyn Backend>> = vec![Arc::new(Mem), Arc::new(Tcp)];
//! assert!(backends.iter().all(|backend| matches!(backend.probe(), Probe::Ready { .. })));
//! let endpoint = Endpoint::builder().backends(backends).build()?;
//! # drop(endpoint);
//! # Ok::<(), towline::Error>(())
//! ```

pub(crate) mod caps;
pub mod faulty;
mod inbox;
pub(crate) mod machine;
pub mod mem;
mod opened;
pub(crate) mod path;
pub mod shm;
mod staging;
mod streamed;
mod submitted;
pub mod tcp;
pub mod ucx;

use std::any::Any;
use std::fmt::Debug;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use inbox::Inbox;
pub use opened::Opened;
pub(crate) use staging::Staging;

use crate::address::Address;
pub use crate::backend::caps::Caps;
pub use crate::backend::machine::{Machine, Speed};
use crate::error::{Error, Result};
pub use crate::handshake::{Control, Identity, Role};
use crate::memory::{BounceArena, Buffer, BufferMut, Pool};
use crate::platform::environment::Environment;
pub use crate::transfer::message::{Announced, Arrival, Delivery, FrameInfo, Message, Small, Table};
pub use crate::transfer::operation::{Completion, Done, Operation};
pub use crate::transfer::region::{Regions, RemoteRegion};
use crate::wire::unfinished::Unfinished;

/// One transport technology on this machine.
pub trait Backend: Debug + Send + Sync + 'static {
    /// Its one spelling, in module, scheme, command and metric.
    fn name(&self) -> &'static str;

    /// What it can do here, or why it cannot. Cheap enough to ask at every connection.
    fn probe(&self) -> Probe;

    /// What stands behind it here, where it works: for people who ask what this machine has. It may take a while to look, so
    /// connections do not ask.
    fn inventory(&self) -> Inventory {
        Inventory::default()
    }

    /// Whether it can do what an address says that asks for it alone: asked when an endpoint listens or connects there, before
    /// anything else is done.
    fn check(&self, _address: &Address) -> Result<()> {
        Ok(())
    }

    /// What the peer must know to open the other end of one connection of ours, at most 16 KiB. `address` is the one that this end
    /// connects to, or listens at.
    fn offer(&self, role: Role, address: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>>;

    /// Whether these two processes can use it at all; otherwise why not, in words that finish "refused because".
    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String>;

    /// What a link between these two should reach, from what this machine does; `None` where that tells nothing. Asked of
    /// paths that [`reach`](Self::reach) allows, and only to explain.
    fn predict(&self, _machine: &Machine, _local: &Identity, _peer: &Identity) -> Option<Prediction> {
        None
    }

    /// How it stands where the address leaves the choice to both ends. Cheap to ask, and loads nothing.
    fn preference(&self) -> Preference {
        Preference::Preferred
    }

    /// Whether its links are made of the handshake's stream: nothing more can be said on it once they open, so that there is no way
    /// back to another backend.
    fn takes_stream(&self) -> bool {
        false
    }

    /// Whether its links notice a lost peer by themselves, as those do that take the handshake's stream. For others the handshake keeps
    /// its stream, answers heartbeats on it, and ends the link when it ends, or when both ends part ([`Inbox::drain`]).
    fn carries_control(&self) -> bool {
        self.takes_stream()
    }

    /// Whether nobody on the way can read or change what its links carry over a handshake that is encrypted: since it takes the
    /// handshake's stream over, or since nothing leaves the process, or the memory that two processes of a host share with nobody else.
    /// `tls` and `towlines` take no other.
    fn is_private(&self) -> bool {
        false
    }

    /// Whether its links check what travels where [`LinkContext::checked`] asks for it.
    fn checks(&self) -> bool {
        false
    }

    /// Whether its links spread data over [`LinkContext::lanes`].
    fn stripes(&self) -> bool {
        false
    }

    /// Prepares this end for [`open`](Self::open), where the peer must be told more than the offer said: that goes into
    /// [`LinkContext::info`], and is [`LinkContext::peer_info`] at the other end. What is made here waits in [`LinkContext::prepared`]. The connector's
    /// comes first, so that the acceptor has its endpoint info here already. An error refuses this path, and another is taken.
    fn prepare(&self, _context: &mut LinkContext) -> Result<()> {
        Ok(())
    }

    /// Opens this end of the data path, on the driver. The peer's end is being opened at the same time. Where one of them
    /// cannot, both are given up, and the connection takes another path. The first poll does what the peer may count on.
    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a>;
}

/// One end of a data path that is being opened; dropped at any await, it leaves nothing behind, and so does what it ends with.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Opened>> + Send + 'a>>;

/// How a backend stands where an address leaves the choice to both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preference {
    /// It is taken in the order of preference.
    Preferred,
    /// It is taken between hosts, in place of the first after it that takes the handshake's stream, if a path probe of the two finds
    /// it 1.2 times as fast at 1 MiB. It is not probed before a peer on another host has it too.
    Probed,
    /// It is not taken, and why.
    Aside(String),
}

/// What a machine offers of one technology.
#[derive(Clone, Debug)]
pub enum Probe {
    /// It works.
    Ready {
        /// What it can do here.
        caps: Caps,
        /// The version of the library behind it, if there is one.
        version: Option<String>,
    },
    /// It does not work.
    Unavailable {
        /// Why not.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
}

/// What stands behind a technology on a machine; all empty where that is nothing but the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The file of the library.
    pub library: Option<PathBuf>,
    /// What it would use: devices, for a library with transports of its own each as `transport/device`.
    pub devices: Vec<String>,
    /// The kinds of memory that the library reaches, by its names for them.
    pub memory: Vec<String>,
    /// What it lacks, or why it could not be asked, in sentences for people, without a full stop.
    pub notes: Vec<String>,
}

/// What is expected of a path that was never measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The figures.
    pub speed: Speed,
    /// What they are derived from, in words that finish "as fast as".
    pub basis: &'static str,
}

/// Where a link is to be opened: everything one connection gives its backend.
#[derive(Debug)]
pub struct LinkContext {
    /// Which end this is.
    pub role: Role,
    /// This process.
    pub local: Identity,
    /// The peer.
    pub peer: Identity,
    /// What this end connects to, or listens at: its options are there.
    pub address: Address,
    /// What this end offered for this connection.
    pub offer: Vec<u8>,
    /// What the peer offered.
    pub peer_offer: Vec<u8>,
    /// What the peer is told of this end besides, after both have proved who they are: at most 16 KiB, and by the acceptor only in
    /// answer to an endpoint info.
    pub info: Vec<u8>,
    /// What the peer told so; empty if nothing.
    pub peer_info: Vec<u8>,
    /// What [`Backend::prepare`] made for [`Backend::open`]; dropped with the rest where this path is not taken.
    pub prepared: Option<Box<dyn Any + Send + Sync>>,
    /// Equal at both ends, and of this connection alone: with a token, or over TLS, nobody else can know it.
    pub secret: [u8; 32],
    /// This end trusts its peer, if that is of the same user of the same host: each may see all of the other's arenas, and
    /// believes that what is lent to it stays as it is.
    pub trusts: bool,
    /// The handshake's stream, for backends that take it.
    pub control: Option<Control>,
    /// The further streams of the connection, where both ends agreed on some and the backend stripes.
    pub lanes: Vec<Control>,
    /// Where the link announces messages and its end.
    pub inbox: Arc<Inbox>,
    /// What the peer may reach by itself.
    pub regions: Arc<Regions>,
    /// Host memory for what arrives.
    pub pool: Pool,
    /// Shared memory for copies of what is in no arena, lent in its stead.
    pub bounce_arena: BounceArena,
    /// What counts records whose rest has not come.
    pub(crate) unfinished: Unfinished,
    /// Clock, timers, randomness, tasks.
    pub environment: Arc<dyn Environment>,
    /// How often a silent peer is asked for a sign of life; three times without one is its end.
    pub heartbeat: Duration,
    /// Both ends agreed that what travels carries checksums.
    pub checked: bool,
}

/// One data path to one peer.
///
/// The rules, each a conformance case:
/// 1. Every [`Op`] ends exactly once, with its memory, within the stated times, whatever happens; never before the last
///    access to that memory by kernel, hardware or peer.
/// 2. Messages are announced in the order they were sent; a large one delays no small one, and no get or put.
/// 3. Nothing below blocks: `submit` and `progress` may be called from any thread, at any time, and from `Drop`.
/// 4. After [`end`](Self::end), or the peer's loss, [`Inbox::end`] is called once and every later operation fails. A link
///    beside the handshake's stream may call [`Inbox::drain`] first, and is then ended by the handshake.
/// 5. A receiver that acknowledges nothing bounds what the peer can have in flight.
pub trait Link: Debug + Send + Sync + 'static {
    /// The promise.
    fn caps(&self) -> Caps;

    /// Takes an operation. It may end within this call or at any time later.
    fn submit(&self, op: Op);

    /// Takes a message by copying it, where it is so small that this costs less than an operation: its memory is free when this
    /// returns. What is given back must be submitted.
    fn copy(&self, small: Small) -> Option<Small> {
        Some(small)
    }

    /// Moves what can be moved without waiting, bounded. Whoever calls holds the link's poll lock meanwhile; if another
    /// thread has it, this returns at once and that thread does the work.
    fn progress(&self) -> Progress {
        Progress::Idle
    }

    /// What to sleep on until `progress` can move something, or `None` for a link that moves by itself.
    fn source(&self) -> Option<Source<'_>> {
        None
    }

    /// Nobody polls until the source is ready: from here on whatever comes must make it so. False: there is something to do
    /// already, and no doorbell will ring for it. Nothing to see to where the operating system does.
    fn arm(&self) -> bool {
        true
    }

    /// Time passed: heartbeats are due or missed, and laggards are sent. Called several times a heartbeat.
    fn tick(&self) {}

    /// Ends it now. Everything in flight fails with `why`, and gives its memory back.
    fn end(&self, why: Error);

    /// What it counted so far.
    fn stats(&self) -> LinkStats;

    /// What became of the ways that this link may take or not, in sentences for people, without a full stop: to explain.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What one poll of a link came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something moved; there may be more.
    Moved,
    /// Nothing to move until the source is ready.
    Idle,
    /// Another thread is polling.
    Elsewhere,
}

/// A descriptor to sleep on.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Ready to read whenever `progress` may have work.
    pub descriptor: BorrowedFd<'a>,
    /// Ready to write is awaited too: output is blocked.
    pub writable: bool,
    /// It is a doorbell, readable whatever there is to do, and only if the peer was asked to ring it: by [`Link::arm`], after the
    /// last poll before sleeping.
    pub doorbell: bool,
}

/// What one link counted. Only a tool for understanding: nothing is proved by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Copies of payload bytes that this end made: in user space, or by having the kernel read the peer's memory.
    pub bytes_copied: u64,
    /// What of it was copied to where the peer reads it, so that its end copied none.
    pub bytes_bounced: u64,
    /// System calls that moved data, or tried to.
    pub system_calls: u64,
    /// Times a message had to wait for credit.
    pub credit_stalls: u64,
}

/// Work for a link. Operations are data: they own their memory, and a wrapper can look at them.
#[derive(Debug)]
#[non_exhaustive]
pub enum Op {
    /// Carry a message. Ends when its memory can be reused.
    Send {
        /// The message.
        message: Operation<Message>,
        /// The receiver's word on it.
        receipt: Done<Delivery>,
        /// The sender waits for that word: the receiver's end must not save it up.
        ack_now: bool,
        /// More may follow at once: it need not leave before the next `progress`.
        more: bool,
    },
    /// How the application will take what comes: in pool memory, so that large messages may stream ahead, or in memory that
    /// it names. Until the first word, the second.
    Expect {
        /// In pool memory.
        in_pool: bool,
    },
    /// Land an announced message whose payload is not here: a buffer of sufficient capacity for each frame, `None` to
    /// discard it (an empty buffer is returned in its stead). Only for one that is `Waiting`.
    Accept {
        /// Which.
        id: u64,
        /// Where to.
        destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>,
    },
    /// The application's word on a message it did not accept, or that was `Here`. (An accept that ended well has said it.)
    Ack {
        /// Which.
        id: u64,
        /// The word.
        delivery: Delivery,
        /// The sender waits for it.
        ack_now: bool,
    },
    /// Read from the peer's region into `into`, from its length to its capacity.
    Get {
        /// The region.
        region: RemoteRegion,
        /// The first byte to read.
        offset: u64,
        /// Where to.
        into: Operation<BufferMut, BufferMut>,
    },
    /// Write `from` into the peer's region. Ends when the bytes are there.
    Put {
        /// The region.
        region: RemoteRegion,
        /// The first byte to write.
        offset: u64,
        /// What to write.
        from: Operation<Buffer>,
    },
    /// Say good-bye: ends when everything submitted before has left and the peer has heard of the end.
    Close(Done<()>),
}

impl Op {
    /// Ends it badly, memory returned.
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

/// Those still to come: known to every list, ready nowhere.
pub const PLANNED: [&str; 1] = ["ib"];
