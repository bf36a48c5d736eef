//! The link to one peer, as its users see it.

mod halves;
mod receipt;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::coop::consume_budget;
use tracing::Instrument;

pub use self::halves::{Receiver, Sender};
pub use self::receipt::Receipt;
use crate::api::incoming::Incoming;
use crate::backend::path::Path;
use crate::backend::{Caps, Done, Identity, Op, Operation, SmallSend};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::memory::{Access, Buffer, BufferMut};
use crate::metrics::Stats;
use crate::progress::core::{Core, OwnedCore};
use crate::transfer::message::Message;
use crate::transfer::region::{Region, RegionAccess, RemoteRegion};

/// An ordered, reliable, message-oriented, full-duplex link to one peer.
///
/// Clones are handles to the same connection. Dropping the last one closes it gracefully, in the background and within the
/// endpoint's `linger`; [`close`](Self::close) does the same and tells when it is done.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use std::time::Duration;
/// use towline::{Buffer, Endpoint, ErrorKind, Message};
///
/// let endpoint = Endpoint::new()?;
/// let listener = endpoint.listen(&"mem://".parse()?).await?;
/// let near = endpoint.connect(listener.address()).await?;
/// let far = listener.accept().await?; // usually in another process
///
/// // A message is a small header and any number of frames.
/// let numbers = Buffer::from(vec![7; 4096]);
/// near.send(Message::new("numbers").with_frame(numbers)).await?;
/// let message = far.recv().await?;
/// assert_eq!((message.header().as_ref(), message.payload_len()), (&b"numbers"[..], 4096));
///
/// // A limit on the time of a call is a timeout around it: a dropped `recv` loses nothing.
/// assert!(tokio::time::timeout(Duration::from_millis(1), far.recv()).await.is_err());
///
/// // After an orderly close the peer takes what was sent before, and then sees `Closed`.
/// near.send(Message::new("the last one")).await?;
/// near.close().await?;
/// assert_eq!(far.recv().await?.header(), "the last one");
/// assert_eq!(far.recv().await.unwrap_err().kind(), ErrorKind::Closed);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Connection {
    handle: Arc<OwnedCore>,
}

impl From<OwnedCore> for Connection {
    fn from(core: OwnedCore) -> Self {
        Self { handle: Arc::new(core) }
    }
}

