//! As many messages a second as possible: one task sends them, and confirms them a window behind.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towline::{Message, Receipt};

use super::{ConnectionPattern, PatternContext, open};
use crate::failure::Failure;
use crate::peer::Request;
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Rate<'a> {
    bench: PatternContext<'a>,
    number: u64,
}

impl<'a> Rate<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        bench.peer.require(&Request::Sink(bench.case.spec())).await?;
        Ok(Self { bench, number: 0 })
    }

    /// Returns the next message, in warm memory.
    fn message(&mut self) -> Message {
        self.number += 1;
        self.bench.load.message(self.number - 1)
    }

    /// Sends by a schedule. Each message is confirmed as soon as its receipt resolves.
    async fn offer(&mut self, rate: u32, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let PatternContext { case, peer, .. } = self.bench;
        let send = async || Ok(peer.connection.send(self.message()).await?);
        let confirm = async |due: Instant, receipt: Receipt| {
            receipt.delivered().await?;
            sample.record(due.elapsed());
            sample.count(1, case.size.0 as u64);
            Ok(())
        };
        open::offer(case, rate, until, send, confirm).await
    }
}

impl ConnectionPattern for Rate<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let message = self.bench.load.fresh_message(self.number)?;
        self.number += 1;
        let sent = Instant::now();
        self.bench.peer.connection.deliver(message).await?;
        Ok(Some(sent.elapsed()))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        if let Some(rate) = self.bench.case.rate {
            return self.offer(rate, until, sample).await;
        }
        let connection = &self.bench.peer.connection;
        let mut unconfirmed: VecDeque<(Instant, Receipt)> = VecDeque::with_capacity(self.bench.case.window);
        // The clock is read once a message: the end of one is the start of the next.
        let mut now = Instant::now();
        loop {
            let done = now >= until && sample.messages > 0;
            if done || unconfirmed.len() >= self.bench.case.window {
                let Some((sent, receipt)) = unconfirmed.pop_front() else { return Ok(()) };
                receipt.delivered().await?;
                now = Instant::now();
                sample.record(now - sent);
                sample.count(1, self.bench.case.size.0 as u64);
            } else {
                let receipt = connection.send(self.message()).await?;
                unconfirmed.push_back((now, receipt));
            }
        }
    }
}
