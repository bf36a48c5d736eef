//! A window of messages in flight, one way, each confirmed by the receiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::window_tasks::WindowTasks;
use super::{ConnectionPattern, PatternContext, open};
use crate::failure::Failure;
use crate::peer::Request;
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Bandwidth<'a> {
    bench: PatternContext<'a>,
    /// The number of the next message.
    next: Arc<AtomicU64>,
}

impl<'a> Bandwidth<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        bench.peer.require(&Request::Sink(bench.case.spec())).await?;
        Ok(Self { bench, next: Arc::default() })
    }

    /// Sends by a schedule. Tasks start in the order in which they are spawned, so messages leave in order.
    async fn offer(&self, rate: u32, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let PatternContext { case, peer, load, .. } = self.bench;
        let send = async || {
            let message = load.message(self.next.fetch_add(1, Ordering::Relaxed));
            let connection = peer.connection.clone();
            let deliver = async move { connection.deliver(message).await.map(|()| Instant::now()) };
            Ok(tokio::spawn(deliver))
        };
        let confirm = async |due, delivery: JoinHandle<Result<Instant, towline::Error>>| {
            let delivered =
                delivery.await.map_err(|error| Failure::run(format!("a delivery: {error}")))??;
            sample.record(delivered.saturating_duration_since(due));
            sample.count(1, case.size.0 as u64);
            Ok(())
        };
        open::offer(case, rate, until, send, confirm).await
    }
}

impl ConnectionPattern for Bandwidth<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let message = self.bench.load.fresh_message(number)?;
        let sent = Instant::now();
        self.bench.peer.connection.deliver(message).await?;
        Ok(Some(sent.elapsed()))
    }

    /// Runs one task for each message in flight.
    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        match self.bench.case.rate {
            Some(rate) => self.offer(rate, until, sample).await,
            None => WindowTasks::delivering(self.bench, &self.next, until).end(sample).await.map(drop),
        }
    }
}
