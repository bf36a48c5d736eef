//! What one end tells the other in the handshake: which UCX it has.

use ucx_sys::Version;

use crate::error::{Error, ErrorKind, Result};

/// What our own messages over UCX look like.
const LAYOUT: u8 = 1;
const LEN: usize = 8;

/// A UCX, as a peer is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) version: Version,
}

impl Offer {
    pub(super) fn encode(self) -> Vec<u8> {
        let Version { major, minor, release, .. } = self.version;
        let word = |number: u32| (number as u16).to_le_bytes();
        [[LAYOUT, 0], word(major), word(minor), word(release)].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes.first() {
            Some(&LAYOUT) if bytes.len() == LEN => {}
            Some(&layout) if layout != LAYOUT => {
                let why = format!("the peer speaks layout {layout} over UCX, and this end {LAYOUT}");
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            _ => return Err(Error::new(ErrorKind::Corrupt, "the peer's offer is not 8 bytes")),
        }
        let word = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        Ok(Self { version: Version::new(word(2), word(4), word(6)) })
    }
}

/// Whether libraries of these versions were seen to work together: each with its own kind, since 1.13 and 1.22 misread each
/// other; or whether others are allowed.
pub(super) fn check_pair(ours: Version, theirs: Version, allows_any: bool) -> Result<()> {
    let are_one = (ours.major, ours.minor) == (theirs.major, theirs.minor);
    if allows_any || (are_one && ours.is_proven()) {
        return Ok(());
    }
    let why = if are_one {
        format!("UCX {ours} here and {theirs} at the peer are newer than what was tried")
    } else {
        format!("UCX {ours} here and {theirs} at the peer are not of one version, and may misread each other")
    };
    Err(Error::new(ErrorKind::Unsupported, format!("{why}: ?versions=any allows it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_was_not_proven_is_refused_unless_any_is_allowed() {
        let [old, mended, new, later] =
            [(13, 0), (13, 1), (22, 3), (23, 0)].map(|(minor, release)| Version::new(1, minor, release));
        for (ours, theirs) in [(old, old), (old, mended), (new, new)] {
            check_pair(ours, theirs, false).unwrap();
        }
        let strangers = [
            (old, new, "not of one version"),
            (new, old, "not of one version"),
            (later, new, "not of one version"),
            (later, later, "newer than what was tried"),
        ];
        for (ours, theirs, why) in strangers {
            let refused = check_pair(ours, theirs, false).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            let refused = refused.to_string();
            assert!(refused.contains(&format!("UCX {ours} here and {theirs} at the peer")), "{refused}");
            assert!(refused.contains(why) && refused.contains("?versions=any"), "{refused}");
            check_pair(ours, theirs, true).unwrap();
        }
    }

    #[test]
    fn an_offer_comes_back_as_it_was() {
        let offer = Offer { version: Version::new(1, 22, 3) };
        assert_eq!(Offer::decode(&offer.encode()).unwrap(), offer);
    }

    #[test]
    fn what_is_no_offer_is_refused() {
        let good = Offer { version: Version::new(1, 13, 1) }.encode();
        let wrong = [
            (Vec::new(), ErrorKind::Corrupt),
            (good[..7].to_vec(), ErrorKind::Corrupt),
            ([&good[..], &[0]].concat(), ErrorKind::Corrupt),
            ([&[2], &good[1..]].concat(), ErrorKind::Unsupported),
        ];
        for (bytes, kind) in wrong {
            assert_eq!(Offer::decode(&bytes).unwrap_err().kind(), kind, "{} bytes", bytes.len());
        }
    }
}
