//! A window of messages in flight, one way, each confirmed by the receiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::lanes::Lanes;
use super::{Bench, Exercise};
use crate::bench::sample::Sample;
use crate::failure::Failure;
use crate::peer::Request;

#[derive(Debug)]
pub(super) struct Bandwidth<'a> {
    bench: Bench<'a>,
    /// The next message's number.
    next: Arc<AtomicU64>,
}

impl<'a> Bandwidth<'a> {
    pub(super) async fn new(bench: Bench<'a>) -> Result<Self, Failure> {
        let (layout, frames, check) = (bench.case.layout(), bench.case.frames, bench.case.check());
        bench.peer.require(&Request::Sink { layout, frames, check }).await?;
        Ok(Self { bench, next: Arc::default() })
    }
}

impl Exercise for Bandwidth<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let message = self.bench.load.fresh_message(number)?;
        let sent = Instant::now();
        self.bench.peer.connection.deliver(message).await?;
        Ok(Some(sent.elapsed()))
    }

    /// One task for each message in flight.
    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        Lanes::delivering(self.bench, &self.next, until).end(sample).await.map(drop)
    }
}
