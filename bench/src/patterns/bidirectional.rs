//! A window of messages in flight in each direction at once, each confirmed by its receiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::window_tasks::WindowTasks;
use super::{ConnectionPattern, PatternContext};
use crate::failure::Failure;
use crate::peer::{Receiving, Request};
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Bidirectional<'a> {
    bench: PatternContext<'a>,
    /// The number of the next message to send.
    out: Arc<AtomicU64>,
    back: Receiving,
}

impl<'a> Bidirectional<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        bench.peer.require(&Request::Sink(bench.case.spec())).await?;
        let back = Receiving::new(bench.peer.clone(), bench.case.spec())?;
        Ok(Self { bench, out: Arc::default(), back })
    }
}

impl ConnectionPattern for Bidirectional<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let message = self.bench.load.fresh_message(self.out.fetch_add(1, Ordering::Relaxed))?;
        let sent = Instant::now();
        self.bench.peer.connection.deliver(message).await?;
        Ok(Some(sent.elapsed()))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        self.back.ask(until.saturating_duration_since(Instant::now())).await?;
        let window_tasks = WindowTasks::delivering(self.bench, &self.out, until);
        let taken = self.back.all(|_| ()).await?;
        window_tasks.end(sample).await?;
        sample.count(taken, taken * self.bench.case.size.0 as u64);
        Ok(())
    }
}
