//! The link to one peer, as its users see it.

mod bursts;
mod halves;
mod receipt;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::task::coop::consume_budget;
use tracing::Instrument;

pub use self::halves::{Receiver, Sender};
pub use self::receipt::Receipt;
use crate::api::incoming::{Incoming, PendingReceive};
use crate::backend::path::Path;
use crate::backend::{Caps, Completion, Done, Identity, Inbox, Link, Op, Opened, Operation, Small};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::events;
use crate::memory::{Access, Buffer, BufferMut, Place, Pool};
use crate::metrics::Counts;
use crate::platform::environment::Environment;
use crate::platform::process::{Inherited, Own};
use crate::progress::driver::Driver;
use crate::progress::waiting::{Wait, Waiters};
use crate::transfer::message::Message;
use crate::transfer::region::{Region, RegionAccess, Regions, RemoteRegion};

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
    handle: Arc<LastHandle>,
}

/// The last of these to be dropped closes the connection.
#[derive(Debug)]
struct LastHandle(Own<Arc<Core>>);

/// What a connection consists of, shared with its driver.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) number: u64,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) waiters: Waiters,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    /// Work waits for the driver's next look.
    pub(crate) left_for_later: AtomicBool,
    /// How often waiters had polled when the last message was sent.
    polls_at_send: AtomicU64,
    /// What waits for company leaves when the sender's task yields.
    flushing: AtomicBool,
    /// The message that a cancelled `recv` had begun to take; held by whoever receives.
    pub(crate) pending: tokio::sync::Mutex<Option<PendingReceive>>,
    pub(crate) counts: Arc<Counts>,
    regions: Arc<Regions>,
    driver: Arc<Driver>,
    peer: Identity,
    path: Path,
    linger: Duration,
    /// The link was told that the application takes what comes in pool memory.
    expects_in_pool: AtomicBool,
    span: tracing::Span,
}

/// What one connection counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages whose memory was reusable again.
    pub messages_sent: u64,
    /// Messages handed to the application.
    pub messages_received: u64,
    /// Payload bytes of sent messages.
    pub bytes_sent: u64,
    /// Payload bytes of received messages.
    pub bytes_received: u64,
    /// Payload bytes that this end copied: in user space, or by having the kernel read the peer's memory.
    pub bytes_copied: u64,
    /// What of it was copied into shared memory, where the peer reads it: its end copied none of that.
    pub bytes_bounced: u64,
    /// System calls that moved data, or tried to.
    pub system_calls: u64,
    /// Times a message had to wait for credit.
    pub credit_stalls: u64,
}

/// What the making of a connection acknowledged.
pub(crate) struct Parts {
    pub(crate) opened: Opened,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    pub(crate) peer: Identity,
    pub(crate) path: Path,
    pub(crate) wait: Wait,
    pub(crate) linger: Duration,
}

