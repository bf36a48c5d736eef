//! The same API for plain threads: a call that waits blocks its thread.
//!
//! Each type here is a thin handle to the type of the same name in the crate's root, and converts to and from
//! it (`From`, `as_async`). A waiting thread polls the link itself and then sleeps on the link's own
//! descriptor, so no other thread is involved. For that, each thread that waits keeps a small runtime (three
//! descriptors) until it ends.
//!
//! ```
//! use std::thread;
//! use std::time::Duration;
//! use towline::{Buffer, Message, blocking::Endpoint};
//!
//! let endpoint = Endpoint::new()?;
//! let listener = endpoint.listen(&"mem://".parse()?)?;
//! let address = listener.address().clone();
//!
//! let worker = thread::spawn(move || -> towline::Result<u64> {
//!     let connection = listener.accept()?.with_deadline(Duration::from_secs(10));
//!     let message = connection.recv()?;
//!     connection.deliver(Message::new("thanks"))?;
//!     Ok(message.payload_len())
//! });
//!
//! let connection = endpoint.connect(&address)?;
//! connection.deliver(Message::new("numbers").with_frame(Buffer::from(vec![7; 4096])))?;
//! assert_eq!(&connection.recv()?.header()[..], b"thanks");
//! assert_eq!(worker.join().expect("it does not panic")?, 4096);
//! # Ok::<(), towline::Error>(())
//! ```
//!
//! # Deadlines
//!
//! `with_deadline` bounds every waiting call of a handle, and of what the handle makes. A call that exceeds
//! its deadline fails with `TimedOut`. Its operation is detached, like that of a dropped future: a message is
//! still sent, and a `get` still fills its buffer. The memory is then freed, which is why [`Failed`] returns
//! an [`Option`] here. A message that was not received can still be received.
//!
//! # Inside an async runtime
//!
//! A blocking call on a thread of an async runtime would block the runtime. Every waiting call fails there
//! with `Invalid` and returns its memory. Await the same call on the type that `as_async` returns. On tokio's
//! blocking threads (`spawn_blocking`), where blocking is allowed, use `Handle::current().block_on`.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use self::wait::{wait, wait_with};
use crate::address::Address;
use crate::api::connection;
use crate::api::endpoint;
use crate::api::explain::Explanation;
use crate::api::incoming;
use crate::api::listener;
use crate::backend::path::Path;
use crate::error::{Error, Failed, Result};
use crate::handshake::Identity;
use crate::memory::{self, Buffer, BufferMut, Pool};
use crate::metrics::Stats;
use crate::progress::prefetch::Prefetch;
use crate::transfer::destination::Destination;
use crate::transfer::message::{FrameInfo, Message};
use crate::transfer::region::{Region, RemoteRegion};

#[cfg(test)]
mod tests;
mod wait;

/// A process's entry point. See [`towline::Endpoint`](crate::Endpoint). To configure it, build that one and
/// convert it with `From`.
///
/// ```
/// use towline::{Message, Wait, blocking::Endpoint};
///
/// let endpoint = Endpoint::from(towline::Endpoint::builder().wait(Wait::Sleep).build()?);
/// let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?)?;
/// let connection = endpoint.connect(listener.address())?;
/// connection.send(Message::new("hello"))?;
/// assert_eq!(listener.accept()?.recv()?.header(), "hello");
/// endpoint.close()?;
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Endpoint(endpoint::Endpoint);

/// Listens at one address. See [`towline::Listener`](crate::Listener).
///
/// ```
/// use std::thread;
/// use towline::{Message, blocking::Endpoint};
///
/// let endpoint = Endpoint::new()?;
/// let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?)?;
/// let address = listener.address().clone(); // with the port that the system chose
///
/// // An echo server: one thread for each peer.
/// thread::spawn(move || {
///     while let Ok(connection) = listener.accept() {
///         thread::spawn(move || {
///             while let Ok(message) = connection.recv() {
///                 if connection.send(message).is_err() {
///                     return;
///                 }
///             }
///         });
///     }
/// });
///
/// let connection = endpoint.connect(&address)?;
/// connection.send(Message::new("echo"))?;
/// assert_eq!(connection.recv()?.header(), "echo");
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    listener: listener::Listener,
    deadline: Option<Duration>,
}

