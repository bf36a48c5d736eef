//! The patterns: what is done with the messages, and which options each pattern takes.

use std::str::FromStr;

/// What is done with the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pattern {
    /// One round trip after another.
    Latency,
    /// A window of messages in flight, one way.
    Bandwidth,
    /// A window of messages in flight in each direction.
    Bidirectional,
    /// As many messages a second as possible.
    Rate,
    /// One-sided reads of the peer's memory.
    Get,
    /// One-sided writes into the peer's memory.
    Put,
    /// New connections, each with one confirmed message.
    Connect,
    /// Several workers send to one receiver at once.
    Incast,
    /// Several workers each send to all others at once.
    Alltoall,
    /// Empty tasks of the task runtime.
    Tasks,
    /// Parts of blocks between the task runtime's workers.
    Shuffle,
}

impl Pattern {
    pub(crate) const OFFERED: [Self; 11] = [
        Self::Latency,
        Self::Bandwidth,
        Self::Bidirectional,
        Self::Rate,
        Self::Get,
        Self::Put,
        Self::Connect,
        Self::Incast,
        Self::Alltoall,
        Self::Tasks,
        Self::Shuffle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
            Self::Bidirectional => "bidirectional",
            Self::Rate => "rate",
            Self::Get => "get",
            Self::Put => "put",
            Self::Connect => "connect",
            Self::Incast => "incast",
            Self::Alltoall => "alltoall",
            Self::Tasks => "tasks",
            Self::Shuffle => "shuffle",
        }
    }

    /// Returns the default sizes.
    pub(crate) fn default_sizes(self) -> &'static [usize] {
        match self {
            Self::Latency | Self::Rate | Self::Connect => &[8],
            Self::Bandwidth | Self::Bidirectional | Self::Get | Self::Put => &[64 << 10, 1 << 20, 64 << 20],
            Self::Incast | Self::Alltoall => &[64 << 10, 1 << 20],
            Self::Tasks => &[0],
            Self::Shuffle => &[2 << 30],
        }
    }

    /// Returns the default window.
    pub(crate) fn default_window(self) -> usize {
        match self {
            Self::Latency | Self::Connect | Self::Tasks => 1,
            Self::Bandwidth | Self::Bidirectional | Self::Get | Self::Put => 16,
            Self::Incast | Self::Alltoall | Self::Shuffle => 16,
            Self::Rate => 256,
        }
    }

    /// Returns true if `--window` applies.
    pub(crate) fn takes_window(self) -> bool {
        !matches!(self, Self::Latency | Self::Connect)
    }

    /// Returns true if the number of workers is that of `--workers`.
    pub(crate) fn takes_workers(self) -> bool {
        matches!(self, Self::Incast | Self::Alltoall)
    }

    /// Returns how many workers move data, receivers included, if `asked` of them send from here. `elsewhere`
    /// is true if one more is already running.
    pub(crate) fn workers(self, asked: usize, elsewhere: bool) -> usize {
        match self {
            Self::Incast => asked + 1,
            Self::Alltoall => asked + usize::from(elsewhere),
            _ => 2,
        }
    }

    /// Returns how many windows are in flight at once among `workers`.
    pub(crate) fn flows(self, workers: usize) -> usize {
        match self {
            Self::Incast => workers - 1,
            Self::Alltoall => workers * (workers - 1),
            _ => 1,
        }
    }

    /// Returns true if the task runtime performs it and sends its own messages.
    pub(crate) fn is_of_tasks(self) -> bool {
        matches!(self, Self::Tasks | Self::Shuffle)
    }

    /// Returns true if `--rate` applies: messages can be sent by a schedule.
    pub(crate) fn takes_rate(self) -> bool {
        matches!(self, Self::Latency | Self::Bandwidth | Self::Rate)
    }

    /// Returns true if `--read` applies: a receiver can read the messages.
    pub(crate) fn takes_read(self) -> bool {
        !matches!(self, Self::Put | Self::Connect | Self::Tasks | Self::Shuffle)
    }

    /// Returns true if places apply: both ends agree on them before the first message.
    pub(crate) fn takes_places(self) -> bool {
        !matches!(self, Self::Connect | Self::Tasks | Self::Shuffle)
    }

    /// Returns true if it sends messages, whose memory may be handed over.
    pub(crate) fn sends_messages(self) -> bool {
        use Pattern::{Alltoall, Bandwidth, Bidirectional, Incast, Latency, Rate};
        matches!(self, Latency | Bandwidth | Bidirectional | Rate | Incast | Alltoall)
    }

    pub(crate) fn takes_frames(self) -> bool {
        !matches!(self, Self::Get | Self::Put | Self::Tasks | Self::Shuffle)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let offered = || Self::OFFERED.map(Self::name).join(", ");
        Self::OFFERED
            .into_iter()
            .find(|pattern| pattern.name() == text)
            .ok_or_else(|| format!("`{text}` is not a pattern: choose from {}", offered()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_known_by_its_name() {
        for pattern in Pattern::OFFERED {
            assert_eq!(pattern.name().parse(), Ok(pattern));
        }
        assert!("latencies".parse::<Pattern>().unwrap_err().contains("is not a pattern"));
    }
}
