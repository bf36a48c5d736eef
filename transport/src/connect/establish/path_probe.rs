//! A path beside the stream is measured against the stream before it is taken: 8 bytes, 64 KiB and 1 MiB there, in turn.
//!
//! Both ends have opened it, and neither has handed it out: whoever connects sends, the other lets everything go.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::candidates::BackendCandidate;
use crate::backend::machine::{gb_per_s, median};
use crate::backend::{Delivery, Done, Link, LinkContext, Op, Operation, Prediction, Progress, Speed};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{self, Asked, Control};
use crate::memory::Buffer;
use crate::platform::environment::{Environment, within};
use crate::transfer::message::{Announced, Arrival, Message};

/// What a path must be faster by to take the place of the one that takes the stream.
const ADVANTAGE: f64 = 1.2;
/// Of all of it, but for a message on the stream that is under way then.
const PATH_PROBE_TIME: Duration = Duration::from_millis(50);
/// For a path to be opened that nobody knows to work: where it is in vain, the connection waits for it.
pub(super) const OPEN_TIME: Duration = Duration::from_millis(500);
/// Of each of the two ways.
const SHARE: Duration = Duration::from_millis(20);
const PING_LEN: usize = 8;
const DATA_LEN: usize = 1 << 20;
/// What is sent, one after the other, and how often.
const STEPS: [(usize, usize); 3] = [(PING_LEN, 4), (64 << 10, 3), (DATA_LEN, 16)];
/// The most measurements that an acceptor takes part in.
pub(super) const MEASUREMENTS_MAX: usize = 64;
/// How often an end that waits for the other looks, after it has looked so many times at once.
const SWEEP_EVERY: Duration = Duration::from_millis(1);
const LOOKS: u32 = 4096;
/// Polls of a link in a row.
const POLLS_MAX: usize = 64;

/// What the two ways did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(super) tried: Speed,
    pub(super) stream: Speed,
}

impl Figures {
    /// Whether what was tried takes the place of what takes the stream.
    pub(super) fn prefers_the_tried(&self) -> bool {
        self.tried.gb_per_s >= ADVANTAGE * self.stream.gb_per_s
    }

    /// The rule and its figures, in a sentence without a full stop.
    pub(super) fn sentence(&self, rival: &str) -> String {
        let ms = |speed: Speed| DATA_LEN as f64 / speed.gb_per_s / 1e6;
        let (tried, stream) = (ms(self.tried), ms(self.stream));
        format!(
            "1 MiB took {tried:.3} ms over it and {stream:.3} ms over {rival} when the two hosts first met, and it takes \
             {rival}'s place where it is {ADVANTAGE} times as fast"
        )
    }
}

/// Notes what a path probe came to where it is explained; why what was tried is not taken, if so.
pub(super) fn heed(
    figures: Figures,
    tried: &mut BackendCandidate,
    others: &mut [BackendCandidate],
) -> Result<(), String> {
    let basis = "it was when the two hosts first met";
    tried.candidate.path_probe = Some(Prediction { speed: figures.tried, basis });
    let mut rival = "the stream";
    if let Some(other) = others.iter_mut().find(|other| other.backend.takes_stream()) {
        other.candidate.path_probe = Some(Prediction { speed: figures.stream, basis });
        rival = other.backend.name();
    }
    let sentence = figures.sentence(rival);
    if !figures.prefers_the_tried() {
        return Err(sentence);
    }
    tried.candidate.reason = sentence;
    Ok(())
}

/// What one of the two did so far.
#[derive(Debug, Default)]
struct Pace {
    /// Lengths, and how long each took to be there.
    done: Vec<(usize, Duration)>,
    spent: Duration,
}

impl Pace {
    /// What to send next, if it should fit in what is left of the share.
    fn next(&self) -> Option<usize> {
        let mut steps = STEPS.iter().flat_map(|&(len, times)| std::iter::repeat_n(len, times));
        let len = steps.nth(self.done.len())?;
        (self.spent + self.expected(len) <= SHARE).then_some(len)
    }

    fn add(&mut self, len: usize, took: Duration) {
        self.done.push((len, took));
        self.spent += took;
    }

    /// What a message should take: as long as the fastest of the longest so far, or as much longer as it is itself, at most 16
    /// times.
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
        // A clock that stood still tells nothing.
        let gb_per_s = gb_per_s(DATA_LEN, data_us.max(1e-3));
        Speed { gb_per_s, p50_us: median_us(PING_LEN).unwrap_or_default() / 2.0 }
    }
}

