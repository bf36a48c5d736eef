//! The chosen path to one peer, with its reasons.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::backend::{Backend, Identity, Machine, Prediction};

/// The path that carries a connection, and the state of every other candidate.
#[derive(Clone, Debug)]
pub struct Path {
    pub(crate) address: String,
    pub(crate) chosen: &'static str,
    pub(crate) checked: bool,
    pub(crate) encrypted: bool,
    pub(crate) streams: usize,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) local: Identity,
    pub(crate) peer: Identity,
    /// The socket addresses of this end and of the peer; `None` without a socket.
    pub(crate) addresses: Option<(SocketAddr, SocketAddr)>,
}

/// One backend that could have carried the connection.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The backend's name.
    pub name: &'static str,
    /// Whether it was chosen, available or refused.
    pub state: CandidateState,
    /// The reason, as text.
    pub reason: String,
    /// What the user can do to enable it, if anything.
    pub remedy: Option<String>,
    /// The backend that predicts its speed, unless it was ruled out early.
    pub(crate) backend: Option<Arc<dyn Backend>>,
    /// The result of its path probe, if it was probed between the two hosts.
    pub(crate) path_probe: Option<Prediction>,
}

/// The outcome for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateState {
    /// It carries the connection.
    Chosen,
    /// It works, but another was preferred.
    Available,
    /// It does not work.
    Refused,
}

impl Path {
    /// Returns the name of the backend that carries the bytes.
    pub fn chosen(&self) -> &'static str {
        self.chosen
    }

    /// Returns the peer's address as requested. On the accepting end: the peer's end of the stream.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns how corruption is detected beyond the transport's own checks: `crc32c` or `none`.
    pub fn integrity(&self) -> &'static str {
        if self.checked { "crc32c" } else { "none" }
    }

    /// Returns how the bytes are encrypted: `tls` or `none`.
    pub fn encryption(&self) -> &'static str {
        if self.encrypted { "tls" } else { "none" }
    }

    /// Returns the number of streams: 1 unless the address asked for more and the backend stripes.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Returns every candidate, in the order of preference.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Returns the path probe's result for a candidate that reaches the peer, else the prediction from
    /// `machine`.
    pub(crate) fn predict(&self, candidate: &Candidate, machine: &Machine) -> Option<Prediction> {
        if candidate.path_probe.is_some() {
            return candidate.path_probe;
        }
        let reaching = |backend: &&Arc<dyn Backend>| backend.reach(&self.local, &self.peer).is_ok();
        candidate.backend.as_ref().filter(reaching)?.predict(machine, &self.local, &self.peer)
    }
}
