//! Workers that send at the same time, conducted by a process that moves nothing itself: a process each, or for `mem` a
//! thread of this process each.
//!
//! An [`WorkerCommand`] reaches a process as a line of JSON on its standard input, and its [`WorkerReply`] comes as a line on its standard
//! output: what conducts is no part of what is measured, and nobody else can give orders.

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

/// What a worker is told. Each order has one answer, unless the worker fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum WorkerCommand {
    /// Listen there, and take what the others will send.
    Listen { address: String },
    /// Connect to each of these, one after another, and say what they will be sent. The one at `mutual` comes last, and will
    /// send as well.
    Connect { addresses: Vec<String>, mutual: Option<String>, spec: MessageSpec },
    /// Send to all of them, until told to stop; answered when the first message each way is confirmed.
    Run,
    /// Count what is confirmed each way in so much time, from one confirmation to another.
    Count { duration_us: u64 },
    /// Send nothing more.
    Stop,
    /// Connect a bare socket to the first of those it met.
    Open { course: SocketTest },
    /// Send through the bare socket.
    Pour,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum WorkerReply {
    /// Others can connect there.
    Listening { address: String },
    /// All connections stand, and this is what carries the bytes.
    Connected { path: String },
    /// It sends.
    Running,
    /// What was confirmed while all were sending.
    Counted {
        /// Of this worker's.
        out: MessageCount,
        /// Of the one's that sends to it as well.
        reverse: Option<MessageCount>,
    },
    /// It sends no more.
    Stopped(WorkerCost),
    /// The bare socket is connected.
    Opened,
    /// What went through the bare socket.
    Poured { gb_per_s: f64 },
    /// It cannot go on.
    Failed { why: String },
}

/// Messages that their receivers confirmed in some time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MessageCount {
    pub(crate) elapsed_ns: u64,
    pub(crate) messages: u64,
    /// None of messages that came: another clock saw them leave.
    pub(crate) times: HistogramCounts,
}

impl MessageCount {
    pub(crate) fn messages_per_s(&self) -> f64 {
        self.messages as f64 / (self.elapsed_ns as f64 / 1e9)
    }
}

/// What a worker's part has cost, from its first message to its last one's confirmation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerCost {
    /// Each way.
    pub(crate) messages: u64,
    /// CPU seconds of this end.
    pub(crate) cpu_s: f64,
    /// The far end's clock of CPU seconds before and after; several workers may have the same far end.
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
