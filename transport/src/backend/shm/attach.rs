//! Attaching: two processes of one host connect through a Unix socket and exchange the descriptors of the
//! memory they share.
//!
//! The invariant: a caller that does not prove to be the peer of a waiting connection receives nothing, and
//! is dropped.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::fetcher::PeerCanary;
use crate::backend::{LinkContext, Role};
use crate::error::{Error, ErrorKind, NO_DESCRIPTOR, Result};
use crate::handshake::{Admission, AttachKey, Source};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;

/// The prefix of a local socket's abstract name, before its random part.
const PREFIX: &[u8] = b"towline-";
/// The length of the random part, which is the acceptor's offer.
pub(super) const NAME_LEN: usize = 16;
const MAGIC: [u8; 8] = *b"TOWLSHM\x1a";
const VERSION: u16 = 1;
const FIELDS_LEN: usize = 56;
const HELLO_LEN: usize = FIELDS_LEN + 32;
/// The position of the connection's identifier in a hello.
const CONNECTION_ID: std::ops::Range<usize> = 16..16 + NAME_LEN;
/// The descriptors that each end sends: its segment, the read end of its doorbell, and the write end of its
/// holders' pipe.
const DESCRIPTORS: usize = 3;
/// A hello's flag: the sender lets the peer map its arenas, and trusts what the peer lends.
const TRUSTS: u8 = 1;
/// The most unauthenticated peers at once, and the time that each has to send its hello.
const UNAUTHENTICATED_MAX: usize = 128;
const UNAUTHENTICATED_TIME: Duration = Duration::from_millis(500);
/// The pause before a connector retries on a full socket.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// An endpoint's socket for peers on this host, and the connections that wait for theirs.
#[derive(Debug)]
pub(super) struct LocalSocket {
    /// The environment whose driver accepts peers.
    owner: Weak<dyn Environment>,
    name: [u8; NAME_LEN],
    waiting: Mutex<HashMap<[u8; NAME_LEN], oneshot::Sender<PendingPeer>>>,
    closed: Arc<Notify>,
}

/// What each end sends to the other when attaching.
#[derive(Debug)]
pub(super) struct AttachInfo<D> {
    /// The length of its ring, in bytes.
    pub(super) ring_len: u32,
    /// Its segment.
    pub(super) segment: D,
    /// The read end of its doorbell.
    pub(super) doorbell: D,
    /// The write end of its holders' pipe, kept open by every process that holds what it lent.
    pub(super) holder: D,
    /// Whether it lets the peer map its arenas.
    pub(super) trusts: bool,
    /// Where its memory can be read, if it trusts the peer.
    pub(super) canary: Option<PeerCanary>,
}

/// A peer that has attached.
#[derive(Debug)]
pub(super) struct AttachedPeer {
    pub(super) socket: OwnedFd,
    pub(super) peer: AttachInfo<OwnedFd>,
    /// Its user, as reported by the kernel.
    pub(super) user: u32,
    /// Its process, if it is visible in this process's PID namespace.
    pub(super) process: Option<Pid>,
}

impl AttachedPeer {
    fn new(stream: UnixStream, peer: AttachInfo<OwnedFd>) -> Result<Self> {
        let credentials = stream.peer_cred()?;
        let process = credentials.pid().and_then(Pid::from_raw);
        Ok(Self { socket: stream.into_std()?.into(), peer, user: credentials.uid(), process })
    }
}

/// A peer whose hello has been received.
#[derive(Debug)]
struct PendingPeer {
    stream: UnixStream,
    received: UnverifiedHello,
}

/// A hello that has not been verified.
#[derive(Debug)]
struct UnverifiedHello {
    hello: [u8; HELLO_LEN],
    descriptors: Vec<OwnedFd>,
    /// The kernel withheld descriptors, as it does where the process may have no more.
    truncated: bool,
}

