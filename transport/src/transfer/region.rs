//! Regions: memory that one peer reads or writes without the owner's application, and the capability to
//! access it.
//!
//! The invariant: remotely writable bytes are accessed only through a lock that `revoke` empties, so no code
//! ever holds `&mut` to bytes that a peer can write.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Buffer, BufferMut};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::platform::process::Own;

/// The access that a peer has to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionAccess {
    /// `get` only.
    Read,
    /// `put` only.
    Write,
}

/// The capability to access a peer's [`Region`]. Its owner sends the capability's bytes to the peer in any
/// message.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use std::time::Duration;
/// use towline::{Buffer, BufferMut, RegionAccess, RemoteRegion};
/// # use towline::Endpoint;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let region = near.expose_mut(BufferMut::zeroed(8), Duration::from_secs(60))?;
/// let in_a_message = region.remote().to_bytes();
///
/// // At the peer.
/// let remote = RemoteRegion::from_bytes(&in_a_message)?;
/// assert_eq!((remote.len(), remote.access()), (8, RegionAccess::Write));
/// far.put(&remote, 3, Buffer::from("line")).await?;
///
/// // Back at the owner.
/// assert_eq!(region.revoke().await.as_slice(), Some(&b"\0\0\0line\0"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteRegion {
    key: RegionKey,
    len: u64,
    access: RegionAccess,
}

type RegionKey = [u8; 16];

impl RemoteRegion {
    /// Returns the length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region's length is fixed; an empty one is of no use")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the region may be read or written.
    pub fn access(&self) -> RegionAccess {
        self.access
    }

    pub(crate) fn key(&self) -> &RegionKey {
        &self.key
    }

    /// Encodes it into 32 bytes for a message: version, access, six zeroes, length (little-endian), key.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes[1] = match self.access {
            RegionAccess::Read => 1,
            RegionAccess::Write => 2,
        };
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.key);
        bytes
    }

    /// Decodes the bytes of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Invalid, "not the 32 bytes of a remote region");
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| wrong())?;
        let access = match (bytes[0], bytes[1]) {
            (1, 1) => RegionAccess::Read,
            (1, 2) => RegionAccess::Write,
            _ => return Err(wrong()),
        };
        let mut len = [0; 8];
        len.copy_from_slice(&bytes[8..16]);
        let mut key = [0; 16];
        key.copy_from_slice(&bytes[16..]);
        Ok(Self { key, len: u64::from_le_bytes(len), access })
    }

    /// Checks that `[offset, offset + len)` is inside the region. The owner checks again.
    pub(crate) fn check(&self, access: RegionAccess, offset: u64, len: u64) -> Result<()> {
        check_range(self.access, self.len, access, offset, len)
    }
}

impl fmt::Debug for RemoteRegion {
    /// Omits the key, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteRegion({:?}, {} bytes)", self.access, self.len)
    }
}

/// Memory registered for access by one peer. Dropping it revokes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use std::time::Duration;
/// use towline::{Buffer, BufferMut, ErrorKind, Message, RemoteRegion};
/// # use towline::Endpoint;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let table = Buffer::from("apples, pears, plums");
/// let region = near.expose(table, Duration::from_secs(60))?;
/// near.send(Message::new(region.remote().to_bytes().to_vec())).await?;
///
/// // The peer reads a part of it without the owner's application.
/// let remote = RemoteRegion::from_bytes(far.recv().await?.header())?;
/// let pears = far.get(&remote, 8, BufferMut::with_capacity(5)).await?;
/// assert_eq!(pears.as_slice(), Some(&b"pears"[..]));
///
/// // From here on the peer has no access, and the owner has its memory back.
/// let table = region.revoke().await;
/// assert_eq!(table.len(), 20);
/// let refused = far.get(&remote, 0, BufferMut::with_capacity(5)).await.unwrap_err();
/// assert_eq!(refused.error.kind(), ErrorKind::Rejected);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Region<M> {
    remote: RemoteRegion,
    table: Own<Arc<Regions>>,
    memory: SharedRegion<M>,
}

type SharedRegion<M> = Arc<Mutex<RegionState<M>>>;

#[derive(Debug)]
struct RegionState<M> {
    memory: Option<M>,
    readers: usize,
    revoker: Option<Waker>,
}

impl<M> Region<M> {
    /// Returns the capability to send to the peer.
    pub fn remote(&self) -> RemoteRegion {
        self.remote
    }
}

