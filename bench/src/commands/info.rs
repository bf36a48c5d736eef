//! `towline info`: the transports of this machine, its hardware, and why a transport is missing.

use std::io::{self, Write};

use serde::Serialize;
use towline::{AvailableMemory, BackendReport, BackendState, Endpoint, Inventory};

use crate::data::units::memory;
use crate::failure::Failure;
use crate::machine::devices::{self, Gpu, Interface, Limits, RdmaDevice};
use crate::machine::fingerprint::Fingerprint;
use crate::terminal::output::Output;

const EXAMPLE: &str = "\
Examples:
  towline info
  towline info --json | jq '.backends[] | select(.state != \"ready\")'
  towline info --json | jq '.backends[] | select(.name == \"ucx\") | .devices'";

/// List what this machine offers: every transport with its library, or the reason why it is missing, and the
/// hardware
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    complete: bool,
    version: &'static str,
    host: Host,
    backends: Vec<Backend>,
    gpus: Vec<Gpu>,
    rdma: Vec<RdmaDevice>,
    limits: Limits,
}

#[derive(Debug, Serialize)]
struct Host {
    name: String,
    cpu: String,
    kernel: String,
    cores: usize,
    numa_nodes: usize,
    memory_bytes: u64,
    /// The memory that this process can use, its limit, and the origin of that limit.
    memory_available_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    memory_bound: Option<String>,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Serialize)]
struct Backend {
    name: &'static str,
    state: &'static str,
    reason: Option<String>,
    remedy: Option<String>,
    version: Option<String>,
    caps: Vec<String>,
    library: Option<String>,
    devices: Vec<String>,
    memory: Vec<String>,
    notes: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    options.output.check()?;
    let endpoint = Endpoint::new()?;
    let backend = |report: BackendReport| {
        let inventory = endpoint.inventory(report.name).unwrap_or_default();
        Backend::new(report, inventory)
    };
    let document = Document {
        schema: 1,
        complete: true,
        version: env!("CARGO_PKG_VERSION"),
        host: Host::read(),
        backends: endpoint.backends().into_iter().map(backend).collect(),
        gpus: devices::gpus(),
        rdma: devices::rdma(),
        limits: Limits::read(),
    };
    options.output.give(&document, |out: &mut dyn Write| document.write(out))
}

impl Host {
    fn read() -> Self {
        let Fingerprint { host, cpu, kernel, cores, numa_nodes, memory_bytes, .. } = Fingerprint::read([]);
        let available = AvailableMemory::now();
        Self {
            name: host,
            cpu,
            kernel,
            cores,
            numa_nodes,
            memory_bytes,
            memory_available_bytes: available.as_ref().map(|memory| memory.bytes),
            memory_limit_bytes: available.as_ref().map(|memory| memory.limit_bytes),
            memory_bound: available.map(|memory| memory.bound.to_string()),
            interfaces: devices::interfaces(),
        }
    }
}

impl Backend {
    fn new(report: BackendReport, inventory: Inventory) -> Self {
        let Inventory { library, devices, memory, notes } = inventory;
        let mut backend = Self {
            name: report.name,
            state: "unavailable",
            reason: None,
            remedy: None,
            version: None,
            caps: Vec::new(),
            library: library.map(|path| path.to_string_lossy().into_owned()),
            devices,
            memory,
            notes,
        };
        match report.state {
            BackendState::Ready { version, caps } => {
                backend.state = "ready";
                backend.version = version;
                backend.caps = caps.names();
            }
            BackendState::Unavailable { reason, remedy } => {
                (backend.reason, backend.remedy) = (Some(reason), Some(remedy));
            }
            BackendState::Planned => {
                backend.state = "planned";
                backend.reason = Some("a later version will have it".to_owned());
            }
            _ => backend.reason = Some("a state that this command does not know".to_owned()),
        }
        backend
    }
}

