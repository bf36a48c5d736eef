//! How much a sender may have in flight before the receiver has said its word on it.

/// A window of credit: what a message costs is taken when it leaves and comes back when it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) messages: u64,
    /// Headers, frame tables and the payload that travels with them.
    pub(crate) bytes: u64,
}

/// What every end of this version grants.
pub(crate) const WINDOW: Window = Window { messages: 1024, bytes: 1 << 20 };

/// Payload of 16 KiB and above that may stream ahead into pool memory while the application waits in `recv`, in bytes.
pub(crate) const PREGRANT: u64 = 4 << 20;
