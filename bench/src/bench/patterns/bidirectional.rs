//! A window of messages in flight each way at once, each confirmed by its receiver.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towline::Message;

use super::lanes::Lanes;
use super::{Bench, Exercise};
use crate::bench::sample::Sample;
use crate::failure::Failure;
use crate::peer::{Answer, Request, encode, inspect, is_conversation};

#[derive(Debug)]
pub(super) struct Bidirectional<'a> {
    bench: Bench<'a>,
    /// The number of the next message out.
    out: Arc<AtomicU64>,
    /// The number of the next message in.
    back: u64,
    /// The last window of messages that came: so much memory is landed in, in turn.
    held: VecDeque<Message>,
}

impl<'a> Bidirectional<'a> {
    pub(super) async fn new(bench: Bench<'a>) -> Result<Self, Failure> {
        let (layout, frames, check) = (bench.case.layout(), bench.case.frames, bench.case.check());
        bench.peer.require(&Request::Sink { layout, frames, check }).await?;
        Ok(Self { bench, out: Arc::default(), back: 0, held: VecDeque::new() })
    }

    /// Takes what the peer sends, until it says how many they were.
    async fn take(&mut self) -> Result<u64, Failure> {
        let (case, first) = (self.bench.case, self.back);
        loop {
            let message = self.bench.peer.connection.recv().await?;
            if is_conversation(message.header()) {
                return match serde_json::from_slice(message.header()) {
                    Ok(Answer::Sent { messages }) if messages == self.back - first => Ok(messages),
                    Ok(Answer::Problem { why }) => Err(Failure::run(format!("the serving side: {why}"))),
                    other => {
                        let came = self.back - first;
                        Err(Failure::run(format!(
                            "{came} messages came, and the serving side says {other:?}"
                        )))
                    }
                };
            }
            inspect(&message, case.layout(), case.frames, case.check(), self.back).map_err(Failure::run)?;
            self.back += 1;
            if self.held.len() >= case.window {
                self.held.pop_front();
            }
            self.held.push_back(message);
        }
    }
}

impl Exercise for Bidirectional<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let message = self.bench.load.fresh_message(self.out.fetch_add(1, Ordering::Relaxed))?;
        let sent = Instant::now();
        self.bench.peer.connection.deliver(message).await?;
        Ok(Some(sent.elapsed()))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let left = until.saturating_duration_since(Instant::now());
        let request = Request::Send { first: self.back, duration_ms: left.as_millis() as u64 };
        let header = encode(&request).map_err(Failure::run)?;
        self.bench.peer.connection.send(Message::new(header)).await?;
        let lanes = Lanes::delivering(self.bench, &self.out, until);
        let taken = self.take().await?;
        lanes.end(sample).await?;
        sample.count(taken, taken * self.bench.case.size.0 as u64);
        Ok(())
    }
}
