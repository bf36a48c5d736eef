//! Two hosts in one: network namespaces and a cable between them. Needs root and the `ip` command.

use std::process::Command;
use std::sync::OnceLock;

/// Two namespaces, joined by a cable. They go with this handle; what a killed case leaves, the suite removes.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) left: String,
    pub(crate) right: String,
}

/// The left end's addresses, then the right one's, then one that nobody has.
pub(crate) const IPV4: [&str; 3] = ["10.77.0.1", "10.77.0.2", "10.77.0.99"];
pub(crate) const IPV6: [&str; 3] = ["[fd77::1]", "[fd77::2]", "[fd77::99]"];
/// On no cable.
pub(crate) const ELSEWHERE: [&str; 2] = ["10.99.0.1", "[fd99::1]"];

impl Namespaces {
    /// Two namespaces of this process.
    pub(crate) fn new() -> Self {
        let [left, right] = names_of(std::process::id());
        let namespaces = Self { left, right };
        let Self { left, right } = &namespaces;
        for namespace in [left, right] {
            ip(&["netns", "add", namespace]).unwrap();
            ip(&["-n", namespace, "link", "set", "lo", "up"]).unwrap();
        }
        ip(&["-n", left, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", right])
            .unwrap();
        for (namespace, at) in [(left, 0), (right, 1)] {
            let ipv4 = format!("{}/24", IPV4[at]);
            let ipv6 = format!("{}/64", IPV6[at].trim_matches(['[', ']']));
            ip(&["-n", namespace, "address", "add", &ipv4, "dev", "cable"]).unwrap();
            // Without IPv6 in the kernel, its cases fail where they use it.
            let _ = ip(&["-n", namespace, "address", "add", &ipv6, "dev", "cable", "nodad"]);
            ip(&["-n", namespace, "link", "set", "cable", "up"]).unwrap();
        }
        namespaces
    }

    /// Cuts the cable: nothing arrives any more, and nobody is told.
    pub(crate) fn cut(&self) {
        // The far end keeps its carrier's absence to itself: no route changes, no reset.
        ip(&["-n", &self.right, "link", "set", "cable", "down"]).unwrap();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove_those_of(std::process::id());
    }
}

/// Removes what a process has left.
pub(crate) fn remove_those_of(process: u32) {
    for name in names_of(process) {
        if std::path::Path::new("/run/netns").join(&name).exists() {
            // There is nobody to tell.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

/// Why there can be none here, if so.
pub(crate) fn unavailable() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON
        .get_or_init(|| {
            if !rustix::process::geteuid().is_root() {
                return Some("only root may make network namespaces".into());
            }
            let [name, _] = names_of(std::process::id());
            let made = ip(&["netns", "add", &name]);
            remove_those_of(std::process::id());
            made.err()
        })
        .clone()
}

fn names_of(process: u32) -> [String; 2] {
    ["left", "right"].map(|side| format!("towline-{process}-{side}"))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
