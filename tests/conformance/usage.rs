//! What this process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// Resident memory now, in bytes.
pub(crate) fn resident() -> u64 {
    status("VmRSS:")
}

/// The most resident memory since the last [`reset_peak`], in bytes.
pub(crate) fn peak() -> u64 {
    status("VmHWM:")
}

pub(crate) fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Writable private memory, which `RLIMIT_DATA` limits, in bytes.
pub(crate) fn data() -> u64 {
    status("VmData:")
}

/// Open descriptors.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Processor time of all threads that live.
pub(crate) fn processor_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}
