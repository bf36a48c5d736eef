//! Resource usage of this process, as the kernel counts it.

#![expect(unsafe_code, reason = "the allocator is C")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

/// Returns the resident memory, in bytes.
pub fn resident() -> u64 {
    status("VmRSS:")
}

/// Returns the resident memory of no file, in bytes: heap and stacks, without the kernel's socket buffers.
pub fn anonymous() -> u64 {
    // The sums in `status` lag behind, because each thread counts locally first.
    field("/proc/self/smaps_rollup", "Anonymous:")
}

/// Returns the maximum of the resident memory since the last [`reset_peak`], in bytes.
pub fn peak() -> u64 {
    status("VmHWM:")
}

/// Resets [`peak`].
pub fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Returns the writable private memory, which `RLIMIT_DATA` limits, in bytes.
pub fn data() -> u64 {
    status("VmData:")
}

/// Returns the number of open descriptors.
pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the number of threads.
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn status(key: &str) -> u64 {
    field("/proc/self/status", key)
}

/// Returns a field in bytes from a file that has kilobytes.
fn field(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Returns the processor time of all living threads.
pub fn processor_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}

/// Makes the allocator return free memory to the system, so that resident memory is memory in use.
pub fn trim() {
    // SAFETY: L1: it may be called at any time.
    unsafe { libc::malloc_trim(0) };
}
