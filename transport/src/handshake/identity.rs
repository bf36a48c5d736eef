//! The identity of an endpoint, and whether two are on the same host or in the same process.

use std::fmt;

use crate::platform::environment::Environment;
use crate::platform::process::PerProcess;
use crate::wire::handshake::IDENTITY_LEN;

/// One endpoint, as its peers see it.
///
/// Trust it as far as you trust the peer: without a token, nothing proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    /// The boot identifier of the host's kernel, or zero if it cannot be read. Containers of a host share it.
    pub host: [u8; 16],
    /// The process identifier in its own namespace.
    pub process: u32,
    /// The effective user in its own namespace.
    pub user: u32,
    /// Random for each process, since processes of two namespaces may share a number.
    pub process_nonce: [u8; 16],
    /// Random for the endpoint.
    pub id: [u8; 16],
}

impl Identity {
    /// Returns the identity of a new endpoint of this process.
    pub fn of_this_process(environment: &dyn Environment) -> Self {
        let mut id = [0; 16];
        environment.random(&mut id);
        Self {
            host: boot_id(),
            process: std::process::id(),
            user: rustix::process::geteuid().as_raw(),
            process_nonce: process_nonce(),
            id,
        }
    }

    /// Returns whether both run on one kernel. False if either host is unknown.
    pub fn same_host(&self, other: &Self) -> bool {
        self.host != UNKNOWN && self.host == other.host
    }

    /// Returns why no path within a host is possible between the two, if so. The host of a process without
    /// `/proc` is unknown.
    pub(crate) fn check_same_host(&self, peer: &Self) -> Result<(), String> {
        let unknown = |who| {
            format!("{who} does not know which host it is on, as it cannot read {BOOT_ID}: mount /proc there")
        };
        match [self.host, peer.host] {
            [UNKNOWN, _] => Err(unknown("this process")),
            [_, UNKNOWN] => Err(unknown("the peer")),
            [ours, theirs] if ours != theirs => Err("the peer is on another host".into()),
            _ => Ok(()),
        }
    }

    /// Returns whether both are endpoints of one process.
    pub fn same_process(&self, other: &Self) -> bool {
        (self.host, self.process, self.process_nonce) == (other.host, other.process, other.process_nonce)
    }

    pub(crate) fn to_bytes(self) -> [u8; IDENTITY_LEN] {
        let mut bytes = [0; IDENTITY_LEN];
        bytes[..16].copy_from_slice(&self.host);
        bytes[16..20].copy_from_slice(&self.process.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.user.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.process_nonce);
        bytes[40..].copy_from_slice(&self.id);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; IDENTITY_LEN]) -> Self {
        fn part<const N: usize>(bytes: &[u8; IDENTITY_LEN], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        Self {
            host: part(bytes, 0),
            process: u32::from_le_bytes(part(bytes, 16)),
            user: u32::from_le_bytes(part(bytes, 20)),
            process_nonce: part(bytes, 24),
            id: part(bytes, 40),
        }
    }
}

/// Formats as `4242@3f9a01c2/77d0e5b1`: process, host, endpoint.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: [u8; 16]| u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
        write!(f, "{}@{:08x}/{:08x}", self.process, short(self.host), short(self.id))
    }
}

/// The host of a process that cannot read its boot identifier.
const UNKNOWN: [u8; 16] = [0; 16];
/// The file with the boot identifier.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id() -> [u8; 16] {
    static KNOWN: PerProcess<[u8; 16]> = PerProcess::new(|| {
        let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        parse_uuid(text.trim()).unwrap_or_default()
    });
    *KNOWN.get()
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let well_formed = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !well_formed {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// Taken from the operating system even under simulation: it belongs to the process, and drawing it from the
/// first endpoint's environment would shift that environment's random numbers.
fn process_nonce() -> [u8; 16] {
    static NONCE: PerProcess<[u8; 16]> = PerProcess::new(|| {
        let mut nonce = [0; 16];
        match getrandom::fill(&mut nonce) {
            Ok(()) => nonce,
            // Without random numbers, only process identifiers distinguish processes.
            Err(_) => [0; 16],
        }
    });
    *NONCE.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn someone() -> Identity {
        Identity { host: [1; 16], process: 42, user: 1000, process_nonce: [2; 16], id: [3; 16] }
    }

    #[test]
    fn identity_round_trips() {
        assert_eq!(Identity::from_bytes(&someone().to_bytes()), someone());
        let bytes: [u8; IDENTITY_LEN] = std::array::from_fn(|i| i as u8);
        assert_eq!(Identity::from_bytes(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn an_unknown_host_is_never_the_same_host() {
        let nowhere = Identity { host: [0; 16], ..someone() };
        assert!(!nowhere.same_host(&nowhere));
        assert!(someone().same_host(&Identity { process: 7, ..someone() }));
        assert!(!someone().same_host(&Identity { host: [9; 16], ..someone() }));
        someone().check_same_host(&Identity { process: 7, ..someone() }).expect("one host");
        for (one, other, why) in [
            (someone(), Identity { host: [9; 16], ..someone() }, "the peer is on another host"),
            (someone(), nowhere, "the peer does not know which host"),
            (nowhere, someone(), "this process does not know which host"),
            (nowhere, nowhere, "this process does not know which host"),
        ] {
            let said = one.check_same_host(&other).expect_err(why);
            assert!(said.starts_with(why), "{said}");
        }
    }

    #[test]
    fn one_process_number_in_two_namespaces_is_two_processes() {
        assert!(someone().same_process(&Identity { id: [8; 16], ..someone() }));
        assert!(!someone().same_process(&Identity { process_nonce: [8; 16], ..someone() }));
        assert!(!someone().same_process(&Identity { process: 43, ..someone() }));
    }

    #[test]
    fn display_is_short() {
        assert_eq!(someone().to_string(), "42@01010101/03030303");
    }

    #[test]
    fn a_boot_id_is_parsed_or_unknown() {
        assert_eq!(parse_uuid("00000000-0000-0000-0000-0000000000ff").map(|id| id[15]), Some(255));
        for wrong in ["", "+1", "00000000-0000-0000-0000-0000000000f", "zz000000-0000-0000-0000-0000000000ff"]
        {
            assert_eq!(parse_uuid(wrong), None, "{wrong}");
        }
    }
}
