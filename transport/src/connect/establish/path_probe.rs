//! The path probe: measures a separate path against the handshake stream before it is used. It sends 8 bytes,
//! 64 KiB and 1 MiB over each, in turn.
//!
//! Both ends have opened the path, and neither has handed it out. The connector sends and the acceptor
//! discards.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::candidates::BackendCandidate;
use crate::backend::machine::{gb_per_s, median};
use crate::backend::{Delivery, Done, Link, LinkContext, Op, Operation, Prediction, Progress, Speed};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{self, ConnectorReply, Control};
use crate::memory::Buffer;
use crate::platform::environment::{Environment, within};
use crate::transfer::message::{Announced, Arrival, Message};

/// How much faster a path must be to replace the stream's backend.
const ADVANTAGE: f64 = 1.2;
/// The duration of the probe, without a message that is in transit on the stream at its end.
const PATH_PROBE_TIME: Duration = Duration::from_millis(50);
/// The time to open a path of unknown quality. The connection waits that long if it does not open.
pub(super) const OPEN_TIME: Duration = Duration::from_millis(500);
/// The time spent on each of the two paths.
const PATH_TIME: Duration = Duration::from_millis(20);
const PING_LEN: usize = 8;
const DATA_LEN: usize = 1 << 20;
/// The messages to send, in order: length and count.
const STEPS: [(usize, usize); 3] = [(PING_LEN, 4), (64 << 10, 3), (DATA_LEN, 16)];
/// The most measurements that an acceptor takes part in.
pub(super) const MEASUREMENTS_MAX: usize = 64;
/// The poll interval of a waiting end, after `BUSY_POLLS_MAX` polls without a pause.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
const BUSY_POLLS_MAX: u32 = 4096;
/// The most polls of a link in a row.
const POLLS_MAX: usize = 64;

/// The measured speeds of the two paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeSpeeds {
    pub(super) probed: Speed,
    pub(super) stream: Speed,
}

impl ProbeSpeeds {
    /// Returns whether the probed path replaces the stream's backend.
    pub(super) fn prefers_probed(&self) -> bool {
        self.probed.gb_per_s >= ADVANTAGE * self.stream.gb_per_s
    }

    /// Explains the rule and its figures in one sentence, without a full stop.
    pub(super) fn explanation(&self, rival: &str) -> String {
        let ms = |speed: Speed| DATA_LEN as f64 / speed.gb_per_s / 1e6;
        let (probed, stream) = (ms(self.probed), ms(self.stream));
        format!(
            "1 MiB took {probed:.3} ms over it and {stream:.3} ms over {rival} when these two hosts first connected; it replaces \
             {rival} where it is {ADVANTAGE} times as fast"
        )
    }
}

/// Records the probe's speeds in the candidates. Returns an error with the reason if the probed path is not
/// used.
pub(super) fn apply_probe(
    speeds: ProbeSpeeds,
    probed: &mut BackendCandidate,
    others: &mut [BackendCandidate],
) -> Result<(), String> {
    let basis = "a path probe when these two hosts first connected";
    probed.candidate.path_probe = Some(Prediction { speed: speeds.probed, basis });
    let mut rival = "the stream";
    if let Some(other) = others.iter_mut().find(|other| other.backend.takes_stream()) {
        other.candidate.path_probe = Some(Prediction { speed: speeds.stream, basis });
        rival = other.backend.name();
    }
    let sentence = speeds.explanation(rival);
    if !speeds.prefers_probed() {
        return Err(sentence);
    }
    probed.candidate.reason = sentence;
    Ok(())
}

/// The samples of one path so far.
#[derive(Debug, Default)]
struct PathSamples {
    /// The length of each message, and its time until delivery.
    done: Vec<(usize, Duration)>,
    spent: Duration,
}

impl PathSamples {
    /// Returns the length of the next message, if it is expected to fit in the rest of the path's time.
    fn next(&self) -> Option<usize> {
        let mut steps = STEPS.iter().flat_map(|&(len, times)| std::iter::repeat_n(len, times));
        let len = steps.nth(self.done.len())?;
        (self.spent + self.expected(len) <= PATH_TIME).then_some(len)
    }

    fn add(&mut self, len: usize, took: Duration) {
        self.done.push((len, took));
        self.spent += took;
    }

