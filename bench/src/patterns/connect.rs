//! New connections, each with one confirmed message: timed from the call to the confirmation.

use std::time::{Duration, Instant};

use super::{ConnectionPattern, PatternContext};
use crate::failure::Failure;
use crate::peer::Peer;
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Connect<'a> {
    bench: PatternContext<'a>,
}

impl<'a> Connect<'a> {
    pub(super) fn new(bench: PatternContext<'a>) -> Self {
        Self { bench }
    }
}

impl ConnectionPattern for Connect<'_> {
    /// Returns no time: every connection of this pattern is new.
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        Ok(None)
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        loop {
            let message = self.bench.load.message(0);
            let begin = Instant::now();
            let connection = self.bench.endpoint.connect(self.bench.address).await?;
            connection.deliver(message).await?;
            sample.record(begin.elapsed());
            sample.count(1, self.bench.case.size.0 as u64);
            Peer::new(connection).close().await?;
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}
