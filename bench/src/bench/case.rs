//! One case: what is measured, with every choice made.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use towline::{Address, Scheme};

use crate::payload::{Cargo, Check, Layout};
use crate::place::Places;
use crate::units::Size;

/// The transport that the library chooses.
const AUTO: &str = "auto";

/// The option that has data go over TLS.
const TLS: &str = "tls";

/// A transport as the command line names it, with the options that ride on the address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transport {
    pub(crate) name: &'static str,
    pub(crate) options: BTreeMap<String, String>,
}

impl Transport {
    /// Every name there is: `auto`, which leaves the choice to the library, and each backend that an address can ask for.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names = vec![AUTO];
        for backend in Scheme::ALL.into_iter().filter_map(Scheme::backend) {
            if !names.contains(&backend) {
                names.push(backend);
            }
        }
        names
    }

    /// What may carry it: for `auto` any backend.
    pub(crate) fn paths(&self) -> Vec<&'static str> {
        if self.is_auto() { Self::names().split_off(1) } else { vec![self.name] }
    }

    /// Whether both ends choose.
    pub(crate) fn is_auto(&self) -> bool {
        self.name == AUTO
    }

    /// Whatever the library chooses.
    pub(crate) fn auto() -> Self {
        Self::plain(AUTO)
    }

    pub(crate) fn plain(name: &'static str) -> Self {
        Self { name, options: BTreeMap::new() }
    }

    /// What carries the bytes to `address`, with its options.
    pub(crate) fn to(address: &Address) -> Self {
        let options = address.options().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let tls = address.scheme().is_encrypted().then(|| (TLS.to_owned(), "on".to_owned()));
        let name = address.scheme().backend().unwrap_or(AUTO);
        Self { name, options: options.chain(tls).collect() }
    }

    /// Whether a connection of it can have several streams.
    pub(crate) fn takes_streams(&self) -> bool {
        matches!(self.name, AUTO | "tcp")
    }

    /// Streams of a connection: an option, which the library has taken by then.
    pub(crate) fn streams(&self) -> u32 {
        self.options.get("streams").and_then(|count| count.parse().ok()).unwrap_or(1)
    }

    /// Where a worker on this host listens, with the options: any free place.
    pub(crate) fn local_address(&self) -> String {
        let place = if self.name == "mem" { "" } else { "127.0.0.1:0" };
        format!("{}://{place}{}", self.scheme(), self.query())
    }

    /// Whether it goes over TLS, which addresses say in their scheme.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.options.contains_key(TLS)
    }

    /// The scheme of its addresses.
    pub(crate) fn scheme(&self) -> &'static str {
        match (self.name, self.is_encrypted()) {
            (AUTO, false) => "towline",
            (AUTO, true) => "towlines",
            ("tcp", true) => "tls",
            (name, _) => name,
        }
    }

    /// All options as they are asked for, with the question mark, or nothing.
    pub(crate) fn options(&self) -> String {
        joined(self.options.iter())
    }

    /// The options as they stand behind an address, whose scheme says the rest.
    pub(crate) fn query(&self) -> String {
        joined(self.options.iter().filter(|(key, _)| *key != TLS))
    }
}

fn joined<'a>(options: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let pairs: Vec<String> = options.map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, query) = text.split_once('?').unwrap_or((text, ""));
        let names = Self::names();
        let known = names.iter().find(|known| **known == name);
        let name = *known.ok_or_else(|| {
            format!(
                "`{name}` is no transport: choose from {}; a comma within an option is %2C",
                names.join(", ")
            )
        })?;
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, value)| !key.is_empty() && !value.is_empty())
                .ok_or_else(|| format!("`{pair}` in `{text}` is not `key=value`"))?;
            if options.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("`{text}` gives `{key}` twice"));
            }
        }
        match options.get(TLS).map(String::as_str) {
            None => {}
            Some("on") if matches!(name, AUTO | "tcp") => {}
            Some("on") => return Err(format!("`{name}` has no TLS: tcp and auto have")),
            Some(other) => {
                return Err(format!("`{TLS}={other}` in `{text}`: write {TLS}=on, or leave it out"));
            }
        }
        Ok(Self { name, options })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.options())
    }
}