    /// Returns the expected time of a message of `len` bytes: the fastest time of the longest length so far,
    /// scaled by the ratio of the lengths, at most 16 times.
    fn expected(&self, len: usize) -> Duration {
        let Some(&(longest, _)) = self.done.last() else { return Duration::ZERO };
        let best = self.of(longest).min().unwrap_or_default();
        best * (len / longest).clamp(1, 16) as u32
    }

    fn of(&self, len: usize) -> impl Iterator<Item = Duration> {
        self.done.iter().filter(move |(done, _)| *done == len).map(|(_, took)| *took)
    }

    fn speed(&self) -> Speed {
        let median_us = |len| {
            let mut times_ns: Vec<u64> = self.of(len).map(|took| took.as_nanos() as u64).collect();
            (!times_ns.is_empty()).then(|| median(&mut times_ns) / 1e3)
        };
        let data_us = median_us(DATA_LEN).unwrap_or_else(|| self.expected(DATA_LEN).as_secs_f64() * 1e6);
        // Avoids a division by zero where the clock did not advance.
        let gb_per_s = gb_per_s(DATA_LEN, data_us.max(1e-3));
        Speed { gb_per_s, p50_us: median_us(PING_LEN).unwrap_or_default() / 2.0 }
    }
}

/// Runs the connecting end of the probe. Returns both speeds, or why the link's cannot be measured.
///
/// `deadline` is a time of `environment`'s clock. After an error the stream is unusable.
pub(super) async fn measure(
    link: &Arc<dyn Link>,
    control: &mut Control,
    deadline: Duration,
    environment: &dyn Environment,
) -> Result<Result<ProbeSpeeds, String>> {
    let bytes = vec![7; DATA_LEN];
    let frames = STEPS.map(|(len, _)| Buffer::from(bytes[..len].to_vec()));
    // When the other end answers, it has opened its link.
    handshake::measure(control, &bytes[..PING_LEN], deadline, environment).await?;
    let by = environment.now() + PATH_PROBE_TIME;
    let (mut probed, mut stream) = (PathSamples::default(), PathSamples::default());
    loop {
        let next = (probed.next(), stream.next());
        if let Some(len) = next.0 {
            let frame = frames.iter().find(|frame| frame.len() == len).cloned().unwrap_or_default();
            let begin = environment.now();
            let delivery = within(environment, by, drive_link(link, environment, deliver(link, frame))).await;
            match delivery {
                Some(Ok(Delivery::Delivered)) => probed.add(len, environment.now().saturating_sub(begin)),
                Some(Ok(Delivery::Rejected)) => return Ok(Err("the peer rejected a measurement".into())),
                Some(Err(error)) => return Ok(Err(error.to_string())),
                None => {
                    return Ok(Err(format!("{len} bytes did not arrive within the time of a path probe")));
                }
            }
        }
        if let Some(len) = next.1 {
            let begin = environment.now();
            handshake::measure(control, &bytes[..len], deadline, environment).await?;
            stream.add(len, environment.now().saturating_sub(begin));
        }
        if next == (None, None) || environment.now() >= by {
            return Ok(Ok(ProbeSpeeds { probed: probed.speed(), stream: stream.speed() }));
        }
    }
}

/// Sends one message over the link and waits for its acknowledgement.
async fn deliver(link: &Arc<dyn Link>, frame: Buffer) -> Result<Delivery> {
    let (message, sent) = Operation::new(Message::default().with_frame(frame));
    let (receipt, delivered) = Done::new();
    link.submit(Op::Send { message, receipt, ack_now: true, more: false });
    let delivery = delivered.await?;
    sent.await.map_err(|failed| failed.error)?;
    Ok(delivery)
}

/// Runs the accepting end of the probe: receives `first` bytes on the stream, then whatever follows there and
/// over the link, until the connector's answer.
pub(super) async fn answer_probe(
    first: usize,
    link: Option<&Arc<dyn Link>>,
    context: &LinkContext,
    (control, backend): (&mut Control, &str),
    deadline: Duration,
) -> Result<Result<(), String>> {
    let environment = &*context.environment;
    let exchange = async {
        let (mut asked, mut left) = (ConnectorReply::Measure(first), MEASUREMENTS_MAX);
        loop {
            match asked {
                ConnectorReply::Answer(answer) => return Ok(answer),
                ConnectorReply::Measure(len) => {
                    handshake::receive_measurement(control, len, deadline, environment).await?
                }
            }
            left -= 1;
            asked =
                handshake::receive_measure_or_answer(control, backend, left, deadline, environment).await?;
        }
    };
    let Some(link) = link else { return exchange.await };
    let both = async {
        let (mut exchange, mut discarding) = (pin!(exchange), pin!(discard_received(link, context)));
        let mut receiving = true;
        std::future::poll_fn(|cx| {
            receiving = receiving && discarding.as_mut().poll(cx).is_pending();
            exchange.as_mut().poll(cx)
        })
        .await
    };
    drive_link(link, environment, both).await
}

