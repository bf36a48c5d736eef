//! `shm`: between processes of one host, through memory that both map.
//!
//! Each end owns one segment, which it alone writes: a ring for what it sends, and the words about both rings. A Unix socket
//! brings the two together and shows each the other's descriptors; a pipe each way wakes whoever sleeps, and ends with its
//! process. Nothing has a name in any file system, so nothing is left behind.

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

/// The shared-memory backend.
#[derive(Debug, Default)]
pub struct Shm {
    reads_always: bool,
    /// Where peers of this host come to, once one was expected: one for each endpoint that this serves.
    local_sockets: Mutex<Vec<Arc<LocalSocket>>>,
}

const CAPS: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::CROSS_PROCESS)
    .union(Caps::FLOW_CONTROL)
    .union(Caps::LENDS);

impl Shm {
    /// The same, with large host frames read out of a trusted peer's memory (`process_vm_readv`) wherever they land in memory that
    /// the application named. Otherwise only where that is hardly slower than `memcpy`, as a probe finds once a process: two
    /// copies by way of the ring run side by side, at about the speed of one. Reading spares the sender its processor.
    pub fn reading_always(mut self) -> Self {
        self.reads_always = true;
        self
    }

    /// The endpoint's own: its driver takes peers in, and ends with it.
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

impl Backend for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn probe(&self) -> Probe {
        static UNAVAILABLE: OnceLock<Option<String>> = OnceLock::new();
        // A limit may be lowered and raised at any time, so it is read at each probe; the rest stays as it is.
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
        Some(Prediction { speed, basis: "a copy in memory at either end, both at the same time" })
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
