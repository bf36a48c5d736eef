//! The receiver's acknowledgement of one sent message.

use super::Connection;
use crate::backend::Completion;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::message::Delivery;

/// The receiver's acknowledgement of one sent message. Dropping it drops the acknowledgement, not the
/// message.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// # use towline::Endpoint;
/// use towline::Message;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// // Several messages in flight, and then the acknowledgement of each.
/// let mut receipts = Vec::new();
/// for part in 0..3 {
///     receipts.push(near.send(Message::new(format!("part {part}"))).await?);
/// }
/// for _ in 0..3 {
///     far.recv().await?; // usually in another process
/// }
/// for receipt in receipts {
///     receipt.delivered().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Receipt {
    pub(super) connection: Connection,
    pub(super) acked: Completion<Result<Delivery>>,
}

impl Receipt {
    /// Waits until every byte is in the memory that the receiver chose.
    ///
    /// # Errors
    /// `Rejected` if the receiver rejected the message; `PeerLost` or `Closed` if the connection ended before
    /// the acknowledgement.
    pub async fn delivered(self) -> Result<()> {
        let core = self.connection.core();
        match core.finish(&self.acked).await {
            Ok(Delivery::Delivered) => Ok(()),
            Ok(Delivery::Rejected) => {
                let error = Error::new(ErrorKind::Rejected, "the receiver did not want the message");
                Err(core.placed(error, "send"))
            }
            Err(error) => Err(core.placed(error, "send")),
        }
    }
}
