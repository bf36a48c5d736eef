//! Sends at the serving side: a window of messages in flight, until a time passes or the peer has enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use towline::{Connection, Message};

use super::{Answer, encode};
use crate::data::messages::MessageSource;
use crate::data::payload::Layout;

/// The longest duration.
const DURATION_MS_MAX: u64 = 3_600_000;

/// A request to send.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) connection: Connection,
    pub(super) first: u64,
    pub(super) duration_ms: u64,
    /// Set by [`Request::Enough`](super::Request::Enough).
    pub(super) enough: Arc<AtomicBool>,
}

impl Sending {
    /// Sends, and reports after the last message how many there were, or the failure.
    pub(super) async fn run(self, load: Result<(MessageSource, Layout), String>) {
        let answer = match load {
            Ok((load, layout)) => self.send(&load, layout).await,
            Err(why) => Err(why),
        };
        let header = encode(&answer.unwrap_or_else(|why| Answer::Problem { why }));
        if let Ok(header) = header {
            // A lost peer needs no answer; the session detects the loss.
            let _ = self.connection.send(Message::new(header)).await;
        }
    }

    async fn send(&self, load: &MessageSource, layout: Layout) -> Result<Answer, String> {
        let until = Instant::now() + Duration::from_millis(self.duration_ms.min(DURATION_MS_MAX));
        // A task takes a number in the same step as it sends, so messages leave in order.
        let next = Arc::new(AtomicU64::new(self.first));
        let mut lanes = JoinSet::new();
        for _ in 0..layout.window {
            let (connection, load, next) = (self.connection.clone(), load.clone(), next.clone());
            let enough = self.enough.clone();
            lanes.spawn(async move {
                loop {
                    connection.deliver(load.message(next.fetch_add(1, Ordering::Relaxed))).await?;
                    if Instant::now() >= until || enough.load(Ordering::Relaxed) {
                        return Ok::<_, towline::Error>(());
                    }
                }
            });
        }
        while let Some(end) = lanes.join_next().await {
            end.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        Ok(Answer::Sent { messages: next.load(Ordering::Relaxed) - self.first })
    }
}
