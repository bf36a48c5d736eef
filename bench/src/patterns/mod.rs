//! What is done with the messages: one file a pattern, each an [`ConnectionPattern`].

mod bandwidth;
mod bidirectional;
mod connect;
mod get;
mod group;
mod latency;
mod open;
mod put;
mod rate;
pub(crate) mod runner;
pub(crate) mod tasks;
mod window_tasks;
pub(crate) mod workers;

use std::time::{Duration, Instant};

use towline::{Address, Endpoint};

use crate::case::Pace;
use crate::case::{Case, Pattern};
use crate::data::messages::MessageSource;
use crate::data::payload::Check;
use crate::failure::Failure;
use crate::peer::{Peer, Usage};
use crate::process::cpu_clock::CpuClock;
use crate::results::sample::Sample;

/// What a pattern works with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatternContext<'a> {
    pub(crate) case: &'a Case,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) address: &'a Address,
    /// A fresh connection.
    pub(crate) peer: &'a Peer,
    pub(crate) load: &'a MessageSource,
    /// Whose CPU time the near end is.
    pub(crate) clock: CpuClock,
}

/// A pattern at work on one connection.
trait ConnectionPattern {
    /// The near end gives the bytes; otherwise it takes them.
    const GIVES: bool = true;

    /// The first message, with unwarmed buffers; `None` where there is no such thing.
    async fn cold(&mut self) -> Result<Option<Duration>, Failure>;

    /// Moves messages until `until`, and ends with the last one's confirmation.
    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure>;

    /// Afterwards: what is left to check.
    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// One repeat of the case's pattern.
pub(crate) async fn measure(bench: PatternContext<'_>, pace: Pace) -> Result<Sample, Failure> {
    match bench.case.pattern {
        Pattern::Latency => exercise(bench, pace, latency::Latency::new(bench).await?).await,
        Pattern::Bandwidth => exercise(bench, pace, bandwidth::Bandwidth::new(bench).await?).await,
        Pattern::Bidirectional => {
            exercise(bench, pace, bidirectional::Bidirectional::new(bench).await?).await
        }
        Pattern::Rate => exercise(bench, pace, rate::Rate::new(bench).await?).await,
        Pattern::Get => exercise(bench, pace, get::Get::new(bench).await?).await,
        Pattern::Put => exercise(bench, pace, put::Put::new(bench).await?).await,
        Pattern::Connect => exercise(bench, pace, connect::Connect::new(bench)).await,
        Pattern::Incast | Pattern::Alltoall | Pattern::Tasks | Pattern::Shuffle => {
            Err(Failure::run("it has more than the one connection"))
        }
    }
}

/// Cold, warm up, measure, check.
async fn exercise<E: ConnectionPattern>(
    bench: PatternContext<'_>,
    pace: Pace,
    mut exercise: E,
) -> Result<Sample, Failure> {
    let cold = exercise.cold().await?;
    if !pace.warmup.is_zero() {
        exercise.run(Instant::now() + pace.warmup, &mut Sample::new()).await?;
    }
    let mut sample = Sample::new();
    let far_before = bench.peer.usage().await?;
    let near_before = bench.peer.own_usage(bench.clock);
    let begin = Instant::now();
    exercise.run(begin + pace.duration, &mut sample).await?;
    if bench.case.check == Check::Read {
        // What was confirmed need not be read yet; the answer comes behind the last message.
        bench.peer.usage().await?;
    }
    sample.elapsed = begin.elapsed();
    let near = spent(&near_before, &bench.peer.own_usage(bench.clock));
    let far = spent(&far_before, &bench.peer.usage().await?);
    exercise.finish().await?;
    sample.cold = cold;
    sample.cpu = Some(if E::GIVES { (near.0, far.0) } else { (far.0, near.0) });
    sample.bytes_copied = Some(near.1 + far.1);
    Ok(sample)
}

/// CPU seconds and bytes copied between two looks.
fn spent(before: &Usage, after: &Usage) -> (f64, u64) {
    (after.cpu_s - before.cpu_s, after.bytes_copied.saturating_sub(before.bytes_copied))
}
