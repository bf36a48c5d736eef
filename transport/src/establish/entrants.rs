//! Which backends are in the running for a connection, and what becomes of each.

use std::sync::Arc;

use super::Establisher;
use crate::addr::Address;
use crate::backend::{Backend, PLANNED, Probe, Role, Site, Standing};
use crate::door::{CARD_LEN_MAX, Greeting};
use crate::error::{Error, ErrorKind};
use crate::path::{Candidate, CandidateState};

/// One backend in the running for one connection.
pub(super) struct Entrant {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) offer: Vec<u8>,
    pub(super) candidate: Candidate,
    /// It is to be better than what takes the stream.
    pub(super) on_trial: bool,
}

impl Establisher {
    /// The backends that `address` allows and this machine has, and what became of the others.
    pub(super) fn entrants(&self, role: Role, address: &Address) -> (Vec<Entrant>, Vec<Candidate>) {
        let scheme = address.scheme();
        let (mut entrants, mut refused) = (Vec::new(), Vec::new());
        for backend in &self.backends {
            let mut candidate = Candidate {
                name: backend.name(),
                state: CandidateState::Refused,
                reason: String::new(),
                remedy: None,
                backend: None,
                trial: None,
            };
            let standing = scheme.backend().map_or_else(|| backend.standing(), |_| Standing::Preferred);
            let on_trial = standing == Standing::OnTrial;
            let why = match (scheme.backend(), standing) {
                (Some(name), _) if name != backend.name() => format!("the address asks for {name} alone"),
                (None, Standing::Aside(why)) => why,
                _ if scheme.is_encrypted() && !backend.is_private() => {
                    "it would carry in the clear what the address wants encrypted".to_owned()
                }
                _ => String::new(),
            };
            if !why.is_empty() {
                candidate.reason = why;
                refused.push(candidate);
                continue;
            }
            candidate.backend = Some(backend.clone());
            if !on_trial && let Err(reason) = probe(&mut candidate) {
                candidate.reason = reason;
                refused.push(candidate);
                continue;
            }
            match backend.offer(role, address, &self.environment) {
                Ok(offer) => entrants.push(Entrant { backend: backend.clone(), offer, candidate, on_trial }),
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
            trial: None,
        }));
        (entrants, refused)
    }

    pub(super) fn meets(&self, entrant: &Entrant, greeting: &Greeting) -> Result<(), String> {
        if !greeting.offers.iter().any(|offer| offer.backend == entrant.backend.name()) {
            return Err("the peer does not offer it".into());
        }
        if entrant.on_trial && self.identity.same_host(&greeting.peer) {
            return Err("it is tried between hosts, and this is one".into());
        }
        entrant.backend.reach(&self.identity, &greeting.peer)
    }

    /// Every candidate's end, once one is chosen, in the order of preference.
    pub(super) fn settle(
        &self,
        role: Role,
        chosen: &Entrant,
        others: Vec<Entrant>,
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
        // What nobody proposed may still be out of the question, and both ends say so.
        let others = others.into_iter().map(|entrant| match self.meets(&entrant, greeting) {
            // Whoever connects goes through what it offers, in that order.
            Ok(()) if role == Role::Acceptor && offered(entrant.candidate.name) < offered(name) => {
                Candidate { reason: "the peer did not propose it".into(), ..entrant.candidate }
            }
            Ok(()) => Candidate {
                state: CandidateState::Available,
                reason: format!("{name} is preferred"),
                ..entrant.candidate
            },
            Err(reason) => Candidate { reason, ..entrant.candidate },
        });
        let mut candidates: Vec<_> = [chosen].into_iter().chain(others).chain(refused).collect();
        // Those still to come have no place in the order, and come last.
        candidates.sort_by_key(|candidate| preference(candidate.name).unwrap_or(usize::MAX));
        candidates
    }
}

/// Whether it works here; otherwise why not, with the remedy in the candidate.
fn probe(candidate: &mut Candidate) -> Result<(), String> {
    match candidate.backend.as_ref().map(|backend| backend.probe()) {
        Some(Probe::Unavailable { reason, remedy }) => {
            (candidate.backend, candidate.remedy) = (None, Some(remedy));
            Err(reason)
        }
        Some(Probe::Ready { .. }) | None => Ok(()),
    }
}

/// Has the backend prepare its end; why not, in words that finish "refused because".
pub(super) fn prepare(entrant: &mut Entrant, site: &mut Site) -> Result<(), String> {
    if entrant.on_trial {
        probe(&mut entrant.candidate)?;
    }
    entrant.backend.prepare(site).map_err(|error| error.to_string())?;
    match site.card.len() {
        // A connector that brought no card expects none.
        _ if site.role == Role::Acceptor && site.peer_card.is_empty() => site.card.clear(),
        0..=CARD_LEN_MAX => {}
        len => return Err(format!("its card, {len} bytes, passes the limit of {CARD_LEN_MAX}")),
    }
    Ok(())
}

/// What is said where none is left.
pub(super) fn no_path(refused: &[Candidate]) -> Error {
    let reasons: Vec<_> = refused
        .iter()
        .filter(|candidate| !PLANNED.contains(&candidate.name))
        .map(|candidate| format!("{} refused because {}", candidate.name, candidate.reason))
        .collect();
    Error::new(ErrorKind::Unavailable, format!("no path to the peer: {}", reasons.join("; ")))
}