/// A connection to one peer. See [`towline::Connection`](crate::Connection).
///
/// Clones are handles to the same connection, each with its own deadline: one thread may send while another
/// receives.
///
/// ```
/// use std::time::Duration;
/// use towline::{Buffer, ErrorKind, Message, blocking::Endpoint};
///
/// let endpoint = Endpoint::new()?;
/// let listener = endpoint.listen(&"mem://".parse()?)?;
/// let near = endpoint.connect(listener.address())?;
/// let far = listener.accept()?; // usually in another process
///
/// near.send(Message::new("numbers").with_frame(Buffer::from(vec![7; 4096])))?;
/// assert_eq!(far.recv()?.payload_len(), 4096);
///
/// let impatient = far.clone().with_deadline(Duration::from_millis(1));
/// assert_eq!(impatient.recv().unwrap_err().kind(), ErrorKind::TimedOut);
///
/// near.send(Message::new("the last one"))?;
/// near.close()?;
/// assert_eq!(far.recv()?.header(), "the last one");
/// assert_eq!(far.recv().unwrap_err().kind(), ErrorKind::Closed);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Connection {
    connection: connection::Connection,
    deadline: Option<Duration>,
}

/// The receiver's acknowledgement of one sent message. See [`towline::Receipt`](crate::Receipt).
///
/// ```
/// # use towline::blocking::Endpoint;
/// use towline::Message;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?)?;
/// # let near = endpoint.connect(listener.address())?;
/// # let far = listener.accept()?;
/// let receipts = [near.send(Message::new("one"))?, near.send(Message::new("two"))?];
/// far.recv()?; // usually in another process
/// far.recv()?;
/// for receipt in receipts {
///     receipt.delivered()?;
/// }
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug)]
pub struct Receipt {
    receipt: connection::Receipt,
    deadline: Option<Duration>,
}

/// An announced message. Accept it, reject it, or drop it, which rejects it. The connection stays open. See
/// [`towline::Incoming`](crate::Incoming).
///
/// ```
/// # use towline::blocking::Endpoint;
/// use towline::{Buffer, BufferMut, ErrorKind, Destination, Message};
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?)?;
/// # let near = endpoint.connect(listener.address())?;
/// # let far = listener.accept()?;
/// let receipt = near.send(Message::new("tensor").with_frame(Buffer::from(vec![1; 4096])))?;
/// let incoming = far.incoming()?;
/// let buffer = BufferMut::with_alignment(incoming.frames()[0].len.min(1 << 20), 4096)?;
/// let message = incoming.accept_into(vec![Destination::Buffer(buffer)])?;
/// assert!(message.frames()[0].as_ptr().addr().is_multiple_of(4096));
/// receipt.delivered()?;
///
/// let receipt = near.send(Message::new("not wanted"))?;
/// far.incoming()?.reject();
/// assert_eq!(receipt.delivered().unwrap_err().kind(), ErrorKind::Rejected);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug)]
pub struct Incoming {
    incoming: incoming::Incoming,
    deadline: Option<Duration>,
}

/// Host memory that trusted processes of this host may map. See [`towline::Arena`](crate::Arena).
///
/// ```
/// use std::time::Duration;
/// use towline::blocking::Arena;
///
/// let arena = Arena::from(towline::Arena::new(1 << 20)?);
/// // Waits up to a second for free memory.
/// let mut buffer = arena.take_within(100_000, Duration::from_secs(1))?;
/// buffer.extend_from_slice(b"towline")?;
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Arena(memory::Arena);

impl Endpoint {
    /// See [`Endpoint::new`](crate::Endpoint::new).
    pub fn new() -> Result<Self> {
        endpoint::Endpoint::new().map(Self)
    }

    /// Returns the pool of host memory. Received payload is written to it, and buffers to send may be taken
    /// from it.
    pub fn pool(&self) -> &Pool {
        self.0.pool()
    }

    /// See [`Endpoint::listen`](crate::Endpoint::listen).
    pub fn listen(&self, address: &Address) -> Result<Listener> {
        wait(None, self.0.listen(address))
            .and_then(|listened| listened)
            .map(Listener::from)
            .map_err(|error| error.during("listen").on(address))
    }

    /// See [`Endpoint::connect`](crate::Endpoint::connect). Bounded by the endpoint's connect time and
    /// handshake time.
    pub fn connect(&self, address: &Address) -> Result<Connection> {
        wait(None, self.0.connect(address))
            .and_then(|connected| connected)
            .map(Connection::from)
            .map_err(|error| error.during("connect").on(address))
    }

    /// See [`Endpoint::close`](crate::Endpoint::close).
    ///
    /// # Errors
    /// `Invalid` inside an async runtime. Nothing is closed then.
    pub fn close(&self) -> Result<()> {
        wait(None, self.0.close()).map_err(|error| error.during("close"))
    }

    /// Returns the async endpoint behind this handle.
    pub fn as_async(&self) -> &crate::Endpoint {
        &self.0
    }
}

impl From<crate::Endpoint> for Endpoint {
    fn from(endpoint: crate::Endpoint) -> Self {
        Self(endpoint)
    }
}

impl Listener {
    /// Bounds every `accept` from now on. The connections get no deadline from it.
    #[must_use]
    pub fn with_deadline(self, deadline: impl Into<Option<Duration>>) -> Self {
        Self { deadline: deadline.into(), ..self }
    }

