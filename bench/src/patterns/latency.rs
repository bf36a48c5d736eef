//! One round trip after another; a latency is half of one. With a schedule, whole round trips, as many as are
//! due.

use std::time::{Duration, Instant};

use towline::Message;

use super::{ConnectionPattern, PatternContext, open};
use crate::data::messages::inspect;
use crate::data::payload::Check;
use crate::data::place::Places;
use crate::failure::Failure;
use crate::peer::{MessageReceiver, Request};
use crate::results::sample::Sample;

#[derive(Debug)]
pub(super) struct Latency<'a> {
    bench: PatternContext<'a>,
    intake: MessageReceiver,
    number: u64,
}

impl<'a> Latency<'a> {
    pub(super) async fn new(bench: PatternContext<'a>) -> Result<Self, Failure> {
        let spec = bench.case.spec();
        // An echo copies nothing, but is sent from where the message was received. A requested place
        // therefore needs a message of the far end's own memory.
        let echo = Request::Echo { read: spec.check == Check::Read };
        let request = if spec.places == Places::default() { echo } else { Request::Reply(spec) };
        bench.peer.require(&request).await?;
        Ok(Self { bench, intake: bench.peer.intake(spec)?, number: 0 })
    }

    /// Returns the time of the round trip of `message`. The reply is checked after that time ends, unless
    /// reading is part of it.
    async fn round_trip(&mut self, message: Message) -> Result<Duration, Failure> {
        let sent = Instant::now();
        self.bench.peer.connection.send(message).await?;
        let back = self.intake.next().await?;
        let time = self.inspect(&back, self.number, sent)?;
        self.number += 1;
        Ok(time)
    }

    /// Checks the reply and returns the time since `begin`.
    fn inspect(&self, back: &Message, number: u64, begin: Instant) -> Result<Duration, Failure> {
        let case = self.bench.case;
        let arrival = begin.elapsed();
        inspect(back, case.spec(), number).map_err(Failure::run)?;
        Ok(if case.check == Check::Read { begin.elapsed() } else { arrival })
    }

    /// Sends by a schedule. A time that starts when the message was due has no meaningful half, so it is that
    /// of the whole round trip.
    async fn offer(&mut self, rate: u32, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        let PatternContext { case, peer, load, .. } = self.bench;
        let (mut out, mut back) = (self.number, self.number);
        let send = async || {
            let message = load.message(out);
            out += 1;
            peer.connection.send(message).await?;
            Ok(())
        };
        let confirm = async |due: Instant, ()| {
            let message = self.intake.next().await?;
            sample.record(self.inspect(&message, back, due)?);
            sample.count(1, 2 * case.size.0 as u64);
            back += 1;
            Ok(())
        };
        open::offer(case, rate, until, send, confirm).await?;
        self.number = back;
        Ok(())
    }
}

impl ConnectionPattern for Latency<'_> {
    async fn cold(&mut self) -> Result<Option<Duration>, Failure> {
        let message = self.bench.load.fresh_message(self.number)?;
        let time = self.round_trip(message).await?;
        Ok(Some(if self.bench.case.rate.is_some() { time } else { time / 2 }))
    }

    async fn run(&mut self, until: Instant, sample: &mut Sample) -> Result<(), Failure> {
        if let Some(rate) = self.bench.case.rate {
            return self.offer(rate, until, sample).await;
        }
        loop {
            let message = self.bench.load.message(self.number);
            let time = self.round_trip(message).await?;
            sample.record(time / 2);
            // A round trip is two messages.
            sample.count(2, 2 * self.bench.case.size.0 as u64);
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}
