//! One-sided writes into the peer's memory, a window of them in flight.

use std::time::{Duration, Instant};

use towline::RemoteRegion;

use super::window_tasks::WindowTasks;
use super::{ConnectionPattern, PatternContext};
use crate::failure::Failure;
use crate::peer::Request;
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Put<'a> {
    bench: PatternContext<'a>,
    remote: RemoteRegion,
    /// The number that each task writes next, into its own slot.
    next: Vec<u64>,
}

impl<'a> Put<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        let layout = bench.case.layout();
        let remote = bench.peer.region(&Request::Borrow { layout, place: bench.case.places.to }).await?;
        Ok(Self { bench, remote, next: (0..layout.window as u64).collect() })
    }
}

impl ConnectionPattern for Put<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let payload = self.bench.load.fresh_payload(0)?;
        let begin = Instant::now();
        self.bench.peer.connection.put(&self.remote, 0, payload).await?;
        Ok(Some(begin.elapsed()))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let layout = self.bench.case.layout();
        let mut window_tasks = WindowTasks::new(layout.size_bytes);
        for mut number in self.next.drain(..) {
            let (connection, load) = (self.bench.peer.connection.clone(), self.bench.load.clone());
            let (remote, times) = (self.remote, window_tasks.times());
            window_tasks.spawn(async move {
                let offset = (layout.slot(number) * layout.size_bytes) as u64;
                loop {
                    let payload = load.payload(number);
                    let begin = Instant::now();
                    connection.put(&remote, offset, payload).await?;
                    times.record(begin.elapsed());
                    number += layout.window as u64;
                    if Instant::now() >= until {
                        return Ok(number);
                    }
                }
            });
        }
        self.next = window_tasks.end(sample).await?;
        Ok(())
    }

    /// Has the peer check the last message of each slot.
    async fn finish(&mut self) -> Result<(), Failure> {
        let layout = self.bench.case.layout();
        let mut last = vec![None; layout.window];
        for next in &self.next {
            last[layout.slot(*next)] = next.checked_sub(layout.window as u64);
        }
        self.bench.peer.require(&Request::Withdraw { last, check: self.bench.case.check }).await
    }
}
