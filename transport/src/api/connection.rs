//! The connection to one peer: sends, receives, and reads and writes the peer's regions.

mod halves;
mod receipt;

use std::net::SocketAddr;
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
use crate::progress::prefetch::Prefetch;
use crate::transfer::message::Message;
use crate::transfer::region::{Region, RegionAccess, RemoteRegion};

/// An ordered, reliable, full-duplex message connection to one peer.
///
/// | purpose | methods |
/// |---|---|
/// | send | [`send`](Self::send), [`deliver`](Self::deliver) |
/// | receive | [`recv`](Self::recv), [`recv_into`](Self::recv_into), [`incoming`](Self::incoming) |
/// | receive ahead | [`prefetch`](Self::prefetch), [`try_recv`](Self::try_recv) |
/// | share memory | [`expose`](Self::expose), [`expose_mut`](Self::expose_mut) |
/// | access the peer's memory | [`get`](Self::get), [`put`](Self::put) |
/// | inspect | [`peer`](Self::peer), [`path`](Self::path), [`caps`](Self::caps), [`stats`](Self::stats) |
/// | addresses | [`local_address`](Self::local_address), [`peer_address`](Self::peer_address) |
/// | explain | [`explain`](Self::explain), [`measure`](Self::measure), [`be_measured`](Self::be_measured) |
/// | end | [`close`](Self::close), [`abort`](Self::abort) |
/// | learn of the end | [`closed`](Self::closed), [`close_reason`](Self::close_reason) |
///
/// Clones are handles to the same connection. Dropping the last one closes it gracefully, in the background
/// and within the endpoint's `linger`. [`close`](Self::close) does the same and waits for the end. A handle to
/// a connection that has ended holds no descriptor and no memory of the link.
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
/// // A timeout bounds a call: a dropped `recv` loses nothing.
/// assert!(tokio::time::timeout(Duration::from_millis(1), far.recv()).await.is_err());
///
/// // After a graceful close the peer receives what was sent before, and then `Closed`.
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

    /// Returns the peer's identity.
    pub fn peer(&self) -> &Identity {
        &self.core().peer
    }

    /// Returns this end's socket address. Never waits, and is the same after the end.
    ///
    /// It is the address of the socket that the connection was established on, whichever path carries the
    /// data: over `shm`, `ucx` and `mem` too. The peer's [`peer_address`](Self::peer_address) is equal to it,
    /// unless an address translator is between them. `None` for a `mem://` address, which has no socket.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> towline::Result<()> {
    /// # use towline::Endpoint;
    /// # let endpoint = Endpoint::new()?;
    /// let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
    /// let near = endpoint.connect(listener.address()).await?;
    /// let far = listener.accept().await?;
    /// assert_eq!(near.local_address(), far.peer_address());
    /// assert_eq!(near.peer_address().map(|at| at.port()), Some(listener.address().port()));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "local_addr")]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.path().addresses.map(|(local, _)| local)
    }

    /// Returns the peer's socket address. See [`local_address`](Self::local_address).
    #[doc(alias = "peer_addr")]
    #[doc(alias = "remote_address")]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.path().addresses.map(|(_, peer)| peer)
    }

    /// Returns the path that carries the data, and why it was chosen.
    pub fn path(&self) -> &Path {
        &self.core().path
    }

    /// Returns the capabilities of this link.
    pub fn caps(&self) -> Caps {
        self.core().link.load().caps()
    }

    /// Returns the counters so far. All are zero in a process that inherited the connection.
    pub fn stats(&self) -> Stats {
        if self.core().is_ours() { self.core().counts.stats() } else { Stats::default() }
    }

    /// Sends `message`. Ends when its memory can be reused. The receipt reports whether the receiver accepted
    /// it.
    ///
    /// Waits while the receiver has granted no credit. Dropping the future detaches it: the message is still
    /// sent. Small messages sent without a wait between them are coalesced. They leave when they fill a
    /// packet or two, when any call waits on this connection, or when the sending task yields. A task that
    /// computes without yielding delays them by up to 50 ms.
    ///
    /// # Errors
    /// `TooLarge` beyond the limits of [`Message`], `PeerLost`, `Closed`. The message is returned.
    pub async fn send(&self, message: Message) -> Result<Receipt, Failed<Message>> {
        let span = tracing::trace_span!(parent: &self.core().span, "send", bytes = message.payload_len());
        self.send_with(message, false, true).instrument(span).await
    }

    /// Sends `message` and waits until every byte is in the memory that the receiver chose.
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Rejected` if the receiver rejected it.
    pub async fn deliver(&self, message: Message) -> Result<()> {
        let span = tracing::trace_span!(parent: &self.core().span, "deliver", bytes = message.payload_len());
        let core = self.core();
        let begin = core.driver.environment.now();
        let delivered = async { self.send_with(message, true, false).await?.delivered().await };
        delivered.instrument(span).await?;
        core.counts.deliveries.record_time(core.driver.environment.now().saturating_sub(begin));
        Ok(())
    }

    /// As [`send`](Self::send), without coalescing, for callers that have no task to yield.
    pub(crate) async fn send_uncoalesced(&self, message: Message) -> Result<Receipt, Failed<Message>> {
        let span = tracing::trace_span!(parent: &self.core().span, "send", bytes = message.payload_len());
        self.send_with(message, false, false).instrument(span).await
    }

    async fn send_with(
        &self,
        message: Message,
        ack_now: bool,
        coalesces: bool,
    ) -> Result<Receipt, Failed<Message>> {
        let core = self.core();
        if let Err(error) = message.check() {
            return Err(Failed { error: core.placed(error, "send"), returned: message });
        }
        let payload_len = message.payload_len();
        let (receipt, acked) = Done::new();
        let more = coalesces && core.is_burst();
        let sent = match core.copy(SmallSend { message, receipt, ack_now, more }) {
            None => {
                // A task that never waits must still let its sibling tasks run.
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

    /// Receives the next message, in host memory of the pool. Within a process (`mem`) its frames are the
    /// sender's own buffers, wherever they are. Cancel-safe: a dropped future loses nothing.
    ///
    /// # Errors
    /// `Closed` after the peer closed in good order and everything that it sent was received; `PeerLost`.
    pub async fn recv(&self) -> Result<Message> {
        let span = tracing::trace_span!(parent: &self.core().span, "recv");
        self.core().recv().instrument(span).await
    }

    /// Receives messages ahead of the caller, on the endpoint's driver, from now on: [`recv`](Self::recv) then
    /// returns what has arrived already. For callers on an event loop: their polls copy no payload, and they
    /// are woken once for each message.
    ///
    /// A message counts as delivered when it has arrived, before a caller takes it. What no caller took is
    /// dropped with the last handle. [`incoming`](Self::incoming) and [`recv_into`](Self::recv_into) fail from
    /// now on, since messages already have their memory.
    ///
    /// # Errors
    /// `Invalid` if this connection prefetches already.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> towline::Result<()> {
    /// # use towline::{Endpoint, Message};
    /// use towline::Prefetch;
    /// # let endpoint = Endpoint::new()?;
    /// # let listener = endpoint.listen(&"mem://".parse()?).await?;
    /// # let near = endpoint.connect(listener.address()).await?;
    /// # let far = listener.accept().await?;
    ///
    /// far.prefetch(Prefetch::default().messages(16).writable(true))?;
    /// near.send(Message::new("work").with_frame(vec![1; 100_000])).await?;
    ///
    /// let mut frames = far.recv().await?.into_parts().1;
    /// let mut numbers = frames.remove(0).try_into_mut().expect("the frame is writable");
    /// numbers.as_mut_slice().expect("in host memory")[0] = 2;
    /// # Ok(())
    /// # }
    /// ```
    pub fn prefetch(&self, prefetch: Prefetch) -> Result<()> {
        self.core().prefetch(prefetch).map_err(|error| self.core().placed(error, "prefetch"))
    }

    /// Returns the next message that [`prefetch`](Self::prefetch) has received, if there is one. Does not
    /// wait, and so does not count as a caller that waits: only [`recv`](Self::recv) gets a message beyond
    /// [`Prefetch::bytes`].
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Invalid` if this connection does not prefetch.
    pub fn try_recv(&self) -> Result<Option<Message>> {
        let core = self.core();
        let prefetched = core.check().and_then(|()| {
            let why = "this connection does not prefetch: call prefetch before, or use recv";
            core.prefetched.get().ok_or_else(|| Error::new(ErrorKind::Invalid, why))
        });
        prefetched.map_err(|error| core.placed(error, "recv"))?.try_next()
    }

    /// Receives the next message into `buffer`, its frames one after another.
    ///
    /// Cancel-safe for the message. After cancellation the buffer stays with the connection and its message.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `TooLarge` if the payload exceeds `buffer`'s capacity: the message can
    /// still be received. The buffer is returned.
    pub async fn recv_into(&self, buffer: BufferMut) -> Result<Message, Failed<BufferMut>> {
        self.core().recv_into(buffer).await
    }

    /// Receives the header and frame table of the next message, before its payload has a destination.
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn incoming(&self) -> Result<Incoming> {
        Incoming::next(self).await
    }

    /// Allows the peer to read `buffer` until `lifetime` has passed, the region is revoked, or the connection
    /// ends.
    ///
    /// # Errors
    /// `Unsupported` if this link has no one-sided operations, or the buffer is not in host memory.
    pub fn expose(&self, buffer: Buffer, lifetime: Duration) -> Result<Region<Buffer>, Failed<Buffer>> {
        if let Err(error) = self.core().check_one_sided(buffer.is_readable()) {
            return Err(Failed { error, returned: buffer });
        }
        Ok(self.core().regions.expose(buffer, lifetime))
    }

    /// Allows the peer to write the filled part of `buffer` until `lifetime` has passed, the region is
    /// revoked, or the connection ends.
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

    /// Reads `[offset, offset + n)` of the peer's region into the spare part of `into`, where `n` is its
    /// spare capacity.
    ///
    /// # Errors
    /// `Rejected` outside the region, or after its revocation or lifetime; `PeerLost`, `Closed`. The buffer
    /// is returned, filled as far as it was when the call began.
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

    /// Writes `from` to `offset` of the peer's region. Ends when the bytes are there.
    ///
    /// A put that fails in transit may have written any part of its range. The owner is not notified which.
    /// With `integrity=crc32c` it has written only whole chunks that passed their checksums, of at most 1 MiB
    /// each.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn put(&self, region: &RemoteRegion, offset: u64, from: Buffer) -> Result<(), Failed<Buffer>> {
        let core = self.core();
        let fine = core
            .check_one_sided(from.is_empty() || from.is_readable())
            .and_then(|()| region.check(RegionAccess::Write, offset, from.len() as u64));
        if let Err(error) = fine {
            return Err(Failed { error: core.placed(error, "put"), returned: from });
        }
        let (from, put) = Operation::new(from);
        core.perform(Op::Put { region: *region, offset, from }, &put)
            .await
            .map_err(|failed| core.failed(failed, "put"))
    }

    /// Closes in good order, within the endpoint's `linger`: submitted operations are sent first. The peer
    /// can still receive what arrived, and then gets `Closed`.
    ///
    /// # Errors
    /// `TimedOut` if the peer did not take part within `linger`. The connection has ended all the same.
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

    /// Ends the connection at once: everything in flight fails and returns its memory. Does nothing in a
    /// process that inherited it.
    pub fn abort(&self) {
        if !self.core().is_ours() {
            return;
        }
        self.core().link.load().end(Error::new(ErrorKind::Closed, "this end aborted the connection"));
    }

    /// Waits until the connection has ended, and returns why. It receives no message: those that arrived
    /// before the end can still be received.
    ///
    /// The end is noticed although no caller receives: at once where the peer closed, aborted or exited, within
    /// 50 ms where a receiving task of this process is busy, and after three heartbeat intervals where the
    /// peer is silent. The connection's descriptors are returned soon after, whoever still holds a handle.
    /// Cancel-safe, and any number of tasks may wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> towline::Result<()> {
    /// # use towline::{Endpoint, ErrorKind, Message};
    /// # let endpoint = Endpoint::new()?;
    /// # let listener = endpoint.listen(&"mem://".parse()?).await?;
    /// # let near = endpoint.connect(listener.address()).await?;
    /// # let far = listener.accept().await?;
    /// near.send(Message::new("the last one")).await?;
    /// assert!(far.close_reason().is_none());
    /// near.close().await?;
    /// assert_eq!(far.closed().await.kind(), ErrorKind::Closed);
    /// assert_eq!(far.recv().await?.header(), "the last one");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The kind is `Closed` after a [`close`](Self::close) at either end and after an [`abort`](Self::abort)
    /// at this one, `PeerLost` if the peer was lost or aborted, `TimedOut` if the peer did not take part in
    /// this end's close, and another where this end gave the link up, as `Corrupt` after a protocol
    /// violation. In a process that inherited the connection it is `Unsupported`, at once.
    #[doc(alias = "ended")]
    pub async fn closed(&self) -> Error {
        let core = self.core();
        let why = core.waiters.process.run(core.inbox.closed()).await;
        core.ended(why.unwrap_or_else(|inherited| inherited))
    }

    /// Returns why the connection has ended, or `None` while it is open. Never waits. See
    /// [`closed`](Self::closed).
    #[doc(alias = "is_closed")]
    pub fn close_reason(&self) -> Option<Error> {
        let core = self.core();
        let why = core.check().map_or_else(Some, |()| core.inbox.ended())?;
        Some(core.ended(why))
    }

    /// Splits the connection into a sending and a receiving half, for two tasks. Both are handles to this
    /// connection.
    pub fn split(self) -> (Sender, Receiver) {
        (Sender(self.clone()), Receiver(self))
    }
}