    /// Returns the address, with the port or name that was assigned.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// See [`Listener::accept`](crate::Listener::accept). After `TimedOut`, the next call returns the peer.
    pub fn accept(&self) -> Result<Connection> {
        wait(self.deadline, self.listener.accept())
            .and_then(|accepted| accepted)
            .map(Connection::from)
            .map_err(|error| error.during("accept").on(self.address()))
    }

    /// See [`Listener::close`](crate::Listener::close).
    pub fn close(&self) {
        self.listener.close();
    }

    /// Returns the async listener behind this handle.
    pub fn as_async(&self) -> &crate::Listener {
        &self.listener
    }
}

impl From<crate::Listener> for Listener {
    fn from(listener: crate::Listener) -> Self {
        Self { listener, deadline: None }
    }
}

impl Connection {
    /// Bounds every waiting call of this handle, and of the receipts and incoming messages that it makes,
    /// from now on.
    #[must_use]
    pub fn with_deadline(self, deadline: impl Into<Option<Duration>>) -> Self {
        Self { deadline: deadline.into(), ..self }
    }

    /// Returns the peer's identity.
    pub fn peer(&self) -> &Identity {
        self.connection.peer()
    }

    /// See [`Connection::local_address`](crate::Connection::local_address). Never waits.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.connection.local_address()
    }

    /// See [`Connection::peer_address`](crate::Connection::peer_address). Never waits.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.connection.peer_address()
    }

    /// Returns the path that carries the data, and why it was chosen.
    pub fn path(&self) -> &Path {
        self.connection.path()
    }

    /// Returns the counters so far.
    pub fn stats(&self) -> Stats {
        self.connection.stats()
    }

    /// See [`Connection::explain`](crate::Connection::explain).
    ///
    /// # Errors
    /// `Invalid` inside an async runtime, `TimedOut` after the deadline.
    pub fn explain(&self) -> Result<Explanation> {
        self.wait("explain", async { Ok(self.connection.explain().await) })
    }

    /// See [`Connection::measure`](crate::Connection::measure).
    pub fn measure(&self) -> Result<Explanation> {
        self.wait("measure", self.connection.measure())
    }

    /// See [`Connection::be_measured`](crate::Connection::be_measured).
    pub fn be_measured(&self) -> Result<()> {
        self.wait("be measured", self.connection.be_measured())
    }

    /// See [`Connection::send`](crate::Connection::send).
    pub fn send(&self, message: Message) -> Result<Receipt, Failed<Option<Message>>> {
        let receipt =
            self.give(message, "send", async |message| self.connection.send_uncoalesced(message).await)?;
        Ok(Receipt { receipt, deadline: self.deadline })
    }

    /// See [`Connection::deliver`](crate::Connection::deliver).
    pub fn deliver(&self, message: Message) -> Result<()> {
        self.wait("send", self.connection.deliver(message))
    }

    /// See [`Connection::recv`](crate::Connection::recv).
    pub fn recv(&self) -> Result<Message> {
        self.wait("recv", self.connection.recv())
    }

    /// See [`Connection::prefetch`](crate::Connection::prefetch).
    pub fn prefetch(&self, prefetch: Prefetch) -> Result<()> {
        self.connection.prefetch(prefetch)
    }

    /// See [`Connection::try_recv`](crate::Connection::try_recv).
    pub fn try_recv(&self) -> Result<Option<Message>> {
        self.connection.try_recv()
    }

    /// See [`Connection::recv_into`](crate::Connection::recv_into).
    pub fn recv_into(&self, buffer: BufferMut) -> Result<Message, Failed<Option<BufferMut>>> {
        self.give(buffer, "recv", async |buffer| self.connection.recv_into(buffer).await)
    }

    /// See [`Connection::incoming`](crate::Connection::incoming).
    pub fn incoming(&self) -> Result<Incoming> {
        let incoming = self.wait("recv", self.connection.incoming())?;
        Ok(Incoming { incoming, deadline: self.deadline })
    }

    /// See [`Connection::expose`](crate::Connection::expose).
    pub fn expose(&self, buffer: Buffer, lifetime: Duration) -> Result<Region<Buffer>, Failed<Buffer>> {
        self.connection.expose(buffer, lifetime)
    }

    /// See [`Connection::expose_mut`](crate::Connection::expose_mut).
    pub fn expose_mut(
        &self,
        buffer: BufferMut,
        lifetime: Duration,
    ) -> Result<Region<BufferMut>, Failed<BufferMut>> {
        self.connection.expose_mut(buffer, lifetime)
    }

    /// See [`Region::revoke`].
    ///
    /// # Errors
    /// `TimedOut` if the peer's access outlasts the deadline. The region is revoked, and its memory is freed
    /// after the last access.
    pub fn revoke<M: Default>(&self, region: Region<M>) -> Result<M, Failed<Option<Region<M>>>> {
        self.give(region, "revoke", async |region| Ok(region.revoke().await))
    }

    /// See [`Connection::get`](crate::Connection::get).
    pub fn get(
        &self,
        region: &RemoteRegion,
        offset: u64,
        into: BufferMut,
    ) -> Result<BufferMut, Failed<Option<BufferMut>>> {
        self.give(into, "get", async |into| self.connection.get(region, offset, into).await)
    }

    /// See [`Connection::put`](crate::Connection::put).
    pub fn put(
        &self,
        region: &RemoteRegion,
        offset: u64,
        from: Buffer,
    ) -> Result<(), Failed<Option<Buffer>>> {
        self.give(from, "put", async |from| self.connection.put(region, offset, from).await)
    }

    /// See [`Connection::close`](crate::Connection::close).
    pub fn close(&self) -> Result<()> {
        self.wait("close", self.connection.close())
    }

    /// See [`Connection::abort`](crate::Connection::abort). Never waits.
    pub fn abort(&self) {
        self.connection.abort();
    }

    /// See [`Connection::closed`](crate::Connection::closed). Waits for the end, and returns why.
    ///
    /// # Errors
    /// `TimedOut` after the deadline, `Invalid` inside an async runtime.
    pub fn closed(&self) -> Result<Error> {
        self.wait("wait for the end", async { Ok(self.connection.closed().await) })
    }

    /// See [`Connection::close_reason`](crate::Connection::close_reason). Never waits.
    pub fn close_reason(&self) -> Option<Error> {
        self.connection.close_reason()
    }

    /// Returns the async connection behind this handle.
    pub fn as_async(&self) -> &crate::Connection {
        &self.connection
    }

    fn wait<T>(&self, doing: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        wait(self.deadline, work).and_then(|done| done).map_err(|error| self.placed(error, doing))
    }

    fn give<M, T>(
        &self,
        memory: M,
        doing: &'static str,
        work: impl AsyncFnOnce(M) -> Result<T, Failed<M>>,
    ) -> Result<T, Failed<Option<M>>> {
        wait_with(self.deadline, memory, work)
            .map_err(|failed| Failed { error: self.placed(failed.error, doing), returned: failed.returned })
    }

    fn placed(&self, error: Error, doing: &'static str) -> Error {
        self.connection.core().placed(error, doing)
    }
}

