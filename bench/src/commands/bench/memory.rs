//! The memory that is available for measuring.

use std::fmt;

use towline::AvailableMemory;

/// The memory of a process.
pub(super) const PROCESS_BYTES: usize = 4 << 20;

/// The available memory, and what limits it.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) bytes: u64,
    bound: String,
}

impl Memory {
    pub(super) fn now() -> Self {
        AvailableMemory::now().map_or(Self { bytes: u64::MAX, bound: String::new() }, |memory| Self {
            bytes: memory.bytes,
            bound: memory.bound.to_string(),
        })
    }

    /// Returns true if there is room for `bytes`, and a fifth to spare.
    pub(super) fn fits(&self, bytes: Option<usize>) -> bool {
        bytes.is_some_and(|bytes| bytes as u64 <= self.bytes / 5 * 4)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB of memory are available, by {}", self.bytes >> 20, self.bound)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::commands::bench) fn memory(bytes: u64) -> Memory {
        Memory { bytes, bound: "a test".into() }
    }
}
