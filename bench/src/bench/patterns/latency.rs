//! One message there and back, in turn: half a round trip.

use std::time::{Duration, Instant};

use towline::Message;

use super::{Bench, Exercise};
use crate::bench::sample::Sample;
use crate::failure::Failure;
use crate::peer::{Request, inspect};

#[derive(Debug)]
pub(super) struct Latency<'a> {
    bench: Bench<'a>,
    number: u64,
}

impl<'a> Latency<'a> {
    pub(super) async fn new(bench: Bench<'a>) -> Result<Self, Failure> {
        bench.peer.require(&Request::Echo).await?;
        Ok(Self { bench, number: 0 })
    }

    /// Half of the time that `message` takes there and back; what comes back is checked outside of that time.
    async fn round_trip(&mut self, message: Message) -> Result<Duration, Failure> {
        let connection = &self.bench.peer.connection;
        let sent = Instant::now();
        connection.send(message).await?;
        let back = connection.recv().await?;
        let half = sent.elapsed() / 2;
        let case = self.bench.case;
        inspect(&back, case.layout(), case.frames, case.check(), self.number).map_err(Failure::run)?;
        self.number += 1;
        Ok(half)
    }
}

impl Exercise for Latency<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let message = self.bench.load.fresh_message(self.number)?;
        self.round_trip(message).await.map(Some)
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        loop {
            let message = self.bench.load.message(self.number);
            let half = self.round_trip(message).await?;
            sample.record(half);
            // There and back are two messages.
            sample.count(2, 2 * self.bench.case.size.0 as u64);
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}
