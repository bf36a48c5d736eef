//! Workers that send at the same time, conducted by a process that moves nothing itself: a process each, or for `mem` a
//! thread of this process each.
//!
//! An [`Order`] reaches a process as a line of JSON on its standard input, and its [`Answer`] comes as a line on its standard
//! output: what conducts is no part of what is measured, and nobody else can give orders.

mod back;
mod conductor;
mod tally;
mod work;
mod worker;

use serde::{Deserialize, Serialize};

pub(crate) use self::conductor::Workers;
pub(crate) use self::work::{Options, run};
use crate::ceiling::socket::Course;
use crate::data::payload::Cargo;
use crate::results::times::Times;

/// What a worker is told. Each order has one answer, unless the worker fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Listen there, and take what the others will send.
    Listen { address: String },
    /// Connect to each of these, one after another, and say what they will be sent. The one at `mutual` comes last, and will
    /// send as well.
    Meet { addresses: Vec<String>, mutual: Option<String>, cargo: Cargo },
    /// Send to all of them, until told to stop; answered when the first message each way is confirmed.
    Run,
    /// Count what is confirmed each way in so much time, from one confirmation to another.
    Count { duration_us: u64 },
    /// Send nothing more.
    Stop,
    /// Connect a bare socket to the first of those it met.
    Open { course: Course },
    /// Send through the bare socket.
    Pour,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Others can connect there.
    Listening { address: String },
    /// All connections stand, and this is what carries the bytes.
    Met { path: String },
    /// It sends.
    Running,
    /// What was confirmed while all were sending.
    Counted {
        /// Of this worker's.
        out: Counted,
        /// Of the one's that sends to it as well.
        back: Option<Counted>,
    },
    /// It sends no more.
    Stopped(Spent),
    /// The bare socket is connected.
    Opened,
    /// What went through the bare socket.
    Poured { gb_per_s: f64 },
    /// It cannot go on.
    Failed { why: String },
}

/// Messages that their receivers confirmed in some time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) elapsed_ns: u64,
    pub(crate) messages: u64,
    /// None of messages that came: another clock saw them leave.
    pub(crate) times: Times,
}

impl Counted {
    pub(crate) fn messages_per_s(&self) -> f64 {
        self.messages as f64 / (self.elapsed_ns as f64 / 1e9)
    }
}

/// What a worker's part has cost, from its first message to its last one's confirmation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spent {
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
        let cargo = Cargo { layout, frames: 3, check: Check::Whole, places: Places::default() };
        let addresses = vec!["tcp://127.0.0.1:7".to_owned()];
        for order in [
            Order::Listen { address: "mem://".to_owned() },
            Order::Meet { addresses, mutual: None, cargo },
            Order::Run,
            Order::Count { duration_us: 5 },
            Order::Stop,
        ] {
            let line = serde_json::to_string(&order).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
        let mut sample = Sample::new();
        sample.record(std::time::Duration::from_micros(7));
        let counted = Counted { elapsed_ns: 9, messages: 1, times: Times::of(&sample.times) };
        for answer in [
            Answer::Running,
            Answer::Counted { out: counted.clone(), back: None },
            Answer::Counted { out: counted.clone(), back: Some(counted) },
            Answer::Stopped(Spent { messages: 1, cpu_s: 0.5, far_cpu_s: (1.0, 2.0), bytes_copied: 3 }),
            Answer::Failed { why: "two\nlines".to_owned() },
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
        }
    }
}
