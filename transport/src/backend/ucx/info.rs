//! The endpoint info of `ucx`: the version of UCX and the worker's address, which the ends exchange after
//! authentication.

use ucx_sys::Version;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::cursor::Cursor;

/// The version of this layout.
const LAYOUT: u8 = 1;
/// The shortest worker address: a byte of flags and eight bytes of identifier. UCX parses an address without
/// a length, so this is the only possible check: see docs/safety.md.
const ADDRESS_LEN_MIN: usize = 9;

/// One end's endpoint info. Encoded: the layout, a zero byte, three 16-bit numbers of the version, the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointInfo {
    pub(super) version: Version,
    /// The worker's address, as UCX returns it.
    pub(super) address: Vec<u8>,
}

impl EndpointInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Version { major, minor, release, .. } = self.version;
        let word = |number: u32| (number as u16).to_le_bytes();
        [&[LAYOUT, 0][..], &word(major), &word(minor), &word(release), &self.address].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why| Error::new(ErrorKind::Corrupt, why);
        if bytes.is_empty() {
            return Err(corrupt("the peer sent no worker address"));
        }
        let mut fields = Cursor::new(bytes, "the peer's endpoint info");
        let layout = fields.u8()?;
        if layout != LAYOUT {
            let why = format!("the peer uses layout {layout} over UCX, and this end layout {LAYOUT}");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        fields.take(1)?; // Reserved: zero, and ignored.
        let (major, minor, release) = (fields.u16()?, fields.u16()?, fields.u16()?);
        if fields.len() < ADDRESS_LEN_MIN {
            return Err(corrupt("the peer's endpoint info is shorter than any with a worker's address"));
        }
        let version = Version::new(major.into(), minor.into(), release.into());
        Ok(Self { version, address: fields.rest().to_vec() })
    }
}

/// Checks that libraries of these versions were tested together, or that others are allowed. Each version
/// works with its own minor version only, since 1.13 and 1.22 misread each other. The error text suits both
/// ends, since the one that refuses sends it to the other.
pub(super) fn check_pair(connector: Version, acceptor: Version, allows_any: bool) -> Result<()> {
    let same_minor = (connector.major, connector.minor) == (acceptor.major, acceptor.minor);
    if allows_any || (same_minor && connector.is_proven()) {
        return Ok(());
    }
    let pair = format!("the connector's UCX {connector} and the acceptor's {acceptor}");
    let why = if same_minor {
        format!("{pair} are newer than the tested versions")
    } else {
        format!("{pair} are of different versions, and may misread each other")
    };
    Err(Error::new(ErrorKind::Unsupported, format!("{why}: ?versions=any allows it")))
}

/// Refuses a UCX whose own fault could abort this process over these transports, unless that is allowed. When
/// a peer is killed while it connects over tcp, 1.13 fails an assertion about its reply to the peer. 1.14
/// does not.
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
    // UCX prefers RDMA to tcp, and within a host shared memory, both for data and for connecting.
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
            (old, new, "of different versions"),
            (new, old, "of different versions"),
            (later, new, "of different versions"),
            (later, later, "newer than the tested versions"),
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
