//! The capabilities of backends and links.

bitflags::bitflags! {
    /// Capabilities. A backend's capabilities are what is possible on this machine. A link's are guaranteed,
    /// and select the conformance cases that it must pass.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Caps: u32 {
        /// `get` and `put` on regions.
        const ONE_SIDED = 1;
        /// A late access to a revoked region is `Rejected`, and the link stays up. Without it, the link is
        /// lost.
        const SOFT_REVOKE = 1 << 1;
        /// The peer may be another process.
        const CROSS_PROCESS = 1 << 2;
        /// The peer may be on another host.
        const CROSS_HOST = 1 << 3;
        /// The receiver gets the sender's own buffers: nothing is copied unless the receiver names memory.
        const MOVES_OWNERSHIP = 1 << 4;
        /// Payload of 16 KiB and above lands in memory named by the receiver without a user-space copy.
        const NAMED_DESTINATION = 1 << 5;
        /// Frames of any place are sent directly. Without it they are staged through host memory.
        const ANY_PLACE = 1 << 6;
        /// Back-pressure: a receiver that does not receive bounds what the sender can have in flight.
        const FLOW_CONTROL = 1 << 7;
        /// Frames in an arena are lent in place to a trusted peer: nothing is copied, whatever their length.
        const LENDS = 1 << 8;
    }
}

impl Caps {
    /// Returns the names of the capabilities in lower case, for display and JSON.
    pub fn names(self) -> Vec<String> {
        self.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
    }
}
