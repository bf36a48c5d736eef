//! The messages that a peer sends back to the worker that connected to it.

use std::sync::Arc;
use std::time::Duration;

use super::confirmations::ConfirmationCounter;
use crate::data::payload::MessageSpec;
use crate::failure::Failure;
use crate::peer::{Peer, Receiving, Request};

/// Messages from a peer to which the worker also sends.
#[derive(Debug)]
pub(super) struct ReverseFlow {
    pub(super) peer: Peer,
    pub(super) spec: MessageSpec,
    /// Counts the received messages, and holds whether the peer was asked to stop.
    pub(super) confirmations: Arc<ConfirmationCounter>,
}

impl ReverseFlow {
    /// Asks the peer to send, and returns a future that takes its messages until the peer stops.
    pub(super) async fn begin(
        &self,
    ) -> Result<impl Future<Output = Result<(), Failure>> + Send + 'static, Failure> {
        let mut taking = Receiving::new(self.peer.clone(), self.spec)?;
        // The peer sends until it is asked to stop: the end of all other counts is not known yet.
        taking.ask(Duration::MAX).await?;
        let confirmations = self.confirmations.clone();
        Ok(async move {
            taking.all(|now| confirmations.take(now)).await?;
            let early = || Failure::run("the far end stopped sending before it was asked to");
            confirmations.stopped().then_some(()).ok_or_else(early)
        })
    }

    /// Asks the peer to stop.
    pub(super) async fn enough(&self) -> Result<(), Failure> {
        self.confirmations.stop();
        self.peer.notify(&Request::Enough).await
    }
}
