//! The candidate backends of a connection, and the state of each.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Establisher;
use crate::address::Address;
use crate::backend::path::{Candidate, CandidateState, Path};
use crate::backend::{Backend, LinkContext, PLANNED, Preference, Probe, Role};
use crate::error::{Error, ErrorKind};
use crate::handshake::{Greeting, INFO_LEN_MAX};

/// One candidate backend of one connection.
pub(super) struct BackendCandidate {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) offer: Vec<u8>,
    pub(super) candidate: Candidate,
    /// It is chosen only if a path probe finds it faster than the handshake stream's backend.
    pub(super) is_probed: bool,
}

impl BackendCandidate {
    /// Returns its final state. The reason finishes the sentence "refused because".
    pub(super) fn refused(self, reason: String) -> Candidate {
        Candidate { reason, ..self.candidate }
    }
}

impl Establisher {
    /// Returns the backends that `address` allows and this machine has, and the refused ones with their
    /// reasons.
    pub(super) fn candidates(
        &self,
        role: Role,
        address: &Address,
    ) -> (Vec<BackendCandidate>, Vec<Candidate>) {
        let scheme = address.scheme();
        let (mut candidates, mut refused) = (Vec::new(), Vec::new());
        for backend in &self.backends {
            let mut candidate = Candidate {
                name: backend.name(),
                state: CandidateState::Refused,
                reason: String::new(),
                remedy: None,
                backend: None,
                path_probe: None,
            };
            let preference = scheme.backend().map_or_else(|| backend.preference(), |_| Preference::Preferred);
            let is_probed = preference == Preference::Probed;
            let why = match (scheme.backend(), preference) {
                (Some(name), _) if name != backend.name() => format!("the address asks for {name} alone"),
                (None, Preference::Aside(why)) => why,
                _ if scheme.is_encrypted() && !backend.is_private() => {
                    "it does not encrypt, and the address requires encryption".to_owned()
                }
                _ => String::new(),
            };
            if !why.is_empty() {
                candidate.reason = why;
                refused.push(candidate);
                continue;
            }
            candidate.backend = Some(backend.clone());
            if !is_probed && let Err(reason) = probe(&mut candidate) {
                candidate.reason = reason;
                refused.push(candidate);
                continue;
            }
            match backend.offer(role, address, &self.environment) {
                Ok(offer) => candidates.push(BackendCandidate {
                    backend: backend.clone(),
                    offer,
                    candidate,
                    is_probed,
                }),
                Err(error) => {
                    candidate.reason = error.to_string();
                    refused.push(candidate);
                }
            }
        }
        refused.extend(PLANNED.iter().map(|name| Candidate {
            name,
            state: CandidateState::Refused,
            reason: "this version does not have it yet".into(),
            remedy: None,
            backend: None,
            path_probe: None,
        }));
        (candidates, refused)
    }

    pub(super) fn meets(&self, candidate: &BackendCandidate, greeting: &Greeting) -> Result<(), String> {
        if !greeting.offers.iter().any(|offer| offer.backend == candidate.backend.name()) {
            return Err("the peer does not offer it".into());
        }
        if candidate.is_probed && self.identity.same_host(&greeting.peer) {
            return Err("it is tried between hosts, and this is one".into());
        }
        candidate.backend.reach(&self.identity, &greeting.peer)
    }

    /// Returns the final state of every candidate, in the order of preference, once `chosen` is.
    pub(super) fn record(
        &self,
        role: Role,
        chosen: &BackendCandidate,
        others: Vec<BackendCandidate>,
        refused: Vec<Candidate>,
        greeting: &Greeting,
    ) -> Vec<Candidate> {
        let name = chosen.candidate.name;
        let chosen = Candidate {
            state: CandidateState::Chosen,
            reason: match &chosen.candidate.reason {
                none if none.is_empty() => "the first that both ends have, in the order of preference".into(),
                reason => reason.clone(),
            },
            ..chosen.candidate.clone()
        };
        let preference = |name: &str| self.backends.iter().position(|backend| backend.name() == name);
        let offered = |name: &str| greeting.offers.iter().position(|offer| offer.backend == name);
        // A candidate that was not proposed may still be impossible. Both ends then report why.
        let others = others.into_iter().map(|candidate| match self.meets(&candidate, greeting) {
            // The connector proposes its offers in their order.
            Ok(()) if role == Role::Acceptor && offered(candidate.candidate.name) < offered(name) => {
                Candidate { reason: "the peer did not propose it".into(), ..candidate.candidate }
            }
            Ok(()) => Candidate {
                state: CandidateState::Available,
                reason: format!("{name} is preferred"),
                ..candidate.candidate
            },
            Err(reason) => Candidate { reason, ..candidate.candidate },
        });
        let mut candidates: Vec<_> = [chosen].into_iter().chain(others).chain(refused).collect();
        // Planned backends have no place in the order, and come last.
        candidates.sort_by_key(|candidate| preference(candidate.name).unwrap_or(usize::MAX));
        candidates
    }
}

/// Probes the backend. If it does not work here, returns the reason and stores the remedy in the candidate.
fn probe(candidate: &mut Candidate) -> Result<(), String> {
    match candidate.backend.as_ref().map(|backend| backend.probe()) {
        Some(Probe::Unavailable { reason, remedy }) => {
            (candidate.backend, candidate.remedy) = (None, Some(remedy));
            Err(reason)
        }
        Some(Probe::Ready { .. }) | None => Ok(()),
    }
}

/// Prepares this end of the backend. The error finishes the sentence "refused because".
pub(super) fn prepare(candidate: &mut BackendCandidate, context: &mut LinkContext) -> Result<(), String> {
    if candidate.is_probed {
        probe(&mut candidate.candidate)?;
    }
    candidate.backend.prepare(context).map_err(|error| error.to_string())?;
    match context.info.len() {
        // A connector that sent no endpoint info expects none.
        _ if context.role == Role::Acceptor && context.peer_info.is_empty() => context.info.clear(),
        0..=INFO_LEN_MAX => {}
        len => return Err(format!("its endpoint info, {len} bytes, passes the limit of {INFO_LEN_MAX}")),
    }
    Ok(())
}

/// Makes the error of a connection that has no candidate left.
pub(super) fn no_path(refused: &[Candidate]) -> Error {
    let reasons: Vec<_> = refused
        .iter()
        .filter(|candidate| !PLANNED.contains(&candidate.name))
        .map(|candidate| format!("{} refused because {}", candidate.name, candidate.reason))
        .collect();
    Error::new(ErrorKind::Unavailable, format!("no path to the peer: {}", reasons.join("; ")))
}

/// Makes the path's description. `over_tls` says whether the handshake stream uses TLS, which the backend
/// that takes it over keeps.
pub(super) fn path(
    address: String,
    addresses: Option<(SocketAddr, SocketAddr)>,
    candidate: &BackendCandidate,
    context: &LinkContext,
    (over_tls, streams): (bool, u8),
    candidates: Vec<Candidate>,
) -> Path {
    let encrypted = over_tls && candidate.backend.takes_stream();
    let (chosen, checked, streams) = (candidate.backend.name(), context.checked, streams.into());
    let LinkContext { local, peer, .. } = *context;
    Path { address, chosen, checked, encrypted, streams, candidates, local, peer, addresses }
}
