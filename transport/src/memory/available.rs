//! Reports how much memory this process may still take. Three bounds count: the machine's available memory,
//! the limit of each control group above the process, and `RLIMIT_AS`.
//!
//! No allocation fails at the first two: the kernel gives pages until there are none, and then kills a
//! process. Large allocations therefore check the bounds here first.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, ErrorKind, Result};

/// Memory that this process can still take, and its tightest bound. The bounds are the machine's available
/// memory, the memory limits of the process's control groups (version 1 or 2, at every ancestor), and
/// `RLIMIT_AS`.
///
/// ```
/// if let Some(memory) = towline::AvailableMemory::now() {
///     assert!(memory.bytes <= memory.limit_bytes);
///     println!("{memory}"); // 154140672 of 167772160 bytes, by the control group /jobs/7
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AvailableMemory {
    /// Bytes that can be taken now. Caches that the kernel can reclaim count as available; swap does not.
    pub bytes: u64,
    /// Bytes there would be if nothing was in use: the least of all limits. It may be the limit of another
    /// bound.
    pub limit_bytes: u64,
    /// The bound with the fewest bytes left.
    pub bound: MemoryBound,
}

/// What bounds the memory that a process can take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryBound {
    /// The machine's memory.
    Machine,
    /// The memory limit of the control group at this path.
    ControlGroup(String),
    /// The limit on the process's address space, `RLIMIT_AS`.
    AddressSpace,
}

impl AvailableMemory {
    /// Reads the bounds now, from small files below `/proc` and `/sys/fs/cgroup`, which takes about 0.1 ms.
    /// `None` if none can be read.
    pub fn now() -> Option<Self> {
        static MOUNTS: OnceLock<Vec<Mount>> = OnceLock::new();
        let root = Path::new("/");
        let mounts = MOUNTS.get_or_init(|| mounts(root));
        let address_space = || {
            let limit = getrlimit(Resource::As).current?;
            let pages: u64 = text(root, "proc/self/statm")?.split(' ').next()?.parse().ok()?;
            let used = pages.saturating_mul(rustix::param::page_size() as u64);
            Some(MeasuredBound { limit, left: limit.saturating_sub(used), bound: MemoryBound::AddressSpace })
        };
        tightest(bounds_below(root, mounts).into_iter().chain(address_space()))
    }

    /// Returns `bytes`, or the limit divided by `parts` if that is less: a default for one of several users
    /// in a process.
    pub fn bounded(bytes: u64, parts: u64) -> u64 {
        Self::now().map_or(bytes, |memory| bytes.min(memory.limit_bytes / parts.max(1)))
    }
}

/// Returns `TooLarge`, with the memory available, for a length at which the kernel would kill a process.
pub(super) fn check(len: usize) -> Result<()> {
    match AvailableMemory::now() {
        Some(memory) if len as u64 > memory.bytes => {
            let detail = format!("{len} bytes of memory, of which there are {memory}");
            Err(Error::new(ErrorKind::TooLarge, detail))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for AvailableMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes, by {}", self.bytes, self.limit_bytes, self.bound)
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine's memory"),
            Self::ControlGroup(path) => write!(f, "the control group {path}"),
            Self::AddressSpace => f.write_str("the limit on the address space (RLIMIT_AS)"),
        }
    }
}

/// Reads the bounds from files below another root than `/`.
#[cfg(test)]
pub(super) fn read_below(root: &Path) -> Option<AvailableMemory> {
    tightest(bounds_below(root, &mounts(root)).into_iter())
}

/// One bound, in bytes.
struct MeasuredBound {
    limit: u64,
    left: u64,
    bound: MemoryBound,
}

fn tightest(found: impl Iterator<Item = MeasuredBound>) -> Option<AvailableMemory> {
    let found: Vec<MeasuredBound> = found.collect();
    let limit_bytes = found.iter().map(|found| found.limit).min()?;
    let tightest = found.into_iter().min_by_key(|found| found.left)?;
    Some(AvailableMemory { bytes: tightest.left.min(limit_bytes), limit_bytes, bound: tightest.bound })
}

