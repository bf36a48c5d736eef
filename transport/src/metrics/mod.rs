//! What an endpoint counts, in the form that Prometheus reads.
//!
//! Connections count anyway, lock-free; everything else happens at a scrape. What a connection counted
//! outlives it in the endpoint's sums, so that these never go back.

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
pub(crate) use self::meters::{Counts, Meters};

/// What one connection counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages whose memory was reusable again.
    pub messages_sent: u64,
    /// Messages handed to the application.
    pub messages_received: u64,
    /// Payload bytes of sent messages.
    pub bytes_sent: u64,
    /// Payload bytes of received messages.
    pub bytes_received: u64,
    /// Payload bytes that this end copied: in user space, or by having the kernel read the peer's memory.
    pub bytes_copied: u64,
    /// What of it was copied into shared memory, where the peer reads it: its end copied none of that.
    pub bytes_bounced: u64,
    /// System calls that moved data, or tried to.
    pub system_calls: u64,
    /// Times a message had to wait for credit.
    pub credit_stalls: u64,
}
