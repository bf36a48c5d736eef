//! The additional streams of a connection, and the connections that wait for theirs.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::refusal::Refusal;
use super::{Control, HandshakeStream, answer, encoded, out_of_turn, receive, send};
use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;
use crate::wire::handshake::{BINDING_LEN, HandshakeMessage, Join, JoinKey, NAME_LEN};
use crate::{Error, ErrorKind, Result};

/// The connections that wait for additional streams: each half-open connection of the endpoint at most once.
#[derive(Debug, Default)]
pub(crate) struct Joins(Mutex<HashMap<[u8; NAME_LEN], Waiting>>);

struct Waiting {
    key: JoinKey,
    /// By number, from stream 1 on.
    slots: Vec<JoinSlot>,
    joined: Arc<Notify>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("slots", &self.slots).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum JoinSlot {
    Free,
    /// Its answer is being sent.
    Taken,
    Joined(Control),
}

/// One connection that waits for its streams. Dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    joins: &'a Joins,
    name: [u8; NAME_LEN],
    joined: Arc<Notify>,
}

impl Joins {
    fn waiting(&self) -> MutexGuard<'_, HashMap<[u8; NAME_LEN], Waiting>> {
        self.0.lock()
    }

    /// Registers a connection that waits for its additional streams.
    pub(crate) fn expect(&self, key: JoinKey) -> Expected<'_> {
        let (name, joined) = (key.name(), Arc::new(Notify::new()));
        let slots = key.further().map(|_| JoinSlot::Free).collect();
        self.waiting().insert(name, Waiting { key, slots, joined: joined.clone() });
        Expected { joins: self, name, joined }
    }

    /// Joins a stream to the connection that its `Join` names. A stream that does not belong there is
    /// refused, without other effects.
    pub(crate) async fn join(&self, join: &Join, mut stream: Control, env: &dyn Environment) -> Result<()> {
        let taken = stream.binding().and_then(|binding| self.take(join, binding.as_ref()));
        if let Err(error) = taken {
            return Err(Refusal::from(error).deliver(&mut stream, env).await);
        }
        let answered = answer(&mut stream, Ok(())).await;
        // The connection may have stopped waiting: the stream is then dropped.
        if let Some(waiting) = self.waiting().get_mut(&join.connection) {
            waiting.slots[usize::from(join.stream) - 1] = match &answered {
                Ok(()) => JoinSlot::Joined(stream),
                Err(_) => JoinSlot::Free,
            };
            waiting.joined.notify_one();
        }
        answered
    }

    fn take(&self, join: &Join, binding: Option<&[u8; BINDING_LEN]>) -> Result<()> {
        let mut waiting = self.waiting();
        let Some(waiting) = waiting.get_mut(&join.connection) else {
            let why = "no connection waits for this stream: it is late, or reached the wrong listener";
            return Err(Error::new(ErrorKind::Unavailable, why));
        };
        waiting.key.verify(join, binding)?;
        let slot = &mut waiting.slots[usize::from(join.stream) - 1];
        if !matches!(slot, JoinSlot::Free) {
            return Err(Error::new(ErrorKind::Corrupt, format!("stream {} has joined already", join.stream)));
        }
        *slot = JoinSlot::Taken;
        Ok(())
    }
}

impl Expected<'_> {
    /// Waits for all streams and returns them in order.
    ///
    /// `deadline` is a time of `env`'s clock, not a duration.
    pub(crate) async fn all(self, deadline: Duration, env: &dyn Environment) -> Result<Vec<Control>> {
        let all = within(env, deadline, async {
            while !self.slots(|slots| slots.iter().all(|slot| matches!(slot, JoinSlot::Joined(_)))) {
                self.joined.notified().await;
            }
        });
        if all.await.is_none() {
            let (joined, of) = self.slots(|slots| {
                (slots.iter().filter(|slot| matches!(slot, JoinSlot::Joined(_))).count(), slots.len())
            });
            let why = format!("only {joined} of {of} additional streams joined in time");
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
        let slots = self.slots(std::mem::take);
        let joined = slots.into_iter().filter_map(|slot| match slot {
            JoinSlot::Joined(stream) => Some(stream),
            JoinSlot::Free | JoinSlot::Taken => None,
        });
        Ok(joined.collect())
    }

    fn slots<R>(&self, look: impl FnOnce(&mut Vec<JoinSlot>) -> R) -> R {
        match self.joins.waiting().get_mut(&self.name) {
            Some(waiting) => look(&mut waiting.slots),
            None => look(&mut Vec::new()),
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.joins.waiting().remove(&self.name);
    }
}

/// Joins an additional stream to a connection whose acceptor waits for it.
///
/// `deadline` is a time of `env`'s clock, not a duration.
pub(crate) async fn join<S: HandshakeStream>(
    stream: &mut S,
    join: Join,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<()> {
    let word = encoded(&HandshakeMessage::Join(join))?;
    let conversation = async {
        send(stream, &word).await?;
        match receive(stream).await?.0 {
            HandshakeMessage::Ready => Ok(()),
            other => Err(out_of_turn("Ready", &other)),
        }
    };
    match within(env, deadline, conversation).await {
        Some(Ok(())) => Ok(()),
        Some(Err(refusal)) => Err(refusal.deliver(stream, env).await),
        None => {
            Err(Error::new(ErrorKind::TimedOut, "the acceptor did not accept an additional stream in time"))
        }
    }
}
