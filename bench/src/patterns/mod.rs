//! The patterns: what is done with the messages. A pattern on one connection is a file with a
//! [`ConnectionPattern`]; [`workers`] and [`tasks`] have the others. [`runner`] runs one repeat of a case.

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

/// The inputs of a pattern.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatternContext<'a> {
    pub(crate) case: &'a Case,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) address: &'a Address,
    /// A new connection.
    pub(crate) peer: &'a Peer,
    pub(crate) load: &'a MessageSource,
    /// The clock of the near end's CPU time.
    pub(crate) clock: CpuClock,
}

/// A pattern on one connection.
trait ConnectionPattern {
    /// True if the near end gives the bytes, false if it takes them.
    const GIVES: bool = true;

    /// Returns the time of the first message, with cold buffers; `None` if the pattern has no such time.
    async fn cold(&mut self) -> Result<Option<Duration>, Failure>;

    /// Moves messages until `until`. Returns when the last one is confirmed.
    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure>;

    /// Checks what is left to check after the run.
    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Runs one repeat of the case's pattern.
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
            Err(Failure::run("this pattern has more than one connection"))
        }
    }
}

/// Sends the cold message, warms up, measures and checks.
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
        // A confirmed message may not be read yet; the answer follows the last message.
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

/// Returns the CPU seconds and the copied bytes between two readings.
fn spent(before: &Usage, after: &Usage) -> (f64, u64) {
    (after.cpu_s - before.cpu_s, after.bytes_copied.saturating_sub(before.bytes_copied))
}
