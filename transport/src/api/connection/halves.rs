//! A connection in two halves, for two tasks.

use super::{Connection, Receipt};
use crate::api::incoming::Incoming;
use crate::error::{Failed, Result};
use crate::memory::BufferMut;
use crate::transfer::message::Message;

/// The sending half of a split connection.
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

/// The receiving half of a split connection.
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
