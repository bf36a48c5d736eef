//! The hardware and limits beneath the transports, read from `/sys` and `/proc`.

use std::fmt;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// The folder in which the kernel lists RDMA devices.
pub(crate) const RDMA_DEVICES: &str = "/sys/class/infiniband";

const GPUS: &str = "/proc/driver/nvidia/gpus";

/// A network interface.
#[derive(Debug, Serialize)]
pub(crate) struct Interface {
    name: String,
    state: Option<String>,
    mtu: Option<u64>,
    /// Megabits per second, if the driver reports them.
    speed_mbit_per_s: Option<u64>,
}

/// An NVIDIA GPU as its driver lists it.
#[derive(Debug, Serialize)]
pub(crate) struct Gpu {
    /// Its address on the PCI bus.
    bus: String,
    model: Option<String>,
}

/// An RDMA device.
#[derive(Debug, Serialize)]
pub(crate) struct RdmaDevice {
    name: String,
    ports: Vec<Port>,
}

/// One port of an RDMA device.
#[derive(Debug, Serialize)]
struct Port {
    number: String,
    state: Option<String>,
    rate: Option<String>,
    link_layer: Option<String>,
}

/// Limits that matter to transports; `null` is unlimited for the first two, and unknown for the others.
#[derive(Debug, Serialize)]
pub(crate) struct Limits {
    memlock_bytes: Option<u64>,
    open_files: Option<u64>,
    ptrace_scope: Option<u64>,
    shmem_huge_pages: Option<String>,
}

pub(crate) fn interfaces() -> Vec<Interface> {
    let root = Path::new("/sys/class/net");
    let read = |name: String| {
        let of = |file: &str| text(&root.join(&name).join(file));
        Interface {
            state: of("operstate"),
            mtu: of("mtu").and_then(|mtu| mtu.parse().ok()),
            speed_mbit_per_s: of("speed").and_then(|speed| speed.parse().ok()),
            name,
        }
    };
    entries(root).into_iter().map(read).collect()
}

pub(crate) fn gpus() -> Vec<Gpu> {
    let read = |bus: String| {
        let information =
            fs::read_to_string(Path::new(GPUS).join(&bus).join("information")).unwrap_or_default();
        let model = information.lines().find_map(|line| line.strip_prefix("Model:"));
        Gpu { model: model.map(|model| model.trim().to_owned()), bus }
    };
    entries(Path::new(GPUS)).into_iter().map(read).collect()
}

pub(crate) fn rdma() -> Vec<RdmaDevice> {
    let device = |name: String| {
        let ports = Path::new(RDMA_DEVICES).join(&name).join("ports");
        let port = |number: String| {
            let of = |file: &str| text(&ports.join(&number).join(file));
            Port { state: of("state"), rate: of("rate"), link_layer: of("link_layer"), number }
        };
        RdmaDevice { ports: entries(&ports).into_iter().map(port).collect(), name }
    };
    entries(Path::new(RDMA_DEVICES)).into_iter().map(device).collect()
}

impl Limits {
    pub(crate) fn read() -> Self {
        Self {
            memlock_bytes: getrlimit(Resource::Memlock).current,
            open_files: getrlimit(Resource::Nofile).current,
            ptrace_scope: text(Path::new("/proc/sys/kernel/yama/ptrace_scope"))
                .and_then(|scope| scope.parse().ok()),
            shmem_huge_pages: text(Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled"))
                .map(|choices| chosen(&choices)),
        }
    }
}

/// Returns the choice in brackets of `always within_size [never]`.
fn chosen(choices: &str) -> String {
    let inside = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(choices, |(choice, _)| choice).to_owned()
}

/// Returns the one line of a file; `None` if it cannot be read.
fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Returns the names in a folder, sorted; none if the folder is missing.
fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.state.as_deref().unwrap_or("unknown"))?;
        if let Some(mtu) = self.mtu {
            write!(f, ", mtu {mtu}")?;
        }
        match self.speed_mbit_per_s {
            Some(speed) => write!(f, ", {speed} Mbit/s"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bus, self.model.as_deref().unwrap_or("of unknown model"))
    }
}

impl fmt::Display for RdmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for port in &self.ports {
            write!(f, ", port {}", port.number)?;
            for detail in [&port.state, &port.rate, &port.link_layer].into_iter().flatten() {
                write!(f, " {detail}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unlimited =
            |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let scope = self.ptrace_scope.map_or_else(|| "not restricted".to_owned(), |scope| scope.to_string());
        write!(
            f,
            "locked memory {} bytes, open files {}, ptrace scope {scope}, huge pages of shared memory {}",
            unlimited(self.memlock_bytes),
            unlimited(self.open_files),
            self.shmem_huge_pages.as_deref().unwrap_or("unknown")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_in_brackets() {
        assert_eq!(chosen("always within_size advise [never] deny force"), "never");
        assert_eq!(chosen("never"), "never");
    }

    #[test]
    fn what_is_missing_is_empty_and_not_an_error() {
        assert!(entries(Path::new("/no/such/folder")).is_empty());
        assert_eq!(text(Path::new("/no/such/file")), None);
        assert!(Limits::read().open_files.is_none_or(|files| files > 0));
    }
}
