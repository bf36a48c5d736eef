//! Where peers arrive.

use crate::address::Address;
use crate::api::connection::Connection;
use crate::connect::accept::Arrivals;
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
/// let address = listener.address().clone(); // with the port that it was given
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
    arrivals: Own<Arrivals>,
}

impl Listener {
    pub(crate) fn new((address, arrivals): (Address, Arrivals)) -> Self {
        Self { address, arrivals: Own::new(arrivals) }
    }

    /// Where it listens, with the port or name it was given.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next peer that passed the handshake. Cancel-safe. A peer that fails it is told why, and nobody else notices.
    ///
    /// # Errors
    /// `Closed` if the endpoint's driver ended.
    pub async fn accept(&self) -> Result<Connection> {
        let accepted = self.arrivals.process().run(self.arrivals.next()).await;
        accepted
            .and_then(|core| core)
            .map(Connection::from)
            .map_err(|error| error.during("accept").on(&self.address))
    }
}
