//! What the far end sends to a worker that connected to it.

use std::sync::Arc;
use std::time::Duration;

use super::tally::Tally;
use crate::data::payload::Cargo;
use crate::failure::Failure;
use crate::peer::{Peer, Request, Taking};

/// Messages from a peer that a worker sends to as well.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) peer: Peer,
    pub(super) cargo: Cargo,
    /// What came, and whether the peer was told to stop.
    pub(super) tally: Arc<Tally>,
}

impl Back {
    /// Has the peer send, and gives what takes it until the peer has sent enough.
    pub(super) async fn begin(
        &self,
    ) -> Result<impl Future<Output = Result<(), Failure>> + Send + 'static, Failure> {
        let mut taking = Taking::new(self.peer.clone(), self.cargo)?;
        // It is told when it is enough: how long all others count is not known yet.
        taking.ask(Duration::MAX).await?;
        let tally = self.tally.clone();
        Ok(async move {
            taking.all(|now| tally.take(now)).await?;
            let early = || Failure::run("the far end stopped sending before it was told to");
            tally.stopped().then_some(()).ok_or_else(early)
        })
    }

    /// Tells the peer that it was enough.
    pub(super) async fn enough(&self) -> Result<(), Failure> {
        self.tally.stop();
        self.peer.tell(&Request::Enough).await
    }
}