impl Document {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "towline {}", self.version)?;
        let Host { name, cpu, kernel, cores, numa_nodes, memory_bytes, interfaces, .. } = &self.host;
        writeln!(out, "{name}: {kernel}")?;
        writeln!(
            out,
            "  cpu      {cpu}, {cores} cores, {numa_nodes} NUMA node{}",
            if *numa_nodes == 1 { "" } else { "s" }
        )?;
        let available = match (self.host.memory_available_bytes, &self.host.memory_bound) {
            (Some(bytes), Some(bound)) => format!(", {} available, by {bound}", memory(bytes as f64)),
            _ => String::new(),
        };
        writeln!(out, "  memory   {}{available}", memory(*memory_bytes as f64))?;
        for interface in interfaces {
            writeln!(out, "  network  {interface}")?;
        }
        if self.gpus.is_empty() {
            writeln!(out, "  gpu      none that an NVIDIA driver shows")?;
        }
        for gpu in &self.gpus {
            writeln!(out, "  gpu      {gpu}")?;
        }
        if self.rdma.is_empty() {
            writeln!(out, "  rdma     none: {} is missing or empty", devices::RDMA_DEVICES)?;
        }
        for device in &self.rdma {
            writeln!(out, "  rdma     {device}")?;
        }
        writeln!(out, "  limits   {}", self.limits)?;
        writeln!(out, "transports")?;
        for backend in &self.backends {
            writeln!(out, "  {backend}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<8} {:<12}", self.name, self.state)?;
        let details = [&self.version, &self.reason, &self.remedy];
        let mut parts: Vec<String> = details.into_iter().flatten().cloned().collect();
        if !self.caps.is_empty() {
            parts.push(self.caps.join(" "));
        }
        f.write_str(&parts.join("; "))?;
        let library = self.library.as_slice();
        for (what, list) in [("library", library), ("devices", &self.devices), ("memory", &self.memory)] {
            if !list.is_empty() {
                write!(f, "\n           {what:<8} {}", list.join(" "))?;
            }
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n           {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_backend_shows() {
        let shown = |state| Backend::new(BackendReport { name: "ib", state }, Inventory::default());
        let unavailable =
            BackendState::Unavailable { reason: "no device".into(), remedy: "plug one in".into() };
        assert_eq!(shown(unavailable).to_string(), "ib       unavailable no device; plug one in");
        assert!(shown(BackendState::Planned).to_string().contains("planned     a later version"));
        let ready = BackendState::Ready { version: Some("1.2".into()), caps: towline::Caps::CROSS_PROCESS };
        assert_eq!(shown(ready).to_string(), "ib       ready       1.2; cross_process");
    }

    #[test]
    fn what_stands_behind_a_backend_is_below_it() {
        let state = BackendState::Ready { version: Some("1.2".into()), caps: towline::Caps::CROSS_PROCESS };
        let inventory = Inventory {
            library: Some("/lib/libx.so".into()),
            devices: vec!["tcp/lo".into(), "posix/memory".into()],
            memory: vec!["host".into()],
            notes: vec!["this libx was built without CUDA".into()],
        };
        let shown = Backend::new(BackendReport { name: "ucx", state }, inventory).to_string();
        let below: Vec<&str> = shown.lines().skip(1).map(str::trim).collect();
        let expected = [
            "library  /lib/libx.so",
            "devices  tcp/lo posix/memory",
            "memory   host",
            "this libx was built without CUDA",
        ];
        assert_eq!(below, expected, "{shown}");
    }

    #[test]
    fn the_document_has_the_keys_of_the_contract() {
        let backend = serde_json::to_value(Backend::new(
            BackendReport { name: "shm", state: BackendState::Planned },
            Inventory::default(),
        ))
        .unwrap();
        for key in
            ["name", "state", "reason", "remedy", "version", "caps", "library", "devices", "memory", "notes"]
        {
            assert!(backend.get(key).is_some(), "{key}");
        }
    }
}
