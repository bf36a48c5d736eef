//! Why a connection takes its path, what is predicted of each candidate, and what the connection measures.
//!
//! A measurement is an exchange of ordinary messages, told apart by their headers. The measuring end sends
//! pings, then data, then [`DONE`]. The other end answers until it receives [`DONE`].

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

/// The header of 8 bytes that the peer returns.
const PING: &[u8] = b"towline measures: ping";
/// The header of data that the peer discards.
const DATA: &[u8] = b"towline measures: bulk";
/// The header of either end's last message. The peer's frame holds the bytes that it copied, then its
/// [`PeerView`].
const DONE: &[u8] = b"towline measures: done";

/// The duration of each of the two phases, without the warm-up.
const PHASE_TIME: Duration = Duration::from_millis(100);
/// The limit on the whole measurement: the other end may not have begun to take part.
const MEASURE_TIME: Duration = Duration::from_secs(10);
const PINGS_TO_WARM_UP: usize = 4;
const DATA_LEN: usize = 1 << 20;
/// Data messages in flight.
const WINDOW: usize = 8;

/// Why a connection takes its path, as returned by [`Connection::explain`] and [`Connection::measure`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// # use towline::Endpoint;
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let explanation = near.explain().await;
/// for explained in &explanation.candidates {
///     println!("{}: {}", explained.candidate.name, explained.candidate.reason);
/// }
/// assert_eq!(explanation.path.chosen(), "mem");
///
/// // The peer takes part in a measurement.
/// let (explanation, answered) = tokio::join!(near.measure(), far.be_measured());
/// answered?;
/// let measured = explanation?.measured.expect("it was measured");
/// println!("{:.1} GB/s, {:.1} µs", measured.speed.gb_per_s, measured.speed.p50_us);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The chosen path, and what is in force on it: encryption, integrity, streams.
    pub path: Path,
    /// Every candidate of the path, in the order of preference, with its prediction.
    pub candidates: Vec<Explained>,
    /// The state of each optional mechanism of the link, one sentence each, as far as it is known.
    pub notes: Vec<String>,
    /// What the connection measured, if it was measured.
    pub measured: Option<Measured>,
}

/// A candidate, and the prediction for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explained {
    /// The candidate.
    pub candidate: Candidate,
    /// What it should do between these two ends, whatever its state. `None` if it does not reach the peer, or
    /// nothing on this machine predicts it.
    pub predicted: Option<Prediction>,
}

/// The result of a measurement, and the peer's view of the connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Measured {
    /// The measured speed.
    pub speed: Speed,
    /// Its bandwidth as a share of the predicted one, which is this machine's ceiling for it. `None` without
    /// a prediction.
    pub share: Option<f64>,
    /// User-space copies of each payload byte in the data phase, at both ends together.
    pub copies: f64,
    /// The other end's view.
    pub peer: PeerView,
}

impl Explanation {
    /// Returns the candidate that carries the connection.
    pub fn chosen(&self) -> Option<&Explained> {
        self.candidates.iter().find(|explained| explained.candidate.name == self.path.chosen())
    }
}

impl Connection {
    /// Explains why this connection takes its path, and predicts every candidate. Sends nothing to the peer.
    ///
    /// The first call of a process measures the machine ([`Machine`]) on a thread of its own: 50 ms at most
    /// on an idle machine.
    pub async fn explain(&self) -> Explanation {
        let (path, machine) = (self.path().clone(), Machine::measured_async().await);
        let explained = |candidate: &Candidate| Explained {
            candidate: candidate.clone(),
            predicted: path.predict(candidate, machine),
        };
        let candidates = path.candidates().iter().map(explained).collect();
        Explanation { path, candidates, notes: self.core().link.load().notes(), measured: None }
    }

    /// As [`explain`](Self::explain), and measures the connection: 8 bytes there and back, then 1 MiB
    /// messages one way, for 200 ms together. The peer takes part by [`be_measured`](Self::be_measured) at
    /// the same time. Neither end may use the connection for anything else meanwhile.
    ///
    /// A dropped future leaves messages of the measurement on the connection: close it then.
    ///
    /// # Errors
    /// `TimedOut` if the peer does not take part within 10 s, `Corrupt` if it sends anything else, and
    /// whatever ends the connection.
    pub async fn measure(&self) -> Result<Explanation> {
        let mut explanation = self.explain().await;
        let (speed, copies, peer) = self.bounded("measure", self.run_measurement()).await?;
        let predicted = explanation.chosen().and_then(|chosen| chosen.predicted);
        let share = predicted.map(|predicted| speed.gb_per_s / predicted.speed.gb_per_s);
        explanation.measured = Some(Measured { speed, share, copies, peer });
        Ok(explanation)
    }

