//! What one end tells the other, once both have proved who they are: which UCX it has, and where its worker is.

use ucx_sys::Version;

use crate::error::{Error, ErrorKind, Result};

/// What our own messages over UCX look like.
const LAYOUT: u8 = 1;
/// The layout, a zero, and three words of the version.
const HEAD_LEN: usize = 8;
/// The shortest address of a worker: a byte of flags and eight that name it. UCX reads one without knowing where it ends, so
/// that this is all that can be checked: see docs/safety.md.
const ADDRESS_LEN_MIN: usize = 9;

/// One end, as the other is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointInfo {
    pub(super) version: Version,
    /// Of its worker, as UCX gives it.
    pub(super) address: Vec<u8>,
}

impl EndpointInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Version { major, minor, release, .. } = self.version;
        let word = |number: u32| (number as u16).to_le_bytes();
        [&[LAYOUT, 0][..], &word(major), &word(minor), &word(release), &self.address].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why| Err(Error::new(ErrorKind::Corrupt, why));
        match bytes.first() {
            None => return corrupt("the peer did not tell where its worker is"),
            Some(&layout) if layout != LAYOUT => {
                let why = format!("the peer speaks layout {layout} over UCX, and this end {LAYOUT}");
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            Some(_) if bytes.len() < HEAD_LEN + ADDRESS_LEN_MIN => {
                return corrupt("the peer's endpoint info is shorter than any with a worker's address");
            }
            Some(_) => {}
        }
        let word = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        Ok(Self { version: Version::new(word(2), word(4), word(6)), address: bytes[HEAD_LEN..].to_vec() })
    }
}

/// Whether libraries of these versions were seen to work together: each with its own kind, since 1.13 and 1.22 misread each
/// other; or whether others are allowed. The sentence suits both ends: the one that refuses tells the other.
pub(super) fn check_pair(connector: Version, acceptor: Version, allows_any: bool) -> Result<()> {
    let same_minor = (connector.major, connector.minor) == (acceptor.major, acceptor.minor);
    if allows_any || (same_minor && connector.is_proven()) {
        return Ok(());
    }
    let pair = format!("the connector's UCX {connector} and the acceptor's {acceptor}");
    let why = if same_minor {
        format!("{pair} are newer than what was tried")
    } else {
        format!("{pair} are not of one version, and may misread each other")
    };
    Err(Error::new(ErrorKind::Unsupported, format!("{why}: ?versions=any allows it")))
}

/// Refuses a UCX whose own fault would end this process over these transports of its context, unless that is allowed. When a
/// peer is killed while it connects over tcp, 1.13 fails an assertion about its answer to the peer. 1.14 has none there.
pub(super) fn check_transports(
    version: Version,
    transports: &[String],
    within_host: bool,
    allows_any: bool,
) -> Result<()> {
    let has = |names: &[&str]| {
        transports.iter().any(|transport| names.iter().any(|name| transport.starts_with(name)))
    };
    let is_sound = (version.major, version.minor) >= (1, 14);
    // UCX prefers RDMA to tcp, and within a host shared memory, to carry a path and to connect by.
    let is_preferred = has(&["rc_", "ud_", "dc_"]) || (within_host && has(&["sysv/", "posix/"]));
    if is_sound || allows_any || is_preferred || !has(&["tcp/"]) {
        return Ok(());
    }
    let why = format!(
        "UCX {version} over tcp may abort this process when a peer is killed while it connects: use UCX 1.14 or later, or TLS \
         without tcp; ?versions=any allows it"
    );
    Err(Error::new(ErrorKind::Unsupported, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untested_version_pair_is_refused_unless_any_is_allowed() {
        let [old, fixed, new, later] =
            [(13, 0), (13, 1), (22, 3), (23, 0)].map(|(minor, release)| Version::new(1, minor, release));
        for (connector, acceptor) in [(old, old), (old, fixed), (new, new)] {
            check_pair(connector, acceptor, false).unwrap();
        }
        let refused_pairs = [
            (old, new, "not of one version"),
            (new, old, "not of one version"),
            (later, new, "not of one version"),
            (later, later, "newer than what was tried"),
        ];
        for (connector, acceptor, why) in refused_pairs {
            let refused = check_pair(connector, acceptor, false).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            let refused = refused.to_string();
            let pair = format!("the connector's UCX {connector} and the acceptor's {acceptor}");
            assert!(refused.contains(&pair), "{refused}");
            assert!(refused.contains(why) && refused.contains("?versions=any"), "{refused}");
            check_pair(connector, acceptor, true).unwrap();
        }
    }

    #[test]
    fn a_version_that_may_abort_over_tcp_is_refused_only_there() {
        let [old, fixed] = [Version::new(1, 13, 1), Version::new(1, 14, 0)];
        let check = |version, names: &[&str], within_host, allows_any| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            check_transports(version, &names, within_host, allows_any)
        };
        let (tcp, shared) = (&["self/memory", "tcp/lo"][..], &["tcp/lo", "sysv/memory"][..]);
        for (names, within_host) in [(tcp, false), (tcp, true), (shared, false)] {
            let refused = check(old, names, within_host, false).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains("1.14 or later"), "{refused}");
            check(old, names, within_host, true).unwrap();
            check(fixed, names, within_host, false).unwrap();
        }
        check(old, shared, true, false).unwrap();
        for names in [&["sysv/memory", "cma/memory"][..], &["tcp/eth0", "rc_verbs/mlx5_0:1"], &[]] {
            check(old, names, false, false).unwrap();
        }
    }

    #[test]
    fn endpoint_info_round_trips() {
        for len in [ADDRESS_LEN_MIN, 300] {
            let info = EndpointInfo { version: Version::new(1, 22, 3), address: vec![7; len] };
            assert_eq!(EndpointInfo::decode(&info.encode()).unwrap(), info);
        }
    }

    #[test]
    fn malformed_endpoint_info_is_refused() {
        let good =
            EndpointInfo { version: Version::new(1, 13, 1), address: vec![7; ADDRESS_LEN_MIN] }.encode();
        let wrong = [
            (Vec::new(), ErrorKind::Corrupt),
            (good[..7].to_vec(), ErrorKind::Corrupt),
            (good[..good.len() - 1].to_vec(), ErrorKind::Corrupt),
            ([&[2], &good[1..]].concat(), ErrorKind::Unsupported),
        ];
        for (bytes, kind) in wrong {
            assert_eq!(EndpointInfo::decode(&bytes).unwrap_err().kind(), kind, "{} bytes", bytes.len());
        }
    }
}