impl LocalSocket {
    /// Opens the socket and accepts peers on the driver. Dropping the result closes it.
    pub(super) fn open(environment: &Arc<dyn Environment>) -> Result<Arc<Self>> {
        let mut name = [0; NAME_LEN];
        environment.random(&mut name);
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(socket_name(&name))?)?;
        listener.set_nonblocking(true)?;
        let owner = Arc::downgrade(environment);
        let local_socket = Arc::new(Self { owner, name, waiting: Mutex::default(), closed: Arc::default() });
        let (weak, closed) = (Arc::downgrade(&local_socket), local_socket.closed.clone());
        environment.spawn(Box::pin(async move {
            // An environment without a reactor has no peers outside its process.
            if Handle::try_current().is_err() {
                return;
            }
            let Ok(listener) = tokio::net::UnixListener::from_std(listener) else { return };
            tokio::select! {
                () = accept_loop(&listener, &weak) => {}
                () = closed.notified() => {}
            }
        }));
        Ok(local_socket)
    }

    /// Returns true while the driver that accepts peers exists.
    pub(super) fn is_open(&self) -> bool {
        self.owner.strong_count() > 0
    }

    /// Returns true if that driver is `environment`'s.
    pub(super) fn is_of(&self, environment: &Arc<dyn Environment>) -> bool {
        self.owner.ptr_eq(&Arc::downgrade(environment))
    }

    /// Returns the name, which the acceptor offers to its peer.
    pub(super) fn name(&self) -> &[u8; NAME_LEN] {
        &self.name
    }

    /// Waits for this connection's connector, and sends it `ours`.
    pub(super) async fn attach(
        &self,
        context: &LinkContext,
        ours: AttachInfo<BorrowedFd<'_>>,
    ) -> Result<AttachedPeer> {
        let key = AttachKey::new(context.secret);
        let (called, pending) = oneshot::channel();
        self.waiting().insert(key.name(), called);
        let _waiting = WaitingEntry { local_socket: self, name: key.name() };
        let closed = || Error::new(ErrorKind::Closed, "the local socket was closed");
        let PendingPeer { stream, received } = pending.await.map_err(|_| closed())?;
        let peer = verified(&key, Role::Connector, received)?;
        send_hello(&stream, &hello_of(&key, Role::Acceptor, &ours), &ours).await?;
        AttachedPeer::new(stream, peer)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<[u8; NAME_LEN], oneshot::Sender<PendingPeer>>> {
        self.waiting.lock()
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.closed.notify_one();
    }
}

/// Removes a connection from the waiting ones on drop.
struct WaitingEntry<'a> {
    local_socket: &'a LocalSocket,
    name: [u8; NAME_LEN],
}

impl Drop for WaitingEntry<'_> {
    fn drop(&mut self) {
        self.local_socket.waiting().remove(&self.name);
    }
}

/// Connects to the acceptor's local socket, and sends it `ours`.
pub(super) async fn connect(context: &LinkContext, ours: AttachInfo<BorrowedFd<'_>>) -> Result<AttachedPeer> {
    let name = context.peer_offer.as_slice();
    if name.len() != NAME_LEN {
        return Err(Error::new(ErrorKind::Corrupt, format!("the peer's offer is not {NAME_LEN} bytes")));
    }
    let stream = UnixStream::from_std(dial(name).await?.into())?;
    let key = AttachKey::new(context.secret);
    send_hello(&stream, &hello_of(&key, Role::Connector, &ours), &ours).await?;
    let received = receive_hello(&stream).await?;
    let peer = verified(&key, Role::Acceptor, received)?;
    AttachedPeer::new(stream, peer)
}

async fn dial(name: &[u8]) -> Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io::Error::from)?;
    let at = SocketAddrUnix::new_abstract_name(&socket_name(name)).map_err(io::Error::from)?;
    loop {
        match rustix::net::connect(&socket, &at) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN | Errno::INTR) => tokio::time::sleep(RETRY_PAUSE).await,
            Err(Errno::CONNREFUSED) => {
                let why = "its socket is not visible from here: the two are in different network namespaces, or \
                           the peer's endpoint is gone";
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
}

/// Accepts peers and gives each a limited time. Where too many are silent, the oldest is dropped.
async fn accept_loop(listener: &tokio::net::UnixListener, local_socket: &Weak<LocalSocket>) {
    let (admission, clock) = (Admission::new(UNAUTHENTICATED_MAX), Instant::now());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A peer that has already left counts under no user.
                let user = stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
                let admitted = admission.place_since(clock, Source::User(user)).await;
                let local_socket = local_socket.clone();
                tokio::spawn(async move {
                    admitted
                        .hold(tokio::time::timeout(UNAUTHENTICATED_TIME, admit(stream, local_socket)))
                        .await
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a peer of this host failed; trying again");
                tokio::time::sleep(admission.accept_failed(&error, clock.elapsed())).await;
            }
        }
        // A hello that has already arrived is handled before the next accept.
        tokio::task::yield_now().await;
    }
}

/// Receives a peer's hello, and passes it to the connection that waits for it.
async fn admit(stream: UnixStream, local_socket: Weak<LocalSocket>) {
    let Ok(received) = receive_hello(&stream).await else { return };
    let mut name = [0; NAME_LEN];
    name.copy_from_slice(&received.hello[CONNECTION_ID]);
    let waiting = local_socket.upgrade().and_then(|local_socket| local_socket.waiting().remove(&name));
    if let Some(waiting) = waiting {
        // The waiting connection may have ended; the peer then sees the end of its stream.
        let _ = waiting.send(PendingPeer { stream, received });
    }
}

