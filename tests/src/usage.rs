//! What this process uses, as the kernel counts it.

#![expect(unsafe_code, reason = "the allocator's own words are C")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

/// Resident memory now, in bytes.
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// Resident memory now that belongs to no file, in bytes: heap and stacks, and nothing that the kernel keeps for sockets.
pub fn anonymous() -> u64 {
    // The sums of `status` are late by what each thread keeps to itself.
    field("/proc/self/smaps_rollup", "Anonymous:")
}

/// The most resident memory since the last [`reset_peak`], in bytes.
pub fn peak() -> u64 {
    status("VmHWM:")
}

/// Forgets what [`peak`] was.
pub fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Writable private memory, which `RLIMIT_DATA` limits, in bytes.
pub fn data() -> u64 {
    status("VmData:")
}

/// Open descriptors.
pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Threads that live.
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn status(key: &str) -> u64 {
    field("/proc/self/status", key)
}

/// A line of a file that tells kilobytes, in bytes.
fn field(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Processor time of all threads that live.
pub fn processor_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}

/// Has the allocator give back what it keeps for later, so that what is resident is in use.
pub fn trim() {
    // SAFETY: L1: it may be called at any time.
    unsafe { libc::malloc_trim(0) };
}