/// Reads the bounds below `root`: of the machine, and of every control group from the process's own upwards.
fn bounds_below(root: &Path, mounts: &[Mount]) -> Vec<MeasuredBound> {
    let mut found: Vec<MeasuredBound> = machine_bound(root).into_iter().collect();
    let Some(groups) = text(root, "proc/self/cgroup") else { return found };
    for mount in mounts {
        let Some(path) = groups.lines().find_map(|line| mount.version.group_in(line)) else { continue };
        found.extend(mount.groups(path).filter_map(|(path, folder)| {
            mount.version.read(&folder).map(|(limit, left)| MeasuredBound {
                limit,
                left,
                bound: MemoryBound::ControlGroup(path),
            })
        }));
    }
    found
}

fn machine_bound(root: &Path) -> Option<MeasuredBound> {
    let report = text(root, "proc/meminfo")?;
    let bytes = |key: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let left = bytes("MemAvailable")?;
    Some(MeasuredBound { limit: bytes("MemTotal").unwrap_or(left), left, bound: MemoryBound::Machine })
}

/// The mount of a control group hierarchy that has the memory controller.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group at the mount point. In a container without a cgroup namespace, it is not the root group.
    group: String,
    at: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Returns the mounts of such hierarchies below `root`.
fn mounts(root: &Path) -> Vec<Mount> {
    let report = text(root, "proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        // 36 25 0:32 /its/group /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1).unwrap_or_default()) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::V1,
            _ => return None,
        };
        let mut place = place.split(' ').skip(3);
        let (group, at) = (place.next()?.to_owned(), place.next()?);
        Some(Mount { version, group, at: root.join(at.trim_start_matches('/')) })
    };
    report.lines().filter_map(mount).collect()
}

impl Mount {
    /// Returns the group at `path` and all its ancestors that are visible here, each with its folder.
    fn groups(&self, path: &str) -> impl Iterator<Item = (String, PathBuf)> {
        let relative = path.strip_prefix(self.group.trim_end_matches('/')).unwrap_or_default();
        // A path that leaves the mount, as seen from outside a namespace, has no folder here.
        let relative =
            if relative.split('/').any(|name| name == "..") { "" } else { relative.trim_matches('/') };
        let names: Vec<&str> = relative.split('/').filter(|name| !name.is_empty()).collect();
        let of = |count: usize| {
            let names = names[..count].join("/");
            let path = format!("{}/{names}", self.group.trim_end_matches('/'));
            let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
            (path, self.at.join(names))
        };
        (0..=names.len()).map(of).collect::<Vec<_>>().into_iter()
    }
}

impl Version {
    /// Returns the process's group, if this line of `/proc/self/cgroup` names it.
    fn group_in(self, line: &str) -> Option<&str> {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let is_it = match self {
            Self::V1 => controllers.split(',').any(|controller| controller == "memory"),
            Self::V2 => controllers.is_empty(),
        };
        is_it.then_some(path)
    }

    /// Returns the limit of the group in this folder and the bytes left of it. `None` if it has no limit.
    fn read(self, folder: &Path) -> Option<(u64, u64)> {
        // The value `max` is no number, and no limit.
        let number = |name: &str| text(folder, name)?.trim().parse::<u64>().ok();
        let (limits, usage, cached): (&[&str], _, _) = match self {
            Self::V1 => (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                ["total_inactive_file", "total_active_file"],
            ),
            // Above `high`, the kernel does not kill the group but throttles it almost to a halt.
            Self::V2 => (&["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"]),
        };
        let limit = limits.iter().filter_map(|name| number(name)).min()?;
        let usage = number(usage)?;
        let stat = text(folder, "memory.stat").unwrap_or_default();
        let of = |key: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or_default()
        };
        let cached = cached.iter().fold(0, |sum: u64, key| sum.saturating_add(of(key)));
        Some((limit, limit.saturating_sub(usage.saturating_sub(cached))))
    }
}

fn text(folder: &Path, name: &str) -> Option<String> {
    fs::read_to_string(folder.join(name)).ok()
}
