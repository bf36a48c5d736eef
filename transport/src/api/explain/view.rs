//! One end's view of a connection, and its encoding for the other end.

use crate::backend::path::{CandidateState, Path};
use crate::wire::handshake::clean;

/// Bounds on what a peer may send.
const PEER_CANDIDATES_MAX: usize = 32;
const NOTES_MAX: usize = 16;
const NAME_LEN_MAX: usize = 32;
const REASON_LEN_MAX: usize = 512;

/// One end's view of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerView {
    /// Every candidate, in that end's order of preference.
    pub candidates: Vec<PeerCandidate>,
    /// That end's notes on the optional mechanisms of its link. Text of the peer's, safe for a log line.
    pub notes: Vec<String>,
}

/// One end's view of a candidate. Text of the peer's, safe for a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCandidate {
    /// The candidate's name.
    pub name: String,
    /// Whether it was chosen, available or refused.
    pub state: CandidateState,
    /// Why it has that state.
    pub reason: String,
}

impl PeerView {
    /// Makes the view of `path`, without notes.
    pub fn of(path: &Path) -> Self {
        let peer_candidate = |candidate: &crate::backend::path::Candidate| PeerCandidate {
            name: clean(candidate.name.as_bytes(), NAME_LEN_MAX),
            state: candidate.state,
            reason: clean(candidate.reason.as_bytes(), REASON_LEN_MAX),
        };
        let candidates = path.candidates().iter().take(PEER_CANDIDATES_MAX).map(peer_candidate).collect();
        Self { candidates, notes: Vec::new() }
    }

    /// Returns the candidate that carries the connection in this view.
    pub fn chosen(&self) -> Option<&str> {
        let chosen = |peer_candidate: &&PeerCandidate| peer_candidate.state == CandidateState::Chosen;
        self.candidates.iter().find(chosen).map(|peer_candidate| &peer_candidate.name[..])
    }

    /// Encodes one line for each candidate (the state's letter, the name, a space, the reason) and for each
    /// note (`n`, the note).
    pub(super) fn encode(&self) -> Vec<u8> {
        let line = |peer_candidate: &PeerCandidate| {
            let state = match peer_candidate.state {
                CandidateState::Chosen => 'c',
                CandidateState::Available => 'a',
                CandidateState::Refused => 'r',
            };
            format!("{state}{} {}\n", peer_candidate.name, peer_candidate.reason)
        };
        let notes = self.notes.iter().map(|note| format!("n{note}\n"));
        self.candidates.iter().map(line).chain(notes).collect::<String>().into_bytes()
    }

    /// Decodes a view. `None` if `bytes` are not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let peer_candidate = |line: &[u8]| {
            let (state, rest) = line.split_first()?;
            let space = rest.iter().position(|byte| *byte == b' ')?;
            Some(PeerCandidate {
                state: match state {
                    b'c' => CandidateState::Chosen,
                    b'a' => CandidateState::Available,
                    b'r' => CandidateState::Refused,
                    _ => return None,
                },
                name: clean(&rest[..space], NAME_LEN_MAX),
                reason: clean(&rest[space..], REASON_LEN_MAX),
            })
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let (notes, peer_candidates): (Vec<_>, Vec<_>) = lines.partition(|line| line[0] == b'n');
        let candidates = peer_candidates
            .into_iter()
            .take(PEER_CANDIDATES_MAX)
            .map(peer_candidate)
            .collect::<Option<_>>()?;
        let notes = notes.into_iter().take(NOTES_MAX).map(|note| clean(&note[1..], REASON_LEN_MAX)).collect();
        Some(Self { candidates, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_decodes_as_it_was_encoded_and_a_hostile_one_is_bounded() {
        let peer_candidate = |name: &str, state, reason: &str| PeerCandidate {
            name: name.into(),
            state,
            reason: reason.into(),
        };
        let view = PeerView {
            candidates: vec![
                peer_candidate("mem", CandidateState::Refused, "the peer is another process"),
                peer_candidate("tcp", CandidateState::Chosen, "the first of two"),
                peer_candidate("shm", CandidateState::Available, ""),
            ],
            notes: vec!["large frames are copied once".into(), String::new()],
        };
        assert_eq!(PeerView::decode(&view.encode()).as_ref(), Some(&view));
        assert_eq!(view.chosen(), Some("tcp"));
        for wrong in [&b"x"[..], b"xmem no such state", b"c", b"cmem"] {
            assert_eq!(PeerView::decode(wrong), None, "{}", wrong.escape_ascii());
        }
        let greedy =
            PeerView::decode(&[b"rx \x1b[31m".as_slice(), &[b'y'; 9000], b"\n"].concat().repeat(100))
                .unwrap();
        assert_eq!(greedy.candidates.len(), PEER_CANDIDATES_MAX);
        assert!(
            greedy
                .candidates
                .iter()
                .all(|it| it.reason.len() <= REASON_LEN_MAX && !it.reason.contains('\x1b'))
        );
    }
}