/// Discards the messages of the link until it ends: one after another, and no more than on the stream.
async fn discard_received(link: &Arc<dyn Link>, context: &LinkContext) {
    let mut left = MEASUREMENTS_MAX;
    while let Ok(announced) = std::future::poll_fn(|cx| context.inbox.poll_take(cx)).await {
        let Announced { id, frames, arrival, ack_now, .. } = announced;
        let fits = left > 0 && frames.len() == 1 && frames.iter().all(|frame| frame.len <= DATA_LEN);
        left = left.saturating_sub(1);
        match arrival {
            Arrival::AtSender if fits => {
                let taken = frames.iter().map(|frame| context.pool.take(frame.len).map(Some)).collect();
                let destinations = match taken {
                    Ok(destinations) => destinations,
                    Err(error) => return link.end(error),
                };
                let (destinations, landed) = Operation::new(destinations);
                link.submit(Op::Accept { id, destinations });
                // A failure reaches the other end as well.
                let _ = landed.await;
            }
            Arrival::Complete(_) if fits => {
                link.submit(Op::Ack { id, delivery: Delivery::Delivered, ack_now })
            }
            _ => {
                return link
                    .end(Error::new(ErrorKind::Corrupt, "the peer sent something else during a path probe"));
            }
        }
    }
}

/// Polls a link that has no other poller yet, until `work` is done.
async fn drive_link<T>(
    link: &Arc<dyn Link>,
    environment: &dyn Environment,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let mut idle_polls = 0;
    loop {
        let moved = (0..POLLS_MAX).map(|_| link.progress()).take_while(|it| *it == Progress::Moved).count();
        idle_polls = if moved > 0 { 0 } else { idle_polls + 1 };
        if idle_polls >= BUSY_POLLS_MAX {
            let at = environment.now() + POLL_INTERVAL;
            if let Some(done) = within(environment, at, work.as_mut()).await {
                return done;
            }
        } else if let Some(done) = poll_once(work.as_mut()).await {
            return done;
        } else {
            tokio::task::yield_now().await;
            if moved == 0 {
                // The other end may be waiting for this processor. A long yield does not stop this loop as it
                // stops a spinning waiter: the probe is bounded in time, and sleeping between polls would
                // distort its result.
                std::thread::yield_now();
            }
        }
    }
}

async fn poll_once<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_would_exceed_the_paths_time_is_extrapolated_instead() {
        let mut samples = PathSamples::default();
        for _ in 0..4 {
            assert_eq!(samples.next(), Some(PING_LEN));
            samples.add(PING_LEN, Duration::from_micros(40));
        }
        for _ in 0..3 {
            assert_eq!(samples.next(), Some(64 << 10));
            samples.add(64 << 10, Duration::from_millis(2));
        }
        assert_eq!(samples.next(), None, "32 ms");
        let speed = samples.speed();
        assert!((speed.p50_us - 20.0).abs() < 1e-9, "{speed:?}");
        assert!((speed.gb_per_s - gb_per_s(DATA_LEN, 32_000.0)).abs() < 1e-9, "{speed:?}");
    }

    #[test]
    fn the_explanation_has_the_figures_of_the_rule() {
        let speed = |gb_per_s| Speed { gb_per_s, p50_us: 1.0 };
        let of = |probed, stream| ProbeSpeeds { probed: speed(probed), stream: speed(stream) };
        assert!(of(1.2, 1.0).prefers_probed() && !of(1.19, 1.0).prefers_probed());
        let sentence = of(1.048_576, 10.485_76).explanation("tcp");
        assert!(sentence.contains("1.000 ms over it and 0.100 ms over tcp"), "{sentence}");
    }
}