impl From<crate::Connection> for Connection {
    fn from(connection: crate::Connection) -> Self {
        Self { connection, deadline: None }
    }
}

impl Receipt {
    /// See [`Receipt::delivered`](crate::Receipt::delivered).
    pub fn delivered(self) -> Result<()> {
        wait(self.deadline, self.receipt.delivered()).and_then(|acked| acked)
    }

    /// Returns the async receipt behind this handle.
    pub fn into_async(self) -> crate::Receipt {
        self.receipt
    }
}

impl Incoming {
    /// Returns the header.
    pub fn header(&self) -> &Bytes {
        self.incoming.header()
    }

    /// Returns the frame table: each frame's length, and its place at the sender.
    pub fn frames(&self) -> &[FrameInfo] {
        self.incoming.frames()
    }

    /// Returns the length of all frames together, in bytes.
    pub fn payload_len(&self) -> u64 {
        self.incoming.payload_len()
    }

    /// See [`Incoming::accept`](crate::Incoming::accept). After `TimedOut` the message is received and
    /// dropped.
    pub fn accept(self) -> Result<Message> {
        wait(self.deadline, self.incoming.accept()).and_then(|message| message)
    }

    /// See [`Incoming::accept_into`](crate::Incoming::accept_into). After `TimedOut` the message is received
    /// and dropped.
    pub fn accept_into(
        self,
        destinations: Vec<Destination>,
    ) -> Result<Message, Failed<Option<Vec<Destination>>>> {
        wait_with(self.deadline, destinations, async |destinations| {
            self.incoming.accept_into(destinations).await
        })
    }

    /// Rejects the message: the sender gets `Rejected`.
    pub fn reject(self) {}

    /// Returns the async message behind this handle.
    pub fn into_async(self) -> crate::Incoming {
        self.incoming
    }
}

impl Arena {
    /// See [`Arena::take_within`](crate::Arena::take_within).
    pub fn take_within(&self, len: usize, limit: Duration) -> Result<BufferMut> {
        wait(None, self.0.take_within(len, limit)).and_then(|taken| taken)
    }

    /// Returns the async arena behind this handle, with every call that does not wait.
    pub fn as_async(&self) -> &memory::Arena {
        &self.0
    }
}

impl From<memory::Arena> for Arena {
    fn from(arena: memory::Arena) -> Self {
        Self(arena)
    }
}
