//! The two halves of a split connection.

use super::{Connection, Receipt};
use crate::api::incoming::Incoming;
use crate::error::{Failed, Result};
use crate::memory::BufferMut;
use crate::transfer::message::Message;

/// The sending half of a split connection, from [`Connection::split`]. Clones send on the same connection.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// # use towline::{Endpoint, Message};
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let (sender, _receiver) = near.split();
/// let (_sender, mut receiver) = far.split();
/// let sending = tokio::spawn(async move { sender.deliver(Message::new("hello")).await });
/// assert_eq!(receiver.recv().await?.header(), "hello");
/// sending.await.expect("the task does not panic")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sender(pub(super) Connection);

impl Sender {
    /// See [`Connection::send`].
    pub async fn send(&self, message: Message) -> Result<Receipt, Failed<Message>> {
        self.0.send(message).await
    }

    /// See [`Connection::deliver`].
    pub async fn deliver(&self, message: Message) -> Result<()> {
        self.0.deliver(message).await
    }

    /// The whole connection.
    pub fn connection(&self) -> &Connection {
        &self.0
    }
}

/// The receiving half of a split connection, from [`Connection::split`].
#[derive(Debug)]
pub struct Receiver(pub(super) Connection);

impl Receiver {
    /// See [`Connection::recv`].
    pub async fn recv(&mut self) -> Result<Message> {
        self.0.recv().await
    }

    /// See [`Connection::recv_into`].
    pub async fn recv_into(&mut self, buffer: BufferMut) -> Result<Message, Failed<BufferMut>> {
        self.0.recv_into(buffer).await
    }

    /// See [`Connection::incoming`].
    pub async fn incoming(&mut self) -> Result<Incoming> {
        self.0.incoming().await
    }

    /// The whole connection.
    pub fn connection(&self) -> &Connection {
        &self.0
    }
}
