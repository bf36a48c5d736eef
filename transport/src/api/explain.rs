//! Which way a connection goes and why, what was expected of every way, and what this one does.
//!
//! A measurement is a conversation of ordinary messages, told apart by their headers: whoever measures says which it is,
//! and the other end answers until it hears [`DONE`].

mod view;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::view::{PeerCandidate, PeerView};
use crate::api::connection::Connection;
use crate::backend::machine::{gb_per_s, median};
use crate::backend::path::{Candidate, Path};
use crate::backend::{Machine, Prediction, Speed};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Buffer;
use crate::platform::environment::{Environment, within};
use crate::transfer::message::Message;

/// 8 bytes to be sent back.
const PING: &[u8] = b"towline measures: ping";
/// Bytes to be let go.
const DATA: &[u8] = b"towline measures: bulk";
/// The last word of either end; its frame holds what that end copied, and its [`PeerView`].
const DONE: &[u8] = b"towline measures: done";

/// Of each of the two parts, beyond what warms up.
const DRAIN_TIME: Duration = Duration::from_millis(100);
/// All of it: the other end may not have begun to take part.
const MEASURE_TIME: Duration = Duration::from_secs(10);
const PINGS_TO_WARM_UP: usize = 4;
const DATA_LEN: usize = 1 << 20;
/// Data in flight.
const WINDOW: usize = 8;

/// Why a connection goes the way it goes, in one value: of [`Connection::explain`] and [`Connection::measure`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// What was chosen, and what is in force on it: encryption, integrity, streams.
    pub path: Path,
    /// Every candidate of the path, in the order of preference, with what is expected of it.
    pub candidates: Vec<Explained>,
    /// What became of the ways that the link may take or not, a sentence each, as far as it knows by now.
    pub notes: Vec<String>,
    /// What the connection did, where it was measured.
    pub measured: Option<Measured>,
}

/// A candidate, and what is expected of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explained {
    /// The candidate.
    pub candidate: Candidate,
    /// What it should do between these two ends, whatever became of it; `None` where it does not reach the peer, or
    /// nothing on this machine tells.
    pub predicted: Option<Prediction>,
}

/// What a measurement found, and what the other end says of the connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Measured {
    /// What the connection did.
    pub speed: Speed,
    /// Its bandwidth over the predicted one, which is this machine's ceiling for it; `None` without a prediction.
    pub share: Option<f64>,
    /// User-space copies of each payload byte of the data, both ends together.
    pub copies: f64,
    /// The other end's view.
    pub peer: PeerView,
}

impl Explanation {
    /// What carries the connection.
    pub fn chosen(&self) -> Option<&Explained> {
        self.candidates.iter().find(|explained| explained.candidate.name == self.path.chosen())
    }
}

impl Connection {
    /// Tells why this connection goes the way it goes, and what is expected of every candidate. It says nothing to the peer.
    ///
    /// The first call of a process finds out what the machine does ([`Machine`]), on a thread of its own: 50 ms at most on
    /// an idle machine.
    pub async fn explain(&self) -> Explanation {
        let (path, machine) = (self.path().clone(), Machine::measured_async().await);
        let explained = |candidate: &Candidate| Explained {
            candidate: candidate.clone(),
            predicted: path.predict(candidate, machine),
        };
        let candidates = path.candidates().iter().map(explained).collect();
        Explanation { path, candidates, notes: self.core().link.notes(), measured: None }
    }

    /// As [`explain`](Self::explain), with what the connection does: 8 bytes there and back, and 1 MiB messages one way, for
    /// 200 ms together. The peer takes part by [`be_measured`](Self::be_measured) at the same time, and neither end uses the
    /// connection for anything else meanwhile.
    ///
    /// A dropped future leaves messages of the measurement on the connection: close it then.
    ///
    /// # Errors
    /// `TimedOut` if the peer does not take part within 10 s, `Corrupt` if it answers something else, and whatever ends
    /// the connection.
    pub async fn measure(&self) -> Result<Explanation> {
        let mut explanation = self.explain().await;
        let (speed, copies, peer) = self.bounded("measure", self.drive()).await?;
        let predicted = explanation.chosen().and_then(|chosen| chosen.predicted);
        let share = predicted.map(|predicted| speed.gb_per_s / predicted.speed.gb_per_s);
        explanation.measured = Some(Measured { speed, share, copies, peer });
        Ok(explanation)
    }

    /// Takes part in the peer's [`measure`](Self::measure), and ends with it.
    ///
    /// # Errors
    /// `TimedOut` if the peer does not measure within 10 s, `Corrupt` if it says something else, and whatever ends the
    /// connection.
    pub async fn be_measured(&self) -> Result<()> {
        self.bounded("be measured", self.follow()).await
    }

