//! Credit: how much a sender may have in flight before it is acknowledged.

/// A credit window. A message uses credit when it is announced and returns it when it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) messages: u64,
    /// Headers, frame tables, and payload that travels in records.
    pub(crate) bytes: u64,
}

/// The window that every end of this version grants.
pub(crate) const WINDOW: Window = Window { messages: 1024, bytes: 1 << 20 };

/// Pre-granted credit: how much payload of large messages (16 KiB and above) may stream into pool memory
/// while the application waits in `recv`, in bytes.
pub(crate) const PREGRANT: u64 = 4 << 20;
