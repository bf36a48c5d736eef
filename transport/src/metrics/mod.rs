//! The metrics of an endpoint, for Prometheus.
//!
//! Connections count without locks. Everything else happens at a scrape. What a connection counted stays in
//! the endpoint's sums after its end, so the sums never decrease.

#[cfg(feature = "metrics")]
mod collector;
#[cfg_attr(not(any(feature = "metrics", test)), expect(dead_code, reason = "only a scrape reads everything"))]
mod histogram;
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "only a scrape reads everything"))]
mod meters;
#[cfg(feature = "metrics")]
mod page;

#[cfg(feature = "metrics")]
pub use self::collector::Metrics;
pub(crate) use self::meters::{ConnectionCounts, Meters};

/// The counters of one connection since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages sent whose memory can be reused.
    pub messages_sent: u64,
    /// Messages returned to the application.
    pub messages_received: u64,
    /// Payload bytes of sent messages.
    pub bytes_sent: u64,
    /// Payload bytes of received messages.
    pub bytes_received: u64,
    /// Payload bytes that this end copied: in user space, or by reading the peer's memory through the kernel.
    pub bytes_copied: u64,
    /// The part of `bytes_copied` that was copied into shared memory for the peer, which then copies none of
    /// it.
    pub bytes_bounced: u64,
    /// System calls that moved data, or tried to.
    pub system_calls: u64,
    /// The number of times that a message waited for credit.
    pub credit_stalls: u64,
}
