//! What a figure was measured on: the machine, and the versions of what ran.

use std::collections::BTreeMap;
use std::{fmt, fs};

use serde::Serialize;

/// The machine and the software, as far as they explain a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fingerprint {
    pub(crate) host: String,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    pub(crate) numa_nodes: usize,
    pub(crate) memory_bytes: u64,
    /// Versions of `towline` and of the libraries that its backends opened.
    pub(crate) versions: BTreeMap<String, String>,
    /// The commit that this binary was built from, where the build was told (`TOWLINE_COMMIT`).
    pub(crate) commit: Option<&'static str>,
}

impl Fingerprint {
    /// Reads this machine; `libraries` are the versions that backends report.
    pub(crate) fn read(libraries: impl IntoIterator<Item = (String, String)>) -> Self {
        let uname = rustix::system::uname();
        let mut versions = BTreeMap::from([("towline".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        versions.extend(libraries);
        Self {
            host: host_name(),
            cpu: cpu_model().unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            numa_nodes: numa_nodes(),
            memory_bytes: memory_bytes().unwrap_or(0),
            versions,
            commit: option_env!("TOWLINE_COMMIT"),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, cpu, cores, kernel, memory_bytes, .. } = self;
        write!(
            f,
            "{host}: {cpu}, {cores} cores, {:.1} GiB, {kernel}",
            *memory_bytes as f64 / (1u64 << 30) as f64
        )
    }
}

/// What this host calls itself.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn numa_nodes() -> usize {
    let nodes = fs::read_dir("/sys/devices/system/node").map(|entries| {
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let digits = name.to_str().and_then(|name| name.strip_prefix("node"));
                digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
            })
            .count()
    });
    nodes.unwrap_or(1).max(1)
}

/// What the machine has, whoever may use it, in bytes.
fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_fingerprint() {
        let fingerprint = Fingerprint::read([("ucx".to_owned(), "1.13.1".to_owned())]);
        assert!(!fingerprint.cpu.is_empty() && fingerprint.cores >= 1 && fingerprint.memory_bytes > 1 << 20);
        assert_eq!(fingerprint.versions["ucx"], "1.13.1");
        assert!(fingerprint.versions.contains_key("towline"));
    }
}
