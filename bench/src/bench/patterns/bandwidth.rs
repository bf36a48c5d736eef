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
    /// The next message's number; a lane takes it in the same step as it sends, so numbers leave in order.
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
        let mut lanes = Lanes::new(self.bench.case.size.0);
        for _ in 0..self.bench.case.window {
            let (connection, load) = (self.bench.peer.connection.clone(), self.bench.load.clone());
            let (next, tally) = (self.next.clone(), lanes.tally());
            lanes.spawn(async move {
                loop {
                    let message = load.message(next.fetch_add(1, Ordering::Relaxed));
                    let sent = Instant::now();
                    connection.deliver(message).await?;
                    tally.record(sent.elapsed());
                    if Instant::now() >= until {
                        return Ok(());
                    }
                }
            });
        }
        lanes.end(sample).await.map(drop)
    }
}
