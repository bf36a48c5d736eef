//! The asking half takes what it had the serving half send.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use towline::Message;

use super::{Answer, MessageReceiver, Peer, Request, is_conversation};
use crate::data::messages::inspect;
use crate::data::payload::MessageSpec;
use crate::failure::Failure;

/// Messages that come from the serving half, of the kind that a [`Request::Sink`] told it.
#[derive(Debug)]
pub(crate) struct Receiving {
    peer: Peer,
    spec: MessageSpec,
    intake: MessageReceiver,
    /// The number of the next message.
    next: u64,
    /// The last window of messages: so much memory is landed in, in turn.
    held: VecDeque<Message>,
}

impl Receiving {
    pub(crate) fn new(peer: Peer, spec: MessageSpec) -> Result<Self, Failure> {
        let intake = peer.intake(spec)?;
        Ok(Self { peer, spec, intake, next: 0, held: VecDeque::new() })
    }

    /// Has the serving half send for so long; what comes must be taken, or it waits.
    pub(crate) async fn ask(&self, time: Duration) -> Result<(), Failure> {
        let duration_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.peer.tell(&Request::Send { first: self.next, duration_ms }).await
    }

    /// Takes and checks what comes, and tells `taken` of each, until the serving half says how many they were.
    pub(crate) async fn all(&mut self, mut taken: impl FnMut(Instant)) -> Result<u64, Failure> {
        let first = self.next;
        loop {
            let message = self.intake.next().await?;
            if is_conversation(message.header()) {
                let came = self.next - first;
                return match serde_json::from_slice(message.header()) {
                    Ok(Answer::Sent { messages }) if messages == came => Ok(messages),
                    Ok(Answer::Problem { why }) => Err(Failure::run(format!("the serving side: {why}"))),
                    other => Err(Failure::run(format!(
                        "{came} messages came, and the serving side says {other:?}"
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
