//! Two hosts in one: network namespaces with a cable between them. Needs root and the `ip` command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Two namespaces, joined by a cable. Dropping it removes them; the suite removes those of a killed case.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) left: String,
    pub(crate) right: String,
}

/// Addresses of the left end, of the right end, and of no end.
pub(crate) const IPV4: [&str; 3] = ["10.77.0.1", "10.77.0.2", "10.77.0.99"];
pub(crate) const IPV6: [&str; 3] = ["[fd77::1]", "[fd77::2]", "[fd77::99]"];
/// Link-local addresses of the cable's left and right end.
pub(crate) const LINK_LOCAL: [&str; 2] = ["fe80::77:1", "fe80::77:2"];
/// Addresses whose packets are dropped: the right end's kernel has a wrong neighbour for them.
pub(crate) const SWALLOWING: [&str; 2] = ["10.77.0.66", "fd77::66"];
/// The hardware address of the cable's left end, and one of no end.
const LEFT_HARDWARE: &str = "02:00:00:00:00:01";
const NO_HARDWARE: &str = "02:00:00:00:00:66";
/// A host name, which each case maps to its own addresses.
pub(crate) const MANY: &str = "many.example";
/// Addresses outside the cable's networks.
pub(crate) const ELSEWHERE: [&str; 2] = ["10.99.0.1", "[fd99::1]"];

impl Namespaces {
    /// Makes the two namespaces of this process.
    pub(crate) fn new() -> Self {
        let [left, right] = names_of(std::process::id());
        let namespaces = Self { left, right };
        let Self { left, right } = &namespaces;
        for namespace in [left, right] {
            ip(&["netns", "add", namespace]).unwrap();
            ip(&["-n", namespace, "link", "set", "lo", "up"]).unwrap();
        }
        let near = ["link", "add", "cable", "address", LEFT_HARDWARE, "type", "veth"];
        let far = ["peer", "name", "cable", "netns", right];
        ip(&[&["-n", left][..], &near, &far].concat()).unwrap();
        for (namespace, at) in [(left, 0), (right, 1)] {
            let ipv4 = format!("{}/24", IPV4[at]);
            let ipv6 = format!("{}/64", IPV6[at].trim_matches(['[', ']']));
            ip(&["-n", namespace, "address", "add", &ipv4, "dev", "cable"]).unwrap();
            // Without IPv6 in the kernel, its cases fail where they use it.
            let link_local = format!("{}/64", LINK_LOCAL[at]);
            for ipv6 in [ipv6, link_local] {
                let _ = ip(&["-n", namespace, "address", "add", &ipv6, "dev", "cable", "nodad"]);
            }
            ip(&["-n", namespace, "link", "set", "cable", "up"]).unwrap();
        }
        namespaces
    }

    /// Sets the names that both namespaces resolve: lines of a hosts file, and a name server that never
    /// answers.
    pub(crate) fn name(&self, hosts: &str) {
        for namespace in [&self.left, &self.right] {
            let folder = files_of(namespace);
            std::fs::create_dir_all(&folder).unwrap();
            let server = format!("nameserver {}\n", SWALLOWING[0]);
            let files = [("hosts", hosts), ("resolv.conf", &server), ("nsswitch.conf", "hosts: files dns\n")];
            for (file, text) in files {
                std::fs::write(folder.join(file), text).unwrap();
            }
        }
        fix_neighbours(&self.right, &SWALLOWING, NO_HARDWARE);
    }

    /// Drops what the left end sends from now on. What the right end sends arrives.
    pub(crate) fn mute_left(&self) {
        let bare = |addresses: [&'static str; 3], at: usize| addresses[at].trim_matches(['[', ']']);
        // The right end could no longer resolve the left end's hardware address.
        fix_neighbours(&self.right, &[bare(IPV4, 0), bare(IPV6, 0)], LEFT_HARDWARE);
        fix_neighbours(&self.left, &[bare(IPV4, 1), bare(IPV6, 1)], NO_HARDWARE);
    }

    /// Cuts the cable: nothing arrives, and neither end gets an error.
    pub(crate) fn cut(&self) {
        // The left end keeps its carrier: no route changes, and no reset is sent.
        ip(&["-n", &self.right, "link", "set", "cable", "down"]).unwrap();
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove_those_of(std::process::id());
    }
}

/// Sets a kernel parameter of a namespace.
pub(crate) fn set(namespace: &str, parameter: &str, value: &str) {
    let set =
        ["ip", "netns", "exec", namespace, "sh", "-c", "echo \"$1\" > /proc/sys/\"$(echo $0 | tr . /)\""];
    let status = Command::new(set[0]).args(&set[1..]).args([parameter, value]).status();
    assert!(status.is_ok_and(|status| status.success()), "{parameter} of {namespace} takes {value:?}");
}

/// Sends a namespace's packets for these addresses to one hardware address, permanently.
fn fix_neighbours(namespace: &str, addresses: &[&str], hardware: &str) {
    for at in addresses {
        let entry = ["lladdr", hardware, "dev", "cable", "nud", "permanent"];
        // Without IPv6 in the kernel, its cases fail where they use it.
        let _ = ip(&[&["-n", namespace, "neighbour", "replace", at][..], &entry].concat());
    }
}

/// Removes the namespaces of a process.
pub(crate) fn remove_those_of(process: u32) {
    for name in names_of(process) {
        if Path::new("/run/netns").join(&name).exists() {
            // A failure has no effect on a case.
            let _ = ip(&["netns", "delete", &name]);
        }
        let _ = std::fs::remove_dir_all(files_of(&name));
    }
}

/// Returns why this machine cannot make namespaces, if so.
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

/// The folder that `ip netns exec` mounts over files of `/etc`.
fn files_of(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
