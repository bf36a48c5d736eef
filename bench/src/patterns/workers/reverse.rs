//! What the far end sends to a worker that connected to it.

use std::sync::Arc;
use std::time::Duration;

use super::confirmations::ConfirmationCounter;
use crate::data::payload::MessageSpec;
use crate::failure::Failure;
use crate::peer::{Peer, Receiving, Request};

/// Messages from a peer that a worker sends to as well.
#[derive(Debug)]
pub(super) struct ReverseFlow {
    pub(super) peer: Peer,
    pub(super) spec: MessageSpec,
    /// What came, and whether the peer was told to stop.
    pub(super) confirmations: Arc<ConfirmationCounter>,
}

impl ReverseFlow {
    /// Has the peer send, and gives what takes it until the peer has sent enough.
    pub(super) async fn begin(
        &self,
    ) -> Result<impl Future<Output = Result<(), Failure>> + Send + 'static, Failure> {
        let mut taking = Receiving::new(self.peer.clone(), self.spec)?;
        // It is told when it is enough: how long all others count is not known yet.
        taking.ask(Duration::MAX).await?;
        let confirmations = self.confirmations.clone();
        Ok(async move {
            taking.all(|now| confirmations.take(now)).await?;
            let early = || Failure::run("the far end stopped sending before it was told to");
            confirmations.stopped().then_some(()).ok_or_else(early)
        })
    }

    /// Tells the peer that it was enough.
    pub(super) async fn enough(&self) -> Result<(), Failure> {
        self.confirmations.stop();
        self.peer.tell(&Request::Enough).await
    }
}
