//! The other end of a measurement: the requests that it takes, and its answers.
//!
//! A message whose header starts with `{` is a [`Request`] or its [`Answer`], as JSON. Every other message is
//! data with the header [`DataHeader`](crate::data::messages::DataHeader), and the last request decides how
//! it is handled. A new connection echoes.

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

/// A request to the serving side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Asks for the serving side's view of the connection.
    Hello,
    /// Send every message back.
    Echo {
        /// Read every byte before.
        read: bool,
    },
    /// Answer every message with the same one from own memory, then check it.
    Reply(MessageSpec),
    /// Check every message and drop it.
    Sink(MessageSpec),
    /// In addition to a [`Request::Sink`]: send messages of the same spec. The only answer is
    /// [`Answer::Sent`], after the last of them.
    Send {
        /// The number of the first message.
        first: u64,
        /// The duration, unless [`Request::Enough`] ends it; an hour at most.
        duration_ms: u64,
    },
    /// Stop sending. It has no answer of its own: [`Answer::Sent`] follows.
    Enough,
    /// Asks for the cost so far, and for the first wrong message.
    Usage,
    /// Expose memory that holds the pattern, to be read.
    Lend {
        /// The layout of the pattern.
        layout: Layout,
        /// The place of the memory.
        place: Place,
    },
    /// Expose memory to be written, a slot of `size_bytes` for each message of the window.
    Borrow {
        /// The layout of what will be written.
        layout: Layout,
        /// The place of the memory.
        place: Place,
    },
    /// Revoke the exposed memory, and check what was written.
    Withdraw {
        /// The last message written into each slot, if any was.
        last: Vec<Option<u64>>,
        /// Which bytes to check.
        check: Check,
    },
    /// Serve one bare socket.
    Socket {
        /// What both ends do.
        course: SocketTest,
    },
}

/// An answer of the serving side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The serving side's view.
    Hello(PeerView),
    /// Done.
    Ready,
    /// All messages were sent and confirmed.
    Sent {
        /// The number of messages.
        messages: u64,
    },
    /// The cost.
    Usage(Usage),
    /// Memory is exposed.
    Region {
        /// The encoded `RemoteRegion`.
        remote: Vec<u8>,
    },
    /// A bare socket is listening.
    Socket {
        /// Its port.
        port: u16,
        /// The key that the client sends first.
        key: [u8; 16],
        /// The certificate for TLS, as PEM.
        certificate: Option<String>,
    },
    /// The request failed, or a message was wrong.
    Problem {
        /// The reason.
        why: String,
    },
}

/// The serving side's view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerView {
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) process: u32,
    /// The path that it reports.
    pub(crate) chosen: String,
    pub(crate) candidates: Vec<Candidate>,
    /// Its notes on the path.
    pub(crate) notes: Vec<String>,
}

/// One path as one end sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) transport: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) remedy: Option<String>,
    /// That end's prediction, by a probe of its own machine.
    pub(crate) predicted: Option<Speed>,
    /// What the prediction is derived from.
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

/// The cost of one end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) messages: u64,
    pub(crate) bytes_copied: u64,
    /// The first wrong message.
    pub(crate) problem: Option<String>,
}

/// Returns true if a header holds a request or an answer.
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
