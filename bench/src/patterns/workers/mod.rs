//! Workers that send at the same time, controlled by a process that moves no data: a process each, or for
//! `mem` a thread of this process each.
//!
//! A [`WorkerCommand`] reaches a process as a line of JSON on its standard input, and a [`WorkerReply`]
//! returns as a line on its standard output. The control traffic is thus no part of the measurement, and no
//! other process can send commands.

mod confirmations;
mod coordinator;
mod reverse;
mod work;
mod worker;

use serde::{Deserialize, Serialize};

pub(crate) use self::coordinator::Workers;
pub(crate) use self::work::{Options, run};
use crate::ceiling::socket::SocketTest;
use crate::data::payload::MessageSpec;
use crate::results::histogram::HistogramCounts;

/// A command to a worker. Each command has one reply, unless the worker fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum WorkerCommand {
    /// Listen at this address, and take the messages of other workers.
    Listen { address: String },
    /// Connect to each address in turn, and announce the messages to come. The peer at `mutual` is the last,
    /// and sends as well.
    Connect { addresses: Vec<String>, mutual: Option<String>, spec: MessageSpec },
    /// Send to all peers until `Stop`. The reply follows when the first message in each direction is
    /// confirmed.
    Run,
    /// Count the confirmed messages in each direction for this time, from one confirmation to another.
    Count { duration_us: u64 },
    /// Stop sending.
    Stop,
    /// Connect a bare socket to the first peer.
    Open { course: SocketTest },
    /// Send through the bare socket.
    Pour,
}

/// A worker's reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum WorkerReply {
    /// Other workers can connect to this address.
    Listening { address: String },
    /// All connections are open, over this path.
    Connected { path: String },
    /// The worker is sending.
    Running,
    /// The messages confirmed while all were sending.
    Counted {
        /// Messages that this worker sent.
        out: MessageCount,
        /// Messages that the mutual peer sent to this worker.
        reverse: Option<MessageCount>,
    },
    /// The worker has stopped sending.
    Stopped(WorkerCost),
    /// The bare socket is connected.
    Opened,
    /// The rate of the bare socket.
    Poured { gb_per_s: f64 },
    /// The worker cannot continue.
    Failed { why: String },
}

/// Messages that their receivers confirmed in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MessageCount {
    pub(crate) elapsed_ns: u64,
    pub(crate) messages: u64,
    /// Empty for received messages: another clock timed their sends.
    pub(crate) times: HistogramCounts,
}

impl MessageCount {
    pub(crate) fn messages_per_s(&self) -> f64 {
        self.messages as f64 / (self.elapsed_ns as f64 / 1e9)
    }
}

/// The cost of a worker, from its first message to the confirmation of its last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerCost {
    /// In each direction.
    pub(crate) messages: u64,
    /// CPU seconds of this end.
    pub(crate) cpu_s: f64,
    /// The far end's CPU seconds before and after; several workers may have the same far end.
    pub(crate) far_cpu_s: (f64, f64),
    /// Payload bytes that both ends copied in user space.
    pub(crate) bytes_copied: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::payload::{Check, Layout};
    use crate::data::place::Places;
    use crate::results::sample::Sample;

    #[test]
    fn orders_and_answers_are_a_line_each() {
        let layout = Layout::new(8, 2);
        let spec = MessageSpec { layout, frames: 3, check: Check::Whole, places: Places::default() };
        let addresses = vec!["tcp://127.0.0.1:7".to_owned()];
        for order in [
            WorkerCommand::Listen { address: "mem://".to_owned() },
            WorkerCommand::Connect { addresses, mutual: None, spec },
            WorkerCommand::Run,
            WorkerCommand::Count { duration_us: 5 },
            WorkerCommand::Stop,
        ] {
            let line = serde_json::to_string(&order).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<WorkerCommand>(&line).unwrap(), order);
        }
        let mut sample = Sample::new();
        sample.record(std::time::Duration::from_micros(7));
        let counted = MessageCount { elapsed_ns: 9, messages: 1, times: HistogramCounts::of(&sample.times) };
        for answer in [
            WorkerReply::Running,
            WorkerReply::Counted { out: counted.clone(), reverse: None },
            WorkerReply::Counted { out: counted.clone(), reverse: Some(counted) },
            WorkerReply::Stopped(WorkerCost {
                messages: 1,
                cpu_s: 0.5,
                far_cpu_s: (1.0, 2.0),
                bytes_copied: 3,
            }),
            WorkerReply::Failed { why: "two\nlines".to_owned() },
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<WorkerReply>(&line).unwrap(), answer);
        }
    }
}