impl Connection {
    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let Parts { opened, inbox, regions, driver, pools, peer, path, wait, linger } = parts;
        let (number, link) = (driver.number(), opened.link().clone());
        let span = tracing::info_span!("connection", number, %peer, path = path.chosen());
        let counts = Arc::new(Counts::of(link.clone()));
        driver.meters.adopt(number, &counts, path.chosen(), peer.to_string());
        let core = Arc::new(Core {
            number,
            waiters: Waiters::new(link.clone(), driver.clone(), number, wait),
            link,
            inbox,
            pools,
            left_for_later: AtomicBool::new(false),
            polls_at_send: AtomicU64::new(u64::MAX),
            flushing: AtomicBool::new(false),
            pending: tokio::sync::Mutex::default(),
            counts: counts.clone(),
            regions,
            driver: driver.clone(),
            peer,
            path,
            linger,
            expects_in_pool: AtomicBool::new(false),
            span,
        });
        driver.adopt(&core)?;
        events::connected(number, &core.path);
        let handle = Arc::new(LastHandle(Own::new(core)));
        // The last handle ends it from now on.
        let _ = opened.take();
        Ok(Self { handle })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.handle.0
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
        let sent = match core.copy(Small { message, receipt, ack_now, more }) {
            None => {
                // Who never waits must let its siblings run all the same.
                consume_budget().await;
                Ok(())
            }
            Some(Small { message, receipt, ack_now, more }) => {
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

impl Core {
    /// Whether this process made it, and did not inherit it by a fork.
    pub(crate) fn is_ours(&self) -> bool {
        self.waiters.process.is_this()
    }

    /// Logs how it ended, if it has.
    pub(crate) fn log_end(&self) {
        // A forked child may find a lock of the application's subscriber taken for ever.
        if self.is_ours()
            && let Some(why) = self.inbox.ended()
        {
            events::ended(self.number, &self.path, &why);
        }
    }

    /// Tells a process that inherited it what to do instead.
    pub(crate) fn check(&self) -> Result<()> {
        self.waiters.process.check()
    }

    /// Has the link do this; false if it failed then and there, since this process only inherited the link.
    pub(crate) fn submit(&self, op: Op) -> bool {
        match self.check() {
            Ok(()) => self.link.submit(op),
            Err(error) => {
                op.fail(error);
                return false;
            }
        }
        true
    }

    /// Has the link copy a message. It comes back where that cannot be.
    fn copy(self: &Arc<Self>, small: Small) -> Option<Small> {
        if !self.is_ours() {
            return Some(small);
        }
        let more = small.more;
        let left = self.link.copy(small);
        if more && left.is_none() {
            self.flush_soon();
        }
        left
    }

    /// Has the link do `op`, and waits for its end, moving the link meanwhile.
    async fn perform<V: Inherited>(self: &Arc<Self>, op: Op, completion: &Completion<V>) -> V {
        let more = matches!(op, Op::Send { more: true, .. });
        if !self.submit(op) {
            return completion.try_take().unwrap_or_else(V::inherited);
        }
        if more {
            self.flush_soon();
        }
        self.waiters.until(|cx| completion.poll_take(cx)).await
    }

    /// Waits for an operation of this connection, moving the link meanwhile.
    pub(crate) async fn finish<V: Inherited>(&self, completion: &Completion<V>) -> V {
        if !self.is_ours() {
            return completion.take_uncontended().unwrap_or_else(V::inherited);
        }
        self.waiters.until(|cx| completion.poll_take(cx)).await
    }

    /// The message that a cancelled call had begun to take, held while this caller receives.
    pub(crate) async fn begun(&self) -> Result<Own<MutexGuard<'_, Option<PendingReceive>>>> {
        let process = self.waiters.process;
        process.check()?;
        let begun = match self.pending.try_lock() {
            Ok(begun) => begun,
            Err(_) => {
                let mut queue = Own::of(process, Box::pin(self.pending.lock()));
                self.waiters.until(move |cx| queue.as_mut().poll(cx).map(Result::<_>::Ok)).await?
            }
        };
        Ok(Own::of(process, begun))
    }

    /// Submits work that nobody waits for: it is done with the next poll, or within 50 ms.
    pub(crate) fn submit_for_later(self: &Arc<Self>, op: Op) {
        if self.submit(op) {
            self.leave_for_later();
        }
    }

    /// Has the driver poll the link within 50 ms, should nobody else.
    pub(crate) fn leave_for_later(self: &Arc<Self>) {
        let is_left = &self.left_for_later;
        if is_left.load(Ordering::Acquire) || !self.is_ours() || self.link.source().is_none() {
            return;
        }
        if !is_left.swap(true, Ordering::AcqRel) {
            self.driver.later(self);
        }
    }

    /// Tells the link how the application takes what comes, if that changed.
    pub(crate) fn expect(self: &Arc<Self>, in_pool: bool) {
        if self.expects_in_pool.load(Ordering::Relaxed) != in_pool {
            self.expects_in_pool.store(in_pool, Ordering::Relaxed);
            self.submit_for_later(Op::Expect { in_pool });
        }
    }

    /// The endpoint's pool of `place`.
    pub(crate) fn pool(&self, place: Place) -> Result<&Pool> {
        self.pools.get(&place).ok_or_else(|| {
            let hint = "give the endpoint a pool of that place";
            Error::new(ErrorKind::Unsupported, format!("this endpoint has no pool of {place} memory: {hint}"))
        })
    }

    fn check_one_sided(&self, on_host: bool) -> Result<()> {
        let refused = |why| Err(Error::new(ErrorKind::Unsupported, why).by(self.backend()));
        self.check().map_err(|error| error.by(self.backend()))?;
        if !self.link.caps().contains(Caps::ONE_SIDED) {
            return refused("this link has no get and put");
        }
        if !on_host {
            return refused("get and put need host memory");
        }
        Ok(())
    }

    pub(crate) fn environment(&self) -> &dyn Environment {
        &*self.driver.environment
    }

    pub(crate) fn backend(&self) -> &'static str {
        self.path.chosen()
    }

    /// Adds what was tried, on whom, and on which connection: its number is the one in spans and metrics.
    pub(crate) fn placed(&self, error: Error, doing: &'static str) -> Error {
        let Self { number, path, .. } = self;
        error.by(self.backend()).during(doing).on(format_args!("{} (connection {number})", path.address))
    }

    pub(crate) fn failed<T>(&self, failed: Failed<T>, doing: &'static str) -> Failed<T> {
        Failed { error: self.placed(failed.error, doing), returned: failed.returned }
    }

    /// Ends the link if it has not ended by itself when `linger` has passed.
    pub(crate) fn end_after_linger(self: &Arc<Self>) {
        if !self.is_ours() {
            return;
        }
        if self.link.source().is_some() && self.inbox.ended().is_none() {
            self.waiters.poll_by_driver();
        }
        let core = self.clone();
        let environment = &self.driver.environment;
        let timeout = environment.sleep_until(environment.now().saturating_add(self.linger));
        environment.spawn(Box::pin(async move {
            let mut timeout = timeout;
            let mut ended = std::pin::pin!(core.inbox.until_ended());
            let timed_out = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                timeout.as_mut().poll(cx).map(|()| true)
            })
            .await;
            if timed_out {
                core.link
                    .end(Error::new(ErrorKind::TimedOut, "the peer did not take part in closing in time"));
            }
            core.driver.forget(&core);
        }));
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.driver.forget(self);
        let end = self.inbox.ended().map(|end| end.kind());
        self.driver.meters.retire(self.number, &self.counts, end);
    }
}

impl Drop for LastHandle {
    fn drop(&mut self) {
        let core = &self.0;
        if !core.is_ours() {
            return;
        }
        if core.inbox.ended().is_some() {
            return core.driver.forget(core);
        }
        core.link.submit(Op::Close(Done::with(|_| ())));
        core.end_after_linger();
    }
}