    /// Takes part in the peer's [`measure`](Self::measure), and ends with it.
    ///
    /// # Errors
    /// `TimedOut` if the peer does not measure within 10 s, `Corrupt` if it sends anything else, and whatever
    /// ends the connection.
    pub async fn be_measured(&self) -> Result<()> {
        self.bounded("be measured", self.answer_measurement()).await
    }

    async fn bounded<T>(&self, doing: &'static str, part: impl Future<Output = Result<T>>) -> Result<T> {
        let environment = self.environment();
        let deadline = environment.now() + MEASURE_TIME;
        let timed_out = || {
            let why = format!("the peer took no part within {} s", MEASURE_TIME.as_secs());
            Err(Error::new(ErrorKind::TimedOut, why))
        };
        let outcome = within(environment, deadline, part).await;
        outcome.unwrap_or_else(timed_out).map_err(|error| self.core().placed(error, doing))
    }

    fn environment(&self) -> &dyn Environment {
        self.core().environment()
    }

    async fn run_measurement(&self) -> Result<(Speed, f64, PeerView)> {
        for _ in 0..PINGS_TO_WARM_UP {
            self.measure_ping().await?;
        }
        let (environment, mut times_ns) = (self.environment(), Vec::new());
        let begin = environment.now();
        while environment.now().saturating_sub(begin) < PHASE_TIME || times_ns.is_empty() {
            let begin = environment.now();
            self.measure_ping().await?;
            times_ns.push(environment.now().saturating_sub(begin).as_nanos() as u64);
        }
        let p50_us = median(&mut times_ns) / 2e3;
        let copied_before = self.stats().bytes_copied;
        let (confirmed, time, sent) = self.send_data().await?;
        let copied = self.stats().bytes_copied - copied_before;
        self.deliver(Message::new(DONE)).await?;
        let answer = self.recv().await?;
        let far = frame(&answer, DONE)?;
        let (far_copied, far_view) = far.split_first_chunk().ok_or_else(protocol_violation)?;
        let copies = copied.saturating_add(u64::from_le_bytes(*far_copied)) as f64 / (sent * DATA_LEN) as f64;
        let gb_per_s = gb_per_s(confirmed * DATA_LEN, time.as_secs_f64() * 1e6);
        Ok((Speed { gb_per_s, p50_us }, copies, PeerView::decode(far_view).ok_or_else(protocol_violation)?))
    }

    async fn measure_ping(&self) -> Result<()> {
        self.send(Message::new(PING).with_frame(vec![7; 8])).await?;
        frame(&self.recv().await?, PING).map(|_| ())
    }

    /// Sends data. Returns the number of messages confirmed, the time that they took, and the number sent.
    async fn send_data(&self) -> Result<(usize, Duration, usize)> {
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
            // The first window warms up and does not count.
            let now = environment.now();
            let begin = *begin.get_or_insert(now);
            let time = now.saturating_sub(begin);
            if time >= PHASE_TIME && confirmed > 0 {
                let sent = confirmed + 1 + receipts.len();
                for receipt in receipts {
                    receipt.delivered().await?;
                }
                return Ok((confirmed, time, sent));
            }
            confirmed += 1;
        }
    }

    async fn answer_measurement(&self) -> Result<()> {
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
                    let mut result = copied.to_le_bytes().to_vec();
                    let view =
                        PeerView { notes: self.core().link.load().notes(), ..PeerView::of(self.path()) };
                    result.extend(view.encode());
                    return self.deliver(Message::new(DONE).with_frame(result)).await;
                }
                _ => return Err(protocol_violation()),
            }
        }
    }
}

/// Returns the frame of `message`, which must have `header` and one frame.
fn frame<'a>(message: &'a Message, header: &[u8]) -> Result<&'a [u8]> {
    match message.frames() {
        [frame] if message.header()[..] == *header => frame.as_slice().ok_or_else(protocol_violation),
        _ => Err(protocol_violation()),
    }
}

fn protocol_violation() -> Error {
    Error::new(ErrorKind::Corrupt, "the peer sent something else during a measurement")
}