impl<M: Default> Region<M> {
    /// Revokes the peer's access and returns the memory. Accesses that begin from now on fail with
    /// `Rejected`. Waits until no access is in flight.
    ///
    /// A process forked from the owner gets its own copy, as it was at the fork, and revokes nothing. The
    /// copy is empty if the peer had access at the moment of the fork.
    pub async fn revoke(self) -> M {
        let process = self.table.process();
        if process.is_this() {
            self.table.forget(self.remote.key());
        }
        poll_fn(|cx| {
            if !process.is_this() {
                let copy = self.memory.try_lock().and_then(|mut state| state.memory.take());
                return Poll::Ready(copy.unwrap_or_default());
            }
            let mut state = lock(&self.memory);
            if state.readers > 0 {
                state.revoker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            match state.memory.take() {
                Some(memory) => Poll::Ready(memory),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<M> Drop for Region<M> {
    fn drop(&mut self) {
        if self.table.process().is_this() {
            self.table.forget(self.remote.key());
        }
    }
}

/// The regions of one connection. A link serves the peer's requests from this table.
#[derive(Debug)]
pub struct Regions {
    environment: Arc<dyn Environment>,
    entries: Mutex<HashMap<RegionKey, RegionEntry>>,
}

#[derive(Debug)]
struct RegionEntry {
    len: u64,
    expires: Duration,
    memory: RegionMemory,
}

#[derive(Debug)]
enum RegionMemory {
    Read(SharedRegion<Buffer>),
    Write(SharedRegion<BufferMut>),
}

impl Regions {
    /// Makes an empty table.
    pub fn new(environment: Arc<dyn Environment>) -> Arc<Self> {
        Arc::new(Self { environment, entries: Mutex::default() })
    }

    pub(crate) fn expose(self: &Arc<Self>, buffer: Buffer, lifetime: Duration) -> Region<Buffer> {
        let len = buffer.len() as u64;
        self.register(buffer, len, lifetime, RegionAccess::Read, RegionMemory::Read)
    }

    pub(crate) fn expose_mut(self: &Arc<Self>, buffer: BufferMut, lifetime: Duration) -> Region<BufferMut> {
        let len = buffer.len() as u64;
        self.register(buffer, len, lifetime, RegionAccess::Write, RegionMemory::Write)
    }

    fn register<M>(
        self: &Arc<Self>,
        memory: M,
        len: u64,
        lifetime: Duration,
        access: RegionAccess,
        kind: impl FnOnce(SharedRegion<M>) -> RegionMemory,
    ) -> Region<M> {
        let mut key = RegionKey::default();
        self.environment.random(&mut key);
        let memory = Arc::new(Mutex::new(RegionState { memory: Some(memory), readers: 0, revoker: None }));
        let expires = self.environment.now().saturating_add(lifetime);
        self.entries().insert(key, RegionEntry { len, expires, memory: kind(memory.clone()) });
        Region { remote: RemoteRegion { key, len, access }, table: Own::new(self.clone()), memory }
    }

    /// Serves a `get`: returns the bytes, held until the lease is dropped.
    pub(crate) fn read(&self, key: &RegionKey, offset: u64, len: u64) -> Result<ReadLease> {
        let entries = self.entries();
        let (entry, memory) = match self.find(&entries, key)? {
            (entry, RegionMemory::Read(memory)) => (entry, memory),
            (_, RegionMemory::Write(_)) => return Err(rejected("it may be written, not read")),
        };
        check_range(RegionAccess::Read, entry.len, RegionAccess::Read, offset, len)?;
        let mut state = lock(memory);
        let Some(buffer) = &state.memory else { return Err(rejected(REVOKED)) };
        let bytes = buffer.slice(offset as usize..(offset + len) as usize);
        state.readers += 1;
        Ok(ReadLease { bytes, memory: memory.clone() })
    }

    /// Serves a `put`: returns its destination.
    pub(crate) fn write(&self, key: &RegionKey, offset: u64, len: u64) -> Result<WriteLease> {
        let entries = self.entries();
        let (entry, memory) = match self.find(&entries, key)? {
            (entry, RegionMemory::Write(memory)) => (entry, memory),
            (_, RegionMemory::Read(_)) => return Err(rejected("it may be read, not written")),
        };
        check_range(RegionAccess::Write, entry.len, RegionAccess::Write, offset, len)?;
        Ok(WriteLease { memory: memory.clone(), offset: offset as usize, len: len as usize })
    }

    fn find<'a>(
        &self,
        entries: &'a HashMap<RegionKey, RegionEntry>,
        key: &RegionKey,
    ) -> Result<(&'a RegionEntry, &'a RegionMemory)> {
        let entry = entries.get(key).ok_or_else(|| rejected(REVOKED))?;
        if self.environment.now() >= entry.expires {
            return Err(rejected("its lifetime has passed"));
        }
        Ok((entry, &entry.memory))
    }

    fn forget(&self, key: &RegionKey) {
        self.entries().remove(key);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<RegionKey, RegionEntry>> {
        self.entries.lock()
    }
}

const REVOKED: &str = "no such region: it was revoked, or belongs to another connection";

fn rejected(why: &'static str) -> Error {
    Error::new(ErrorKind::Rejected, why)
}

fn check_range(is: RegionAccess, region_len: u64, wanted: RegionAccess, offset: u64, len: u64) -> Result<()> {
    if is != wanted {
        return Err(rejected("the region does not allow that access"));
    }
    match offset.checked_add(len) {
        Some(end) if end <= region_len => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Rejected,
            format!("{len} bytes at {offset} are not inside a region of {region_len} bytes"),
        )),
    }
}

/// Bytes of a region that are being sent to the peer. A revocation waits until it is dropped.
#[derive(Debug)]
pub(crate) struct ReadLease {
    bytes: Buffer,
    memory: SharedRegion<Buffer>,
}

impl ReadLease {
    pub(crate) fn bytes(&self) -> &Buffer {
        &self.bytes
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        // After a revocation the owner may expect to hold the only handle.
        self.bytes = Buffer::new();
        let mut state = lock(&self.memory);
        state.readers -= 1;
        if state.readers == 0
            && let Some(waker) = state.revoker.take()
        {
            drop(state);
            waker.wake();
        }
    }
}

/// A checked range of a region that the peer is writing.
#[derive(Debug)]
pub(crate) struct WriteLease {
    memory: SharedRegion<BufferMut>,
    offset: usize,
    len: usize,
}

impl WriteLease {
    /// Returns the length of the range in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Calls `write` with `[at, len)` of the range. `None`, without a call, if the region was revoked
    /// meanwhile.
    pub(crate) fn with<R>(&self, at: usize, write: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        let mut state = lock(&self.memory);
        let bytes = state.memory.as_mut()?.as_mut_slice()?;
        Some(write(&mut bytes[self.offset + at..self.offset + self.len]))
    }
}

fn lock<M>(memory: &Mutex<RegionState<M>>) -> MutexGuard<'_, RegionState<M>> {
    memory.lock()
}