impl Connection {
    pub(crate) fn core(&self) -> &Arc<Core> {
        self.handle.core()
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Identity {
        &self.core().peer
    }

    /// What carries the bytes, and why.
    pub fn path(&self) -> &Path {
        &self.core().path
    }

    /// What this link promises.
    pub fn caps(&self) -> Caps {
        self.core().link.caps()
    }

    /// What it counted so far; nothing in a process that inherited it.
    pub fn stats(&self) -> Stats {
        if self.core().is_ours() { self.core().counts.stats() } else { Stats::default() }
    }

    /// Sends `message`; ends when its memory can be reused. The receipt tells whether the receiver took it.
    ///
    /// Waits while the receiver has given no credit. A dropped future detaches: the message still leaves. Small messages
    /// that follow one another directly leave together: when they fill a packet or two, when anything waits on this
    /// connection, or when the sending task yields (one that computes instead delays them by up to 50 ms).
    ///
    /// # Errors
    /// `TooLarge` beyond the limits of [`Message`], `PeerLost`, `Closed`; the message comes back.
    pub async fn send(&self, message: Message) -> Result<Receipt, Failed<Message>> {
        let span = tracing::trace_span!(parent: &self.core().span, "send", bytes = message.payload_len());
        self.send_with(message, false, true).instrument(span).await
    }

    /// Sends `message` and waits until every byte is in the memory that the receiver chose.
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Rejected` if the receiver did not want it.
    pub async fn deliver(&self, message: Message) -> Result<()> {
        let span = tracing::trace_span!(parent: &self.core().span, "deliver", bytes = message.payload_len());
        let core = self.core();
        let begin = core.driver.environment.now();
        let delivered = async { self.send_with(message, true, false).await?.delivered().await };
        delivered.instrument(span).await?;
        core.counts.deliveries.record_time(core.driver.environment.now().saturating_sub(begin));
        Ok(())
    }

    /// As [`send`](Self::send), for callers without a task to yield: it waits for no company.
    pub(crate) async fn send_alone(&self, message: Message) -> Result<Receipt, Failed<Message>> {
        let span = tracing::trace_span!(parent: &self.core().span, "send", bytes = message.payload_len());
        self.send_with(message, false, false).instrument(span).await
    }

    async fn send_with(
        &self,
        message: Message,
        ack_now: bool,
        joins: bool,
    ) -> Result<Receipt, Failed<Message>> {
        let core = self.core();
        if let Err(error) = message.check() {
            return Err(Failed { error: core.placed(error, "send"), returned: message });
        }
        let payload_len = message.payload_len();
        let (receipt, acked) = Done::new();
        let more = joins && core.is_burst();
        let sent = match core.copy(SmallSend { message, receipt, ack_now, more }) {
            None => {
                // Who never waits must let its siblings run all the same.
                consume_budget().await;
                Ok(())
            }
            Some(SmallSend { message, receipt, ack_now, more }) => {
                let (message, sent) = Operation::new(message);
                core.perform(Op::Send { message, receipt, ack_now, more }, &sent).await
            }
        };
        match sent {
            Ok(()) => {
                core.counts.sent.record(payload_len);
                Ok(Receipt { connection: self.clone(), acked })
            }
            Err(failed) => Err(core.failed(failed, "send")),
        }
    }

    /// The next message, in pool memory of this host (within a process: in the sender's own buffers, wherever they are).
    /// Cancel-safe: a dropped future loses nothing.
    ///
    /// # Errors
    /// `Closed` after the peer closed in good order and everything it sent was taken, `PeerLost`.
    pub async fn recv(&self) -> Result<Message> {
        let span = tracing::trace_span!(parent: &self.core().span, "recv");
        self.core().recv().instrument(span).await
    }

    /// The next message, its frames one after another in `buffer`.
    ///
    /// Cancel-safe for the message; the buffer then stays with the connection, and goes with the message.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `TooLarge` if `buffer`'s capacity does not hold the payload: the message can still be
    /// received. The buffer comes back.
    pub async fn recv_into(&self, buffer: BufferMut) -> Result<Message, Failed<BufferMut>> {
        self.core().recv_into(buffer).await
    }

    /// The next message's header and frame table, before its payload has a place to land. Cancel-safe.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn incoming(&self) -> Result<Incoming> {
        Incoming::next(self).await
    }

    /// Lets the peer read `buffer` until `lifetime` has passed, the region is revoked, or the connection ends.
    ///
    /// # Errors
    /// `Unsupported` where this link cannot do it, or the buffer is not in host memory.
    pub fn expose(&self, buffer: Buffer, lifetime: Duration) -> Result<Region<Buffer>, Failed<Buffer>> {
        if let Err(error) = self.core().check_one_sided(buffer.as_slice().is_some()) {
            return Err(Failed { error, returned: buffer });
        }
        Ok(self.core().regions.expose(buffer, lifetime))
    }

    /// Lets the peer write the filled part of `buffer` until `lifetime` has passed, the region is revoked, or the
    /// connection ends.
    ///
    /// # Errors
    /// As [`expose`](Self::expose).
    pub fn expose_mut(
        &self,
        buffer: BufferMut,
        lifetime: Duration,
    ) -> Result<Region<BufferMut>, Failed<BufferMut>> {
        if let Err(error) = self.core().check_one_sided(buffer.as_slice().is_some()) {
            return Err(Failed { error, returned: buffer });
        }
        Ok(self.core().regions.expose_mut(buffer, lifetime))
    }

    /// Reads `[offset, offset + n)` of the peer's region into the spare part of `into`, `n` being its spare capacity.
    ///
    /// # Errors
    /// `Rejected` outside the region, after its revocation or lifetime; `PeerLost`, `Closed`. The buffer comes back, filled as
    /// far as it was given.
    pub async fn get(
        &self,
        region: &RemoteRegion,
        offset: u64,
        into: BufferMut,
    ) -> Result<BufferMut, Failed<BufferMut>> {
        let core = self.core();
        let len = (into.capacity() - into.len()) as u64;
        let on_host = into.capacity() == 0 || into.access() == Access::Owned;
        let fine = core.check_one_sided(on_host).and_then(|()| region.check(RegionAccess::Read, offset, len));
        if let Err(error) = fine {
            return Err(Failed { error: core.placed(error, "get"), returned: into });
        }
        let (into, got) = Operation::new(into);
        core.perform(Op::Get { region: *region, offset, into }, &got)
            .await
            .map_err(|failed| core.failed(failed, "get"))
    }

    /// Writes `from` to `offset` of the peer's region; ends when the bytes are there.
    ///
    /// A put that fails on the way has written any part of its range, and the owner is not told which. With
    /// `integrity=crc32c` it has written whole chunks that passed their checksums, of at most 1 MiB, and nothing else.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn put(&self, region: &RemoteRegion, offset: u64, from: Buffer) -> Result<(), Failed<Buffer>> {
        let core = self.core();
        let fine = core
            .check_one_sided(from.is_empty() || from.as_slice().is_some())
            .and_then(|()| region.check(RegionAccess::Write, offset, from.len() as u64));
        if let Err(error) = fine {
            return Err(Failed { error: core.placed(error, "put"), returned: from });
        }
        let (from, put) = Operation::new(from);
        core.perform(Op::Put { region: *region, offset, from }, &put)
            .await
            .map_err(|failed| core.failed(failed, "put"))
    }

    /// Closes in good order: what was submitted leaves first, within the endpoint's `linger`. The peer can still take what
    /// arrived, and then sees `Closed`.
    ///
    /// # Errors
    /// `TimedOut` if the peer did not take part within `linger`; the connection is ended all the same.
    pub async fn close(&self) -> Result<()> {
        let core = self.core();
        let (done, closed) = Done::new();
        core.submit(Op::Close(done));
        core.end_after_linger();
        let span = tracing::debug_span!(parent: &core.span, "close");
        let result = core.finish(&closed).instrument(span).await;
        match result {
            Err(error) if error.kind() == ErrorKind::Closed => Ok(()),
            other => other.map_err(|error| core.placed(error, "close")),
        }
    }

    /// Ends it now: everything in flight fails, and gives its memory back. In a process that inherited it: nothing.
    pub fn abort(&self) {
        if !self.core().is_ours() {
            return;
        }
        self.core().link.end(Error::new(ErrorKind::Closed, "this end aborted the connection"));
    }

    /// A sending and a receiving half, for two tasks. Both are handles to this connection.
    pub fn split(self) -> (Sender, Receiver) {
        (Sender(self.clone()), Receiver(self))
    }
}