    async fn bounded<T>(&self, doing: &'static str, part: impl Future<Output = Result<T>>) -> Result<T> {
        let environment = self.environment();
        let deadline = environment.now() + MEASURE_TIME;
        let late = || {
            let why = format!("the peer took no part within {} s", MEASURE_TIME.as_secs());
            Err(Error::new(ErrorKind::TimedOut, why))
        };
        let outcome = within(environment, deadline, part).await;
        outcome.unwrap_or_else(late).map_err(|error| self.core().placed(error, doing))
    }

    fn environment(&self) -> &dyn Environment {
        self.core().environment()
    }

    async fn drive(&self) -> Result<(Speed, f64, PeerView)> {
        for _ in 0..PINGS_TO_WARM_UP {
            self.ping().await?;
        }
        let (environment, mut times_ns) = (self.environment(), Vec::new());
        let begin = environment.now();
        while environment.now().saturating_sub(begin) < DRAIN_TIME || times_ns.is_empty() {
            let begin = environment.now();
            self.ping().await?;
            times_ns.push(environment.now().saturating_sub(begin).as_nanos() as u64);
        }
        let p50_us = median(&mut times_ns) / 2e3;
        let copied_before = self.stats().bytes_copied;
        let (confirmed, time, sent) = self.data().await?;
        let copied = self.stats().bytes_copied - copied_before;
        self.deliver(Message::new(DONE)).await?;
        let answer = self.recv().await?;
        let far = frame(&answer, DONE)?;
        let (far_copied, far_view) = far.split_first_chunk().ok_or_else(unauthenticated_peer)?;
        let copies = copied.saturating_add(u64::from_le_bytes(*far_copied)) as f64 / (sent * DATA_LEN) as f64;
        let gb_per_s = gb_per_s(confirmed * DATA_LEN, time.as_secs_f64() * 1e6);
        Ok((Speed { gb_per_s, p50_us }, copies, PeerView::decode(far_view).ok_or_else(unauthenticated_peer)?))
    }

    async fn ping(&self) -> Result<()> {
        self.send(Message::new(PING).with_frame(vec![7; 8])).await?;
        frame(&self.recv().await?, PING).map(|_| ())
    }

    /// Messages confirmed, in which time; and all that were sent.
    async fn data(&self) -> Result<(usize, Duration, usize)> {
        let (environment, data) = (self.environment(), Buffer::from(vec![7; DATA_LEN]));
        let mut receipts = VecDeque::new();
        let (mut begin, mut confirmed) = (None, 0);
        loop {
            receipts.push_back(self.send(Message::new(DATA).with_frame(data.clone())).await?);
            if receipts.len() < WINDOW {
                continue;
            }
            if let Some(receipt) = receipts.pop_front() {
                receipt.delivered().await?;
            }
            // What warms up is a window, and does not count.
            let now = environment.now();
            let begin = *begin.get_or_insert(now);
            let time = now.saturating_sub(begin);
            if time >= DRAIN_TIME && confirmed > 0 {
                let sent = confirmed + 1 + receipts.len();
                for receipt in receipts {
                    receipt.delivered().await?;
                }
                return Ok((confirmed, time, sent));
            }
            confirmed += 1;
        }
    }

    async fn follow(&self) -> Result<()> {
        let mut copied_before = self.stats().bytes_copied;
        loop {
            let message = self.recv().await?;
            match &message.header()[..] {
                PING => {
                    self.send(message).await?;
                    copied_before = self.stats().bytes_copied;
                }
                DATA => {}
                DONE => {
                    let copied = self.stats().bytes_copied - copied_before;
                    let mut told = copied.to_le_bytes().to_vec();
                    let view = PeerView { notes: self.core().link.notes(), ..PeerView::of(self.path()) };
                    told.extend(view.encode());
                    return self.deliver(Message::new(DONE).with_frame(told)).await;
                }
                _ => return Err(unauthenticated_peer()),
            }
        }
    }
}

/// The bytes of a message of one frame under `header`.
fn frame<'a>(message: &'a Message, header: &[u8]) -> Result<&'a [u8]> {
    match message.frames() {
        [frame] if message.header()[..] == *header => frame.as_slice().ok_or_else(unauthenticated_peer),
        _ => Err(unauthenticated_peer()),
    }
}

fn unauthenticated_peer() -> Error {
    Error::new(ErrorKind::Corrupt, "the peer said something else where a measurement was due")
}