/// What is done with the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pattern {
    /// One message there and back, in turn.
    Latency,
    /// A window of messages in flight, one way.
    Bandwidth,
    /// The same both ways at once.
    Bidirectional,
    /// As many messages a second as go through.
    Rate,
    /// One-sided reads of the peer's memory.
    Get,
    /// One-sided writes into the peer's memory.
    Put,
    /// New connections, each with one confirmed message.
    Connect,
    /// Several workers send to one at once.
    Incast,
    /// Several workers, each of which sends to all the others at once.
    Alltoall,
    /// Empty tasks of the task runtime.
    Tasks,
    /// Parts of blocks from the task runtime's workers to each other.
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

    /// The size measured when none is asked for.
    pub(crate) fn default_sizes(self) -> &'static [usize] {
        match self {
            Self::Latency | Self::Rate | Self::Connect => &[8],
            Self::Bandwidth | Self::Bidirectional | Self::Get | Self::Put => &[64 << 10, 1 << 20, 64 << 20],
            Self::Incast | Self::Alltoall => &[64 << 10, 1 << 20],
            Self::Tasks => &[0],
            Self::Shuffle => &[2 << 30],
        }
    }

    /// How many are in flight when nothing is asked for.
    pub(crate) fn default_window(self) -> usize {
        match self {
            Self::Latency | Self::Connect | Self::Tasks => 1,
            Self::Bandwidth | Self::Bidirectional | Self::Get | Self::Put => 16,
            Self::Incast | Self::Alltoall | Self::Shuffle => 16,
            Self::Rate => 256,
        }
    }

    /// Whether `--window` and `--frames` mean anything to it.
    pub(crate) fn takes_window(self) -> bool {
        !matches!(self, Self::Latency | Self::Connect)
    }

    /// Whether it has as many workers as `--workers` says.
    pub(crate) fn takes_workers(self) -> bool {
        matches!(self, Self::Incast | Self::Alltoall)
    }

    /// How many move data, receivers too, where `--workers` says that `asked` send from here; `elsewhere` is one that somebody
    /// else started.
    pub(crate) fn workers(self, asked: usize, elsewhere: bool) -> usize {
        match self {
            Self::Incast => asked + 1,
            Self::Alltoall => asked + usize::from(elsewhere),
            _ => 2,
        }
    }

    /// How many windows are in flight at once among `workers`.
    pub(crate) fn flows(self, workers: usize) -> usize {
        match self {
            Self::Incast => workers - 1,
            Self::Alltoall => workers * (workers - 1),
            _ => 1,
        }
    }

    /// Whether the task runtime does it, which sends its own messages.
    pub(crate) fn is_of_tasks(self) -> bool {
        matches!(self, Self::Tasks | Self::Shuffle)
    }

    /// Whether its messages can leave by a schedule, as `--rate` asks.
    pub(crate) fn takes_rate(self) -> bool {
        matches!(self, Self::Latency | Self::Bandwidth | Self::Rate)
    }

    /// Whether it has a receiver that can read what comes, as `--read` asks.
    pub(crate) fn takes_read(self) -> bool {
        !matches!(self, Self::Put | Self::Connect | Self::Tasks | Self::Shuffle)
    }

    /// Whether both ends know where its bytes shall live: a fresh connection was told nothing.
    pub(crate) fn takes_places(self) -> bool {
        !matches!(self, Self::Connect | Self::Tasks | Self::Shuffle)
    }

    /// Whether it sends messages, whose memory may change hands.
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
            .ok_or_else(|| format!("`{text}` is no pattern: choose from {}", offered()))
    }
}

/// How both ends wait for the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Wait {
    /// Poll and never sleep: wants a core for each end.
    Spin,
    /// Spin briefly, then sleep; sleep at once where others want the core.
    #[default]
    Adaptive,
    /// Sleep at once.
    Sleep,
}

impl Wait {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Sleep => "sleep",
        }
    }
}

impl From<Wait> for towline::Wait {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Spin => Self::Spin,
            Wait::Adaptive => Self::Adaptive,
            Wait::Sleep => Self::Sleep,
        }
    }
}

/// One thing to measure.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) pattern: Pattern,
    pub(crate) size: Size,
    pub(crate) wait: Wait,
    pub(crate) frames: usize,
    pub(crate) window: usize,
    /// What the messages leave from, in turn, if that is not a window of it.
    pub(crate) buffers: Option<usize>,
    /// All that move data.
    pub(crate) workers: usize,
    /// Messages a second, in an open loop.
    pub(crate) rate: Option<u32>,
    /// What the receiver does with the bytes.
    pub(crate) check: Check,
    pub(crate) places: Places,
}

impl Case {
    pub(crate) fn layout(&self) -> Layout {
        let layout = Layout::new(self.size.0, self.window);
        Layout { buffers: self.buffers.unwrap_or(layout.buffers), ..layout }
    }

    pub(crate) fn cargo(&self) -> Cargo {
        Cargo { layout: self.layout(), frames: self.frames, check: self.check, places: self.places }
    }
}

impl fmt::Display for Case {
    /// `tcp bandwidth 64K (adaptive)`, `shm latency 64K (spin) in arena`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, pattern, size, wait, places, .. } = self;
        write!(f, "{transport} {} {size} ({}){places}", pattern.name(), wait.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_takes_options_as_a_query() {
        let tcp: Transport = "tcp?streams=4&integrity=crc32c".parse().unwrap();
        assert_eq!((tcp.name, tcp.options["streams"].as_str()), ("tcp", "4"));
        assert_eq!(tcp.to_string(), "tcp?integrity=crc32c&streams=4");
        assert_eq!("auto".parse::<Transport>().unwrap().scheme(), "towline");
        let tls: Transport = "tcp?tls=on&integrity=crc32c".parse().unwrap();
        assert_eq!((tls.scheme(), tls.query().as_str()), ("tls", "?integrity=crc32c"));
        assert_eq!(tls.to_string(), "tcp?integrity=crc32c&tls=on");
        let towlines: Address = "towlines://host:1".parse().unwrap();
        assert_eq!(Transport::to(&towlines), "auto?tls=on".parse().unwrap());
        for (text, says) in [
            ("udp", "choose from auto, tcp, shm, ucx, ib, mem"),
            ("", "is no transport"),
            ("TCP", "is no transport"),
            ("tcp?streams", "not `key=value`"),
            ("tcp?=4", "not `key=value`"),
            ("tcp?a=1&a=2", "`a` twice"),
            ("mem?tls=on", "has no TLS"),
            ("tcp?tls=yes", "write tls=on"),
        ] {
            let error = text.parse::<Transport>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_pattern_is_known_by_its_name() {
        for pattern in Pattern::OFFERED {
            assert_eq!(pattern.name().parse(), Ok(pattern));
        }
        assert!("latencies".parse::<Pattern>().unwrap_err().contains("is no pattern"));
    }
}
