//! The other half of a measurement: what is asked of it, and how it answers.
//!
//! A message whose header starts with `{` is a [`Request`] or its [`Answer`], as JSON. Every other message is data, and
//! its header is [`DataHeader`]; what happens to it follows from the last request. A fresh connection echoes.

mod client;
mod receiver;
mod receiving;
mod sending;
mod server;
mod serving;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use client::Peer;
pub(crate) use receiver::MessageReceiver;
pub(crate) use receiving::Receiving;
pub(crate) use server::serve;
pub(crate) use serving::Serving;

use crate::ceiling::socket::SocketTest;
use crate::data::payload::{Check, Layout, MessageSpec};
use crate::data::place::Place;

/// What the serving side is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Who are you, and how do you see this connection?
    Hello,
    /// Send every message back.
    Echo {
        /// Read it before.
        read: bool,
    },
    /// Answer every message with the same one from memory of your own, and look at it then.
    Reply(MessageSpec),
    /// Check every message and let it go.
    Sink(MessageSpec),
    /// Beside a [`Request::Sink`]: send messages of its kind for a while. The only answer is [`Answer::Sent`], behind the
    /// last of them.
    Send {
        /// The number of the first.
        first: u64,
        /// How long, unless a [`Request::Enough`] comes before; nobody is sent to for more than an hour.
        duration_ms: u64,
    },
    /// Send no more. It has no answer of its own: [`Answer::Sent`] follows, as it would have later.
    Enough,
    /// What has it cost you so far, and was anything wrong?
    Usage,
    /// Expose memory that holds the pattern, to be read.
    Lend {
        /// What it must hold.
        layout: Layout,
        /// Where it lies.
        place: Place,
    },
    /// Expose memory to be written, a slot of `size_bytes` for each message of the window.
    Borrow {
        /// What will be written.
        layout: Layout,
        /// Where it lies.
        place: Place,
    },
    /// Take the exposed memory back, and check what was written.
    Withdraw {
        /// The last message written into each slot, if any was.
        last: Vec<Option<u64>>,
        /// How closely to look.
        check: Check,
    },
    /// Be the far half of a bare socket.
    Socket {
        /// What both halves do.
        course: SocketTest,
    },
}

/// What the serving side says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Who it is.
    Hello(PeerView),
    /// Done.
    Ready,
    /// All was sent, and confirmed by the one who asked.
    Sent {
        /// How many messages.
        messages: u64,
    },
    /// What it has cost.
    Usage(Usage),
    /// Memory is exposed.
    Region {
        /// The capability to reach it.
        remote: Vec<u8>,
    },
    /// The far half of a bare socket waits.
    Socket {
        /// Where.
        port: u16,
        /// What to present there.
        key: [u8; 16],
        /// What it shows over TLS, as PEM.
        certificate: Option<String>,
    },
    /// It cannot, or something was wrong.
    Problem {
        /// What.
        why: String,
    },
}

/// The serving side's view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerView {
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) process: u32,
    /// What it says carries the bytes.
    pub(crate) chosen: String,
    pub(crate) candidates: Vec<Candidate>,
    /// What it says of the ways that the link may take or not.
    pub(crate) notes: Vec<String>,
}

/// One path as one end sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) transport: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) remedy: Option<String>,
    /// What that end expects of it, from a probe of its own machine.
    pub(crate) predicted: Option<Speed>,
    /// What the expectation is derived from.
    pub(crate) basis: Option<String>,
}

/// A bandwidth at 1 MiB, and half a round trip of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Speed {
    pub(crate) gb_per_s: f64,
    pub(crate) p50_us: f64,
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} GB/s at 1 MiB, {:.2} µs at 8 B", self.gb_per_s, self.p50_us)
    }
}

/// What one end of a connection has spent and counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) messages: u64,
    pub(crate) bytes_copied: u64,
    /// The first message that was not what it should have been.
    pub(crate) problem: Option<String>,
}

/// Whether a header holds a request or an answer.
pub(crate) fn is_conversation(header: &[u8]) -> bool {
    header.first() == Some(&b'{')
}

pub(crate) fn encode(value: &impl Serialize) -> Result<Bytes, String> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::messages::DataHeader;
    use crate::data::place::Places;

    #[test]
    fn a_stamp_is_told_from_a_conversation() {
        for number in [0, 1, u64::from(b'{'), u64::MAX] {
            let header = DataHeader(number).to_header();
            assert_eq!(DataHeader::from_header(&header), Some(DataHeader(number)));
            assert!(!is_conversation(&header));
        }
        let request = encode(&Request::Echo { read: false }).unwrap();
        assert!(is_conversation(&request) && DataHeader::from_header(&request).is_none());
        for header in [&b""[..], b"#", b"#1234567", b"#123456789"] {
            assert_eq!(DataHeader::from_header(header), None);
        }
    }

    #[test]
    fn requests_and_answers_survive_the_trip() {
        let layout = Layout::new(8, 2);
        let places = Places { from: Place::Host, to: Place::Arena };
        let spec = MessageSpec { layout, frames: 3, check: Check::Whole, places };
        let course = SocketTest { layout, ping_pong: true, spin: false, tls: true, duration_ms: 5 };
        for request in [
            Request::Hello,
            Request::Reply(spec),
            Request::Sink(spec),
            Request::Borrow { layout, place: Place::Host },
            Request::Send { first: 7, duration_ms: 5 },
            Request::Enough,
            Request::Withdraw { last: vec![Some(2), None], check: Check::Edges },
            Request::Socket { course },
        ] {
            let header = encode(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&header).unwrap(), request);
        }
        let answer = Answer::Usage(Usage { cpu_s: 0.5, messages: 3, bytes_copied: 24, problem: None });
        assert_eq!(serde_json::from_slice::<Answer>(&encode(&answer).unwrap()).unwrap(), answer);
    }
}
