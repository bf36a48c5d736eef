//! The fingerprint of a run: the machine and the versions of its software.

use std::collections::BTreeMap;
use std::{fmt, fs};

use serde::Serialize;

use super::host_load::{HostLoad, Loads};
use super::version;

/// The machine and the software, as far as they explain a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fingerprint {
    pub(crate) host: String,
    /// The processor's name.
    pub(crate) cpu: String,
    /// The vendor, if the kernel reports it: `GenuineIntel`.
    pub(crate) cpu_vendor: Option<String>,
    /// The model, which differs between processors of one name, as in virtual machines:
    /// `family 6, model 143, stepping 8`.
    pub(crate) cpu_model: Option<String>,
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    pub(crate) numa_nodes: usize,
    pub(crate) memory_bytes: u64,
    /// Versions of `towline` and of the libraries that its backends opened.
    pub(crate) versions: BTreeMap<String, String>,
    /// The commit that this binary was built from, if known (`version::COMMIT`).
    pub(crate) commit: Option<&'static str>,
    /// How busy the host was before and after.
    pub(crate) load: Loads,
}

impl Fingerprint {
    /// Reads this machine; `libraries` are the versions that backends report.
    pub(crate) fn read(libraries: impl IntoIterator<Item = (String, String)>) -> Self {
        let uname = rustix::system::uname();
        let mut versions = BTreeMap::from([("towline".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        versions.extend(libraries);
        let cpu = Cpu::of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        Self {
            host: host_name(),
            cpu: cpu.name.unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            cpu_vendor: cpu.vendor,
            cpu_model: cpu.model,
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            numa_nodes: numa_nodes(),
            memory_bytes: memory_bytes().unwrap_or(0),
            versions,
            commit: version::COMMIT,
            load: Loads::read(),
        }
    }

    /// Reads the load after a run.
    pub(crate) fn end(&mut self) {
        self.load.after = Some(HostLoad::read());
    }

    /// Returns why figures of this host are doubtful.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.load.warnings(self.cores)
    }

    /// Returns the processor with its model: `AMD EPYC (AuthenticAMD, family 25, model 17, stepping 1)`.
    pub(crate) fn processor(&self) -> String {
        let about = self.cpu_vendor.iter().chain(&self.cpu_model).map(String::as_str);
        match about.collect::<Vec<_>>().join(", ") {
            about if about.is_empty() => self.cpu.clone(),
            about => format!("{} ({about})", self.cpu),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, cores, kernel, memory_bytes, .. } = self;
        let cpu = self.processor();
        write!(
            f,
            "{host}: {cpu}, {cores} cores, {:.1} GiB, {kernel}",
            *memory_bytes as f64 / (1u64 << 30) as f64
        )
    }
}

/// Returns the host name.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A processor of `/proc/cpuinfo`: x86 has a name and numbers, Arm has numbers.
#[derive(Debug, PartialEq)]
struct Cpu {
    name: Option<String>,
    vendor: Option<String>,
    model: Option<String>,
}

impl Cpu {
    /// Parses the first processor of `text`.
    fn of(text: &str) -> Self {
        let of = |key: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once(':'));
            let mut values = pairs.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
            values.next().filter(|value| !value.is_empty())
        };
        let numbers = |keys: &[(&str, &str)]| {
            let numbers = keys.iter().filter_map(|(key, word)| Some(format!("{word} {}", of(key)?)));
            Some(numbers.collect::<Vec<_>>().join(", ")).filter(|numbers| !numbers.is_empty())
        };
        let x86 = [("cpu family", "family"), ("model", "model"), ("stepping", "stepping")];
        let arm = [("CPU architecture", "architecture"), ("CPU part", "part"), ("CPU revision", "revision")];
        let implementer = of("CPU implementer").map(|number| format!("implementer {number}"));
        Self {
            name: of("model name").map(str::to_owned),
            vendor: of("vendor_id").map(str::to_owned).or(implementer),
            model: numbers(&x86).or_else(|| numbers(&arm)),
        }
    }
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

/// Returns the memory of the machine in bytes.
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

    #[test]
    fn a_processor_has_a_vendor_and_a_model() {
        let cpu = |name: Option<&str>, vendor: &str, model: &str| Cpu {
            name: name.map(str::to_owned),
            vendor: Some(vendor.to_owned()),
            model: Some(model.to_owned()),
        };
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n\
                   model name\t: Intel(R) Xeon(R) Processor\nstepping\t: 8\n\nprocessor\t: 1\nmodel\t: 9\n";
        let name = Some("Intel(R) Xeon(R) Processor");
        assert_eq!(Cpu::of(x86), cpu(name, "GenuineIntel", "family 6, model 143, stepping 8"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\nCPU revision\t: 1\n";
        assert_eq!(Cpu::of(arm), cpu(None, "implementer 0x41", "architecture 8, part 0xd0c, revision 1"));
        assert_eq!(Cpu::of(""), Cpu { name: None, vendor: None, model: None });
    }
}
