//! Receives the messages that the serving side was asked to send.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towline::Message;

use super::{Answer, MessageReceiver, Peer, Request, is_conversation};
use crate::data::messages::inspect;
use crate::data::payload::MessageSpec;
use crate::failure::Failure;

/// Messages of the serving side, of the spec of a [`Request::Sink`].
#[derive(Debug)]
pub(crate) struct Receiving {
    peer: Peer,
    spec: MessageSpec,
    intake: MessageReceiver,
    /// The number of the next message.
    next: u64,
    /// The last window of messages, so that as much memory is received into, in turn.
    held: VecDeque<Message>,
}

impl Receiving {
    pub(crate) fn new(peer: Peer, spec: MessageSpec) -> Result<Self, Failure> {
        let intake = peer.intake(spec)?;
        Ok(Self { peer, spec, intake, next: 0, held: VecDeque::new() })
    }

    /// Asks the serving side to send for `time`. The messages must be taken, or it blocks.
    pub(crate) async fn ask(&self, time: Duration) -> Result<(), Failure> {
        let duration_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.peer.notify(&Request::Send { first: self.next, duration_ms }).await
    }

    /// Takes and checks the messages, and calls `taken` for each, until the serving side reports their
    /// number.
    pub(crate) async fn all(&mut self, mut taken: impl FnMut(Instant)) -> Result<u64, Failure> {
        let first = self.next;
        loop {
            let message = self.intake.next().await?;
            if is_conversation(message.header()) {
                let received = self.next - first;
                return match serde_json::from_slice(message.header()) {
                    Ok(Answer::Sent { messages }) if messages == received => Ok(messages),
                    Ok(Answer::Problem { why }) => Err(Failure::run(format!("the serving side: {why}"))),
                    other => Err(Failure::run(format!(
                        "{received} messages arrived, but the serving side reports {other:?}"
                    ))),
                };
            }
            inspect(&message, self.spec, self.next).map_err(Failure::run)?;
            self.next += 1;
            if self.held.len() >= self.spec.layout.window {
                self.held.pop_front();
            }
            self.held.push_back(message);
            taken(Instant::now());
        }
    }
}
