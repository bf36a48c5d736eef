//! `shm`: between processes of one host, through memory that both map.
//!
//! Each end owns one segment, which only it writes: a ring for the bytes it sends, and the counters of both
//! rings. The ends attach through a Unix socket and exchange descriptors over it. A pipe in each direction is
//! the doorbell that wakes a sleeping end, and closes with its process. Nothing has a name in a file system,
//! so nothing is left behind.

mod attach;
mod borrowing;
mod duplex;
mod fetcher;
mod forwarding;
mod lender;
#[cfg(feature = "internals")]
pub(crate) mod lending_harness;
mod link;
mod pipe;
mod readers;
mod ring;
mod ring_len;
mod segments;
mod table;

use std::sync::{Arc, OnceLock};

use self::attach::LocalSocket;
use super::{Backend, Caps, Identity, LinkContext, Machine, Opening, Prediction, Probe, Role, Speed};
use crate::address::Address;
use crate::error::Result;
use crate::memory::Segment;
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;

/// The backend `shm`: between processes of one host, through memory that both map.
///
/// Frames in an [arena](crate::Arena) are lent to trusted peers without a copy. Nothing has a name in a file
/// system.
///
/// ```
/// use std::sync::Arc;
/// use towline::{Endpoint, backend::Shm};
///
/// // Reads large frames from the peer's memory, which costs the sender no time.
/// let shm = Shm::default().reading_always();
/// let endpoint = Endpoint::builder().backends(vec![Arc::new(shm)]).build()?;
/// # drop(endpoint);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Shm {
    reads_always: bool,
    /// The local sockets that peers of this host attach through: one for each endpoint, opened when the first
    /// peer is expected.
    local_sockets: Mutex<Vec<Arc<LocalSocket>>>,
}

const CAPS: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::CROSS_PROCESS)
    .union(Caps::FLOW_CONTROL)
    .union(Caps::LENDS);

impl Shm {
    /// Always reads large host frames from a trusted peer's memory (`process_vm_readv`) if they land in
    /// memory that the application named. By default the backend reads only where a read takes at most 1.25
    /// times as long as `memcpy`, which it measures once per process. Otherwise the ring is as fast, since
    /// its two copies run in parallel. Reading saves the sender's CPU time.
    pub fn reading_always(mut self) -> Self {
        self.reads_always = true;
        self
    }

    /// Returns the endpoint's local socket, whose accept loop runs on the endpoint's driver and ends with it.
    fn local_socket(&self, environment: &Arc<dyn Environment>) -> Result<Arc<LocalSocket>> {
        let mut local_sockets = self.local_sockets.lock();
        local_sockets.retain(|local_socket| local_socket.is_open());
        if let Some(local_socket) = local_sockets.iter().find(|local_socket| local_socket.is_of(environment))
        {
            return Ok(local_socket.clone());
        }
        let local_socket = LocalSocket::open(environment)?;
        local_sockets.push(local_socket.clone());
        Ok(local_socket)
    }
}

impl crate::backend::sealed::Sealed for Shm {}

impl Backend for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn probe(&self) -> Probe {
        static UNAVAILABLE: OnceLock<Option<String>> = OnceLock::new();
        // The limit may change at any time, so each probe reads it; the rest is checked once.
        if let Err(limited) = link::permitted() {
            let remedy = "`ulimit -f unlimited`, in the shell that starts the process".into();
            return Probe::Unavailable { reason: limited.to_string(), remedy };
        }
        let unavailable = UNAVAILABLE
            .get_or_init(|| Segment::create("towline-probe", 1).err().map(|error| error.to_string()));
        match unavailable {
            Some(reason) => Probe::Unavailable {
                reason: reason.clone(),
                remedy: "a Linux kernel from 5.14 on, and memory for shared pages".into(),
            },
            None => Probe::Ready { caps: CAPS, version: None },
        }
    }

    fn offer(&self, role: Role, _: &Address, environment: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        match role {
            Role::Connector => Ok(Vec::new()),
            Role::Acceptor => Ok(self.local_socket(environment)?.name().to_vec()),
        }
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        local.check_same_host(peer)
    }

    fn predict(&self, machine: &Machine, _: &Identity, _: &Identity) -> Option<Prediction> {
        let speed = Speed { gb_per_s: machine.copy_gb_per_s, p50_us: machine.hand_off_us? };
        Some(Prediction { speed, basis: "one memory copy at each end, both in parallel" })
    }

    fn carries_control(&self) -> bool {
        true
    }

    fn is_private(&self) -> bool {
        true
    }

    fn checks(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async {
            let opened = async {
                let ours = link::LocalEnd::create(context)?;
                let attached = match context.role {
                    Role::Connector => attach::connect(context, ours.attach_info()).await?,
                    Role::Acceptor => {
                        let local_socket = self.local_socket(&context.environment)?;
                        local_socket.attach(context, ours.attach_info()).await?
                    }
                };
                link::open(ours, attached, context, self.reads_always).await
            };
            opened.await.map_err(|error| error.by("shm"))
        })
    }
}