/// The connecting end: what both ways do, or why that of the link cannot be told.
///
/// `deadline` is a time of `environment`'s clock; after an error the stream is of no more use.
pub(super) async fn measure(
    link: &Arc<dyn Link>,
    control: &mut Control,
    deadline: Duration,
    environment: &dyn Environment,
) -> Result<Result<Figures, String>> {
    let bytes = vec![7; DATA_LEN];
    let frames = STEPS.map(|(len, _)| Buffer::from(bytes[..len].to_vec()));
    // The other end has opened its own when it answers.
    handshake::measure(control, &bytes[..PING_LEN], deadline, environment).await?;
    let by = environment.now() + PATH_PROBE_TIME;
    let (mut tried, mut stream) = (Pace::default(), Pace::default());
    loop {
        let next = (tried.next(), stream.next());
        if let Some(len) = next.0 {
            let frame = frames.iter().find(|frame| frame.len() == len).cloned().unwrap_or_default();
            let begin = environment.now();
            let delivery = within(environment, by, moving(link, environment, deliver(link, frame))).await;
            match delivery {
                Some(Ok(Delivery::Delivered)) => tried.add(len, environment.now().saturating_sub(begin)),
                Some(Ok(Delivery::Rejected)) => return Ok(Err("the peer let no measurement in".into())),
                Some(Err(error)) => return Ok(Err(error.to_string())),
                None => return Ok(Err(format!("{len} bytes did not pass it in the time of a path probe"))),
            }
        }
        if let Some(len) = next.1 {
            let begin = environment.now();
            handshake::measure(control, &bytes[..len], deadline, environment).await?;
            stream.add(len, environment.now().saturating_sub(begin));
        }
        if next == (None, None) || environment.now() >= by {
            return Ok(Ok(Figures { tried: tried.speed(), stream: stream.speed() }));
        }
    }
}

/// One message over the link, until the other end has it.
async fn deliver(link: &Arc<dyn Link>, frame: Buffer) -> Result<Delivery> {
    let (message, sent) = Operation::new(Message::default().with_frame(frame));
    let (receipt, delivered) = Done::new();
    link.submit(Op::Send { message, receipt, ack_now: true, more: false });
    let delivery = delivered.await?;
    sent.await.map_err(|failed| failed.error)?;
    Ok(delivery)
}

/// The accepting end: takes what comes on the stream, first so many bytes, and over the link, until the other end's last word.
pub(super) async fn take_part(
    first: usize,
    link: Option<&Arc<dyn Link>>,
    context: &LinkContext,
    (control, backend): (&mut Control, &str),
    deadline: Duration,
) -> Result<Result<(), String>> {
    let environment = &*context.environment;
    let conversation = async {
        let (mut asked, mut left) = (Asked::Measure(first), MEASUREMENTS_MAX);
        loop {
            match asked {
                Asked::Said(word) => return Ok(word),
                Asked::Measure(len) => handshake::measured(control, len, deadline, environment).await?,
            }
            left -= 1;
            asked = handshake::asked(control, backend, left, deadline, environment).await?;
        }
    };
    let Some(link) = link else { return conversation.await };
    let both = async {
        let (mut conversation, mut destination) = (pin!(conversation), pin!(land(link, context)));
        let mut lands = true;
        std::future::poll_fn(|cx| {
            lands = lands && destination.as_mut().poll(cx).is_pending();
            conversation.as_mut().poll(cx)
        })
        .await
    };
    moving(link, environment, both).await
}

/// Lets go what comes over the link, until it ends: one message after the other, and no more than on the stream.
async fn land(link: &Arc<dyn Link>, context: &LinkContext) {
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
                // The other end hears it too.
                let _ = landed.await;
            }
            Arrival::Complete(_) if fits => {
                link.submit(Op::Ack { id, delivery: Delivery::Delivered, ack_now })
            }
            _ => {
                return link
                    .end(Error::new(ErrorKind::Corrupt, "what came in a path probe is no measurement"));
            }
        }
    }
}

/// Moves a link that nobody else does yet until `work` is done.
async fn moving<T>(link: &Arc<dyn Link>, environment: &dyn Environment, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut looks = 0;
    loop {
        let moved = (0..POLLS_MAX).map(|_| link.progress()).take_while(|it| *it == Progress::Moved).count();
        looks = if moved > 0 { 0 } else { looks + 1 };
        if looks >= LOOKS {
            let at = environment.now() + SWEEP_EVERY;
            if let Some(done) = within(environment, at, work.as_mut()).await {
                return done;
            }
        } else if let Some(done) = now_or_later(work.as_mut()).await {
            return done;
        } else {
            tokio::task::yield_now().await;
            if moved == 0 {
                // The other end may be waiting for this processor. Long yields do not end this as they end a waiter's
                // spinning: a path probe is bounded, and one that sleeps between polls measures its sleep.
                std::thread::yield_now();
            }
        }
    }
}

async fn now_or_later<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
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
    fn what_should_not_fit_in_the_share_is_not_sent_and_is_told_by_the_pace_so_far() {
        let mut pace = Pace::default();
        for _ in 0..4 {
            assert_eq!(pace.next(), Some(PING_LEN));
            pace.add(PING_LEN, Duration::from_micros(40));
        }
        for _ in 0..3 {
            assert_eq!(pace.next(), Some(64 << 10));
            pace.add(64 << 10, Duration::from_millis(2));
        }
        assert_eq!(pace.next(), None, "32 ms");
        let speed = pace.speed();
        assert!((speed.p50_us - 20.0).abs() < 1e-9, "{speed:?}");
        assert!((speed.gb_per_s - gb_per_s(DATA_LEN, 32_000.0)).abs() < 1e-9, "{speed:?}");
    }

    #[test]
    fn the_rule_and_its_sentence_have_the_same_figures() {
        let speed = |gb_per_s| Speed { gb_per_s, p50_us: 1.0 };
        let of = |tried, stream| Figures { tried: speed(tried), stream: speed(stream) };
        assert!(of(1.2, 1.0).prefers_the_tried() && !of(1.19, 1.0).prefers_the_tried());
        let sentence = of(1.048_576, 10.485_76).sentence("tcp");
        assert!(sentence.contains("1.000 ms over it and 0.100 ms over tcp"), "{sentence}");
    }
}
