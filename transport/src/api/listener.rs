//! The listener: returns the connections of peers that passed the handshake.

use crate::address::Address;
use crate::api::connection::Connection;
use crate::connect::accept::AcceptedConnections;
use crate::error::Result;
use crate::platform::process::Own;

/// Listens at one address until it is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use towline::{Endpoint, Message, Result};
///
/// let endpoint = Endpoint::new()?;
/// let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
/// let address = listener.address().clone(); // with the port that the system chose
///
/// // An echo server: one task for each peer.
/// tokio::spawn(async move {
///     while let Ok(connection) = listener.accept().await {
///         tokio::spawn(async move {
///             while let Ok(message) = connection.recv().await {
///                 connection.send(message).await?;
///             }
///             Result::<_>::Ok(())
///         });
///     }
/// });
///
/// let connection = endpoint.connect(&address).await?;
/// connection.send(Message::new("echo")).await?;
/// assert_eq!(connection.recv().await?.header(), "echo");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Listener {
    address: Address,
    accepted: Own<AcceptedConnections>,
}

impl Listener {
    pub(crate) fn new((address, accepted): (Address, AcceptedConnections)) -> Self {
        Self { address, accepted: Own::new(accepted) }
    }

    /// Returns the address, with the port or name that was assigned.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the next peer that passed the handshake. Cancel-safe. A peer that fails the handshake receives
    /// the reason; other peers are not affected.
    ///
    /// # Errors
    /// `Closed` if the listener was closed or the endpoint's driver ended.
    pub async fn accept(&self) -> Result<Connection> {
        let accepted = self.accepted.process().run(self.accepted.next()).await;
        accepted
            .and_then(|core| core)
            .map(Connection::from)
            .map_err(|error| error.during("accept").on(&self.address))
    }

    /// Stops listening, as dropping the listener does, and ends the calls of [`accept`](Self::accept) in
    /// progress. Connections live on.
    pub fn close(&self) {
        if self.accepted.process().is_this() {
            self.accepted.close();
        }
    }
}