fn socket_name(name: &[u8]) -> Vec<u8> {
    let digits = name.iter().map(|byte| format!("{byte:02x}"));
    [PREFIX, digits.collect::<String>().as_bytes()].concat()
}

fn hello_of(key: &AttachKey, role: Role, ours: &AttachInfo<BorrowedFd<'_>>) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..10].copy_from_slice(&VERSION.to_le_bytes());
    hello[10] = if ours.trusts { TRUSTS } else { 0 };
    hello[12..16].copy_from_slice(&ours.ring_len.to_le_bytes());
    hello[CONNECTION_ID].copy_from_slice(&key.name());
    if let Some(PeerCanary { address, bytes }) = ours.canary {
        hello[32..40].copy_from_slice(&address.to_le_bytes());
        hello[40..FIELDS_LEN].copy_from_slice(&bytes);
    }
    let proof = key.proof(role, &hello[..FIELDS_LEN]);
    hello[FIELDS_LEN..].copy_from_slice(&proof);
    hello
}

/// Verifies that the hello is from the end in `role`, and returns its contents.
fn verified(key: &AttachKey, role: Role, received: UnverifiedHello) -> Result<AttachInfo<OwnedFd>> {
    let UnverifiedHello { hello, descriptors, truncated } = received;
    let (fields, proof) = hello.split_at(FIELDS_LEN);
    let mut mac = [0; 32];
    mac.copy_from_slice(proof);
    key.verify(role, fields, &mac)?;
    let is_known = fields[..8] == MAGIC && fields[8..10] == VERSION.to_le_bytes();
    if !is_known || fields[10] & !TRUSTS != 0 || fields[11] != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the peer uses another version of the shared-memory protocol",
        ));
    }
    if truncated && descriptors.len() < DESCRIPTORS {
        // The error reaches both ends.
        let ours = if role == Role::Connector { "listening" } else { "connecting" };
        return Err(Error::new(ErrorKind::Unavailable, format!("at the {ours} end {NO_DESCRIPTOR}")));
    }
    let ring_len = u32::from_le_bytes([fields[12], fields[13], fields[14], fields[15]]);
    let [segment, doorbell, holder] = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors).map_err(|shown| {
        let why = format!("the peer sent {} descriptors instead of {DESCRIPTORS}", shown.len());
        Error::new(ErrorKind::Corrupt, why)
    })?;
    let (mut address, mut bytes) = ([0; 8], [0; 16]);
    address.copy_from_slice(&fields[32..40]);
    bytes.copy_from_slice(&fields[40..]);
    let canary = PeerCanary { address: u64::from_le_bytes(address), bytes };
    let (trusts, canary) = (fields[10] & TRUSTS != 0, Some(canary).filter(|canary| canary.address != 0));
    Ok(AttachInfo { ring_len, segment, doorbell, holder, trusts, canary })
}

async fn send_hello(
    stream: &UnixStream,
    hello: &[u8; HELLO_LEN],
    ours: &AttachInfo<BorrowedFd<'_>>,
) -> Result<()> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let shown = [ours.segment, ours.doorbell, ours.holder];
        assert!(control.push(SendAncillaryMessage::ScmRights(&shown)), "there is space for {DESCRIPTORS}");
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(hello)], &mut control, flags)?)
    };
    let sent = stream.async_io(Interest::WRITABLE, send).await.map_err(gone)?;
    // A new socket has room for a hello.
    if sent < HELLO_LEN { Err(gone(io::ErrorKind::WriteZero.into())) } else { Ok(()) }
}

async fn receive_hello(stream: &UnixStream) -> Result<UnverifiedHello> {
    let (mut hello, mut len, mut descriptors, mut truncated) = ([0; HELLO_LEN], 0, Vec::new(), false);
    while len < HELLO_LEN {
        let receive = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut room = [IoSliceMut::new(&mut hello[len..])];
            let received = rustix::net::recvmsg(stream.as_fd(), &mut room, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(shown) = message {
                    descriptors.extend(shown);
                }
            }
            truncated |= received.flags.contains(ReturnFlags::CTRUNC);
            Ok(received.bytes)
        };
        match stream.async_io(Interest::READABLE, receive).await.map_err(gone)? {
            0 => return Err(gone(io::ErrorKind::UnexpectedEof.into())),
            bytes => len += bytes,
        }
        if descriptors.len() > DESCRIPTORS {
            return Err(Error::new(ErrorKind::Corrupt, "the peer sent too many descriptors"));
        }
    }
    Ok(UnverifiedHello { hello, descriptors, truncated })
}

fn gone(error: io::Error) -> Error {
    Error::new(ErrorKind::PeerLost, "the peer closed the local socket while attaching").caused_by(error)
}
