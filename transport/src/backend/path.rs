//! The chosen way to one peer, with its reasons.

use std::sync::Arc;

use crate::backend::{Backend, Identity, Machine, Prediction};

/// What carries a connection's bytes, and what became of every other candidate.
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
}

/// One backend that might have carried the connection.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: &'static str,
    /// What became of it.
    pub state: CandidateState,
    /// Why, in words.
    pub reason: String,
    /// What to do to have it, where something can be done.
    pub remedy: Option<String>,
    /// What tells what to expect of it, unless it was out of the question.
    pub(crate) backend: Option<Arc<dyn Backend>>,
    /// What it did when it was measured between the two hosts, where it was.
    pub(crate) path_probe: Option<Prediction>,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateState {
    /// It carries the connection.
    Chosen,
    /// It could, but another was preferred.
    Available,
    /// It cannot.
    Refused,
}

impl Path {
    /// The backend that carries the bytes.
    pub fn chosen(&self) -> &'static str {
        self.chosen
    }

    /// The peer's address as it was asked for; at the accepting end, the peer's own end of the stream.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How damage on the way is noticed beyond what the transport itself does: `crc32c`, or `none`.
    pub fn integrity(&self) -> &'static str {
        if self.checked { "crc32c" } else { "none" }
    }

    /// What hides the bytes from whoever is on the way: `tls`, or `none`.
    pub fn encryption(&self) -> &'static str {
        if self.encrypted { "tls" } else { "none" }
    }

    /// How many streams carry the bytes: 1 unless the address asked for more and the backend stripes.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Every candidate, in the order of preference.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// What a trial found, or `machine` tells to expect of a candidate that reaches the peer, whatever became of it.
    pub(crate) fn predict(&self, candidate: &Candidate, machine: &Machine) -> Option<Prediction> {
        if candidate.path_probe.is_some() {
            return candidate.path_probe;
        }
        let reaching = |backend: &&Arc<dyn Backend>| backend.reach(&self.local, &self.peer).is_ok();
        candidate.backend.as_ref().filter(reaching)?.predict(machine, &self.local, &self.peer)
    }
}
