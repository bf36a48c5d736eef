//! One-sided reads of the peer's memory, a window of them in flight.

use std::time::{Duration, Instant};

use towline::{BufferMut, RemoteRegion};

use super::window_tasks::WindowTasks;
use super::{ConnectionPattern, PatternContext};
use crate::data::payload::{Check, Layout, check};
use crate::failure::Failure;
use crate::peer::Request;
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Get<'a> {
    bench: PatternContext<'a>,
    remote: RemoteRegion,
    /// The buffer of each task, and the number of the message that it reads next.
    window_tasks: Vec<(BufferMut, u64)>,
}

impl<'a> Get<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        let layout = bench.case.layout();
        let remote = bench.peer.region(&Request::Lend { layout, place: bench.case.places.from }).await?;
        Ok(Self { bench, remote, window_tasks: Vec::new() })
    }
}

impl ConnectionPattern for Get<'_> {
    const GIVES: bool = false;

    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let (layout, how) = (self.bench.case.layout(), self.bench.case.check);
        let pool = self.bench.case.places.to.pool(layout.window, layout.size_bytes)?;
        let into = pool.take(layout.size_bytes)?;
        let begin = Instant::now();
        let offset = layout.offset(0) as u64;
        let got = self.bench.peer.connection.get(&self.remote, offset, into).await?;
        let cold = begin.elapsed();
        judge(&got, layout, 0, how)?;
        let zeros = vec![0; layout.size_bytes];
        for lane in 0..layout.window as u64 {
            let mut warm = pool.take(layout.size_bytes)?;
            warm.extend_from_slice(&zeros)?;
            self.window_tasks.push((warm, lane));
        }
        Ok(Some(cold))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let (layout, how) = (self.bench.case.layout(), self.bench.case.check);
        let mut window_tasks = WindowTasks::new(layout.size_bytes);
        for (mut memory, mut number) in self.window_tasks.drain(..) {
            let (connection, remote) = (self.bench.peer.connection.clone(), self.remote);
            let times = window_tasks.times();
            window_tasks.spawn(async move {
                loop {
                    memory.clear();
                    let begin = Instant::now();
                    let offset = layout.offset(number) as u64;
                    memory = connection.get(&remote, offset, memory).await?;
                    let arrival = begin.elapsed();
                    judge(&memory, layout, number, how)?;
                    times.record(if how == Check::Read { begin.elapsed() } else { arrival });
                    number += layout.window as u64;
                    if Instant::now() >= until {
                        return Ok((memory, number));
                    }
                }
            });
        }
        self.window_tasks = window_tasks.end(sample).await?;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.bench.peer.require(&Request::Withdraw { last: Vec::new(), check: Check::Edges }).await
    }
}

fn judge(memory: &BufferMut, layout: Layout, number: u64, how: Check) -> Result<(), Failure> {
    let bytes = memory.as_slice().unwrap_or_default();
    if bytes.len() != layout.size_bytes {
        return Err(Failure::run(format!("a get of {} bytes brought {}", layout.size_bytes, bytes.len())));
    }
    check(layout, number, 0, bytes, how).map_err(Failure::run)
}
