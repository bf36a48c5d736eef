//! A raw peer that shares memory: it attaches at the local socket, sends any bytes and descriptors, and
//! writes any bytes into its own segment at any time.

#![expect(unsafe_code, reason = "memory that two ends map is written through raw addresses")]

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::pread;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::pipe::{PipeFlags, pipe_with};
use sha2::{Digest, Sha256};
use towline::{Address, Connection, Endpoint, Listener};

use crate::backends::Row;
use crate::encrypted::Stream;
use crate::polls::in_time;
use crate::raw_peer::{greet, hand, read_handshake, send};

const MAGIC: [u8; 8] = *b"TOWLSHM\x1a";
const WORDS_LEN: usize = 56;
pub(crate) const HELLO_LEN: usize = WORDS_LEN + 32;
/// Offset of the ring in its segment, and the length of this peer's ring.
const RING_AT: usize = 4096;
pub(crate) const RING_LEN: usize = 64 << 10;
pub(crate) const SEGMENT_LEN: usize = RING_AT + RING_LEN + TABLE_LEN;
/// The table of returned leases, behind the ring; and its offset in the other end's segment.
const TABLE_LEN: usize = 32 << 10;
pub(crate) const TABLE_AT: usize = RING_AT + RING_LEN;
/// Offsets of the words in a segment's head.
pub(crate) const PRODUCED: usize = 0;
pub(crate) const CONSUMED: usize = 128;
pub(crate) const ASLEEP: usize = 256;
/// How long this peer waits at the local socket.
const WAIT_TIME: Duration = Duration::from_secs(5);
/// The most descriptors that it sends at once.
const DESCRIPTORS_MAX: usize = 8;

const READY: u8 = 4;
const NOT_READY: u8 = 5;

/// Returns an endpoint of all backends, and its listener for raw peers and good peers.
pub(crate) async fn listening(row: &Row) -> (Endpoint, Listener) {
    let endpoint = row.builder().handshake_time(HANDSHAKE_TIME).build().unwrap();
    let listener = endpoint.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (endpoint, listener)
}

/// Half of it is the time limit for the other end to attach.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// Returns the address at which a good peer gets shared memory and no other path.
pub(crate) fn by_shm(listener: &Listener) -> Address {
    let address = listener.address();
    format!("shm://{}:{}", address.host(), address.port()).parse().unwrap()
}

/// Connects a good peer. Returns the connecting end and the accepting end.
pub(crate) async fn connect_by_shm(near: &Endpoint, listener: &Listener) -> (Connection, Connection) {
    let address = by_shm(listener);
    let both = async { tokio::join!(near.connect(&address), listener.accept()) };
    let (a, b) = in_time("a good peer", both).await;
    (a.unwrap(), b.unwrap())
}

/// A segment, valid or almost valid.
pub(crate) struct Segment {
    pub(crate) memfd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address of a mapping that stays until drop (M1).
unsafe impl Send for Segment {}

impl Segment {
    /// Returns a valid segment: filled and sealed.
    pub(crate) fn sealed() -> Self {
        let segment = Self::open(SEGMENT_LEN);
        // Not `fallocate`: pages that were never filled count as holes.
        segment.store(0, &[0; SEGMENT_LEN]);
        segment.seal(SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL);
        segment
    }

    /// Returns a segment of `len` bytes, without pages and seals.
    pub(crate) fn open(len: usize) -> Self {
        let memfd = memfd_create("by-hand", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memfd, len as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: M1: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &memfd, 0) };
        Self { memfd, base: NonNull::new(base.unwrap().cast()).unwrap(), len }
    }

    pub(crate) fn seal(&self, seals: SealFlags) {
        fcntl_add_seals(&self.memfd, seals).unwrap();
    }

    /// Returns the aligned word at this offset.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.len && at.is_multiple_of(8));
        let word = self.base.as_ptr().wrapping_add(at).cast::<u64>();
        // SAFETY: aligned and within the mapping, which stays while this is borrowed (M1); other accesses here are atomic too.
        unsafe { AtomicU64::from_ptr(word) }
    }

    pub(crate) fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        let to = self.base.as_ptr().wrapping_add(at);
        // SAFETY: within the mapping (M1), which only this peer's one thread writes (M9), and no part of
        // `bytes`.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: M1: a whole mapping of this value's own, with no borrow left.
        unsafe { munmap(self.base.as_ptr().cast(), self.len) }.unwrap();
    }
}

/// A peer that has proposed shared memory, and has yet to attach.
pub(crate) struct AttachingPeer {
    pub(crate) control: Box<dyn Stream>,
    local_socket: Vec<u8>,
    secret: [u8; 32],
}

/// What it sends to attach.
pub(crate) struct Hello {
    /// Magic, version, flags, length of its ring, name of the connection, and the address of a canary, here
    /// zero.
    pub(crate) words: [u8; WORDS_LEN],
    /// Whether the proof of these bytes is valid.
    pub(crate) is_proven: bool,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl AttachingPeer {
    /// Completes the handshake and proposes shared memory, which the other end accepts.
    pub(crate) async fn new(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> Self {
        let local = endpoint.identity();
        let mut identity = [nonce; 56];
        identity[..16].copy_from_slice(&local.host);
        let (mut control, [ours, theirs]) = greet(listener, nonce, &identity, &["shm", "tcp"]).await;
        send(&mut control, &hand(3, b"shm")).await.unwrap();
        assert_eq!(read_handshake(&mut control).await, (READY, vec![]), "it attaches");
        let at = theirs.windows(4).position(|bytes| bytes == b"\x03shm").expect("it offers a local socket");
        let secret = Sha256::new().chain_update(b"towline session").chain_update(&ours).chain_update(&theirs);
        Self { control, local_socket: theirs[at + 6..at + 22].to_vec(), secret: secret.finalize().into() }
    }

    /// Returns a valid hello, and what the peer keeps: its segment, and the write end of its doorbell.
    pub(crate) fn hello(&self) -> (Hello, Segment, OwnedFd) {
        let segment = Segment::sealed();
        let (read_end, pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut words = [0; WORDS_LEN];
        words[..8].copy_from_slice(&MAGIC);
        words[8] = 1;
        words[12..16].copy_from_slice(&(RING_LEN as u32).to_le_bytes());
        words[16..32].copy_from_slice(&self.mac(b"towline meeting", b"")[..16]);
        let (_, holder) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let descriptors = vec![segment.memfd.try_clone().unwrap(), read_end, holder];
        (Hello { words, is_proven: true, descriptors }, segment, pipe)
    }

    /// Connects to the local socket, and sends nothing.
    pub(crate) fn dial(&self) -> UnixStream {
        let digits: String = self.local_socket.iter().map(|byte| format!("{byte:02x}")).collect();
        let at = SocketAddr::from_abstract_name(format!("towline-{digits}")).unwrap();
        let socket = UnixStream::connect_addr(&at).unwrap();
        socket.set_read_timeout(Some(WAIT_TIME)).unwrap();
        socket
    }

    /// Returns the bytes of `hello`.
    pub(crate) fn encode(&self, hello: &Hello) -> Vec<u8> {
        let proof = if hello.is_proven { self.mac(b"towline connector", &hello.words) } else { [7; 32] };
        [&hello.words[..], &proof].concat()
    }

    /// Connects and sends the hello. Returns the other end's ring length and descriptors, unless it closed.
    pub(crate) fn attach(&self, hello: &Hello) -> (UnixStream, Option<(usize, Vec<OwnedFd>)>) {
        let socket = self.dial();
        send_with_descriptors(&socket, &self.encode(hello), &hello.descriptors);
        let received = receive_hello(&socket).ok();
        (socket, received)
    }

    /// Confirms that this end is ready. Returns the other end's reason if it is not.
    pub(crate) async fn confirm(&mut self) -> Result<(), String> {
        send(&mut self.control, &hand(READY, b"")).await.unwrap();
        match read_handshake(&mut self.control).await {
            (READY, _) => Ok(()),
            (NOT_READY, reason) => Err(String::from_utf8(reason).unwrap()),
            other => panic!("the answer is {other:?}"),
        }
    }

    fn mac(&self, label: &[u8], words: &[u8]) -> [u8; 32] {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret).unwrap();
        mac.chain_update(label).chain_update(words).finalize().into_bytes().into()
    }
}

/// Sends bytes and descriptors. Ignores a closed socket.
pub(crate) fn send_with_descriptors(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

/// Receives a whole hello. Returns the length of its ring, and its descriptors.
fn receive_hello(socket: &UnixStream) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (mut len, mut descriptors) = (0, Vec::new());
    let mut hello = [0; HELLO_LEN];
    while len < HELLO_LEN {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut hello[len..])];
        match recvmsg(socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => len += received,
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
    }
    let ring_len = u32::from_le_bytes(std::array::from_fn(|at| hello[12 + at]));
    Ok((ring_len as usize, descriptors))
}

/// A raw peer that shares memory with a connection. Dropping it is its death.
pub(crate) struct ShmPeer {
    pub(crate) ours: Segment,
    /// The other end's segment, its doorbell, and the pipe of its lease holders.
    pub(crate) theirs: [OwnedFd; 3],
    pub(crate) their_ring_len: usize,
    pipe: OwnedFd,
    written: u64,
    /// Where ends that trust each other export arenas.
    pub(crate) attach: UnixStream,
    _control: Box<dyn Stream>,
}

impl ShmPeer {
    /// Attaches with a valid hello. Returns the peer and this end of its connection.
    pub(crate) async fn connected(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection) {
        let connected = Self::connected_with(endpoint, listener, nonce, |_| ()).await;
        connected.expect("a valid hello is accepted")
    }

    /// Attaches with a changed hello. Returns the reason if it is refused.
    pub(crate) async fn connected_with(
        endpoint: &Endpoint,
        listener: &Listener,
        nonce: u8,
        violation: impl FnOnce(&mut Hello),
    ) -> Result<(Self, Connection), String> {
        let mut attaching = AttachingPeer::new(endpoint, listener, nonce).await;
        let (mut hello, ours, pipe) = attaching.hello();
        violation(&mut hello);
        let (attach, received) = attaching.attach(&hello);
        attaching.confirm().await?;
        let (their_ring_len, theirs) = received.expect("it attaches");
        let theirs = theirs.try_into().expect("it sends three descriptors");
        let taken = tokio::time::timeout(HANDSHAKE_TIME, listener.accept()).await;
        let connection = taken.map_err(|_| "the listener did not accept it")?.unwrap();
        let control = attaching.control;
        Ok((Self { ours, theirs, their_ring_len, pipe, written: 0, attach, _control: control }, connection))
    }

    /// Attaches as a trusting peer.
    pub(crate) async fn trusted(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection) {
        let trusting = |hello: &mut Hello| hello.words[10] = 1;
        Self::connected_with(endpoint, listener, nonce, trusting).await.expect("it is accepted")
    }

    /// Writes more than its ring holds, as the other end consumes it.
    pub(crate) fn write_in_parts(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(RING_LEN / 2) {
            let limit = Instant::now() + WAIT_TIME;
            while self.peer_word(CONSUMED) + (RING_LEN / 2) as u64 <= self.written && Instant::now() < limit {
                std::thread::sleep(Duration::from_micros(100));
            }
            self.write(piece);
        }
    }

    /// Writes into its ring, publishes the bytes, and rings.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.write_unannounced(bytes);
        self.set_word(PRODUCED, self.written);
    }

    /// Writes into its ring without publishing the bytes.
    pub(crate) fn write_unannounced(&mut self, bytes: &[u8]) {
        let at = self.written as usize % RING_LEN;
        let (first, second) = bytes.split_at(bytes.len().min(RING_LEN - at));
        self.ours.store(RING_AT + at, first);
        self.ours.store(RING_AT, second);
        self.written += bytes.len() as u64;
    }

    /// Stores one of its words, and rings.
    pub(crate) fn set_word(&self, word: usize, value: u64) {
        self.ours.word(word).store(value, Ordering::SeqCst);
        self.ring();
    }

    pub(crate) fn ring(&self) {
        // A full or closed pipe needs no more rings.
        let _ = rustix::io::write(&self.pipe, &[1]);
    }

    /// Returns one of its own words.
    pub(crate) fn own_word(&self, word: usize) -> u64 {
        self.ours.word(word).load(Ordering::SeqCst)
    }

    /// Returns one of the other end's words.
    pub(crate) fn peer_word(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        pread(&self.theirs[0], &mut bytes, word as u64).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Returns the generation of our lease in `slot` that the other end has returned.
    pub(crate) fn returned(&self, slot: usize) -> u64 {
        self.peer_word(RING_AT + self.their_ring_len + 8 * slot)
    }

    /// Publishes that it has consumed everything.
    pub(crate) fn consume_all(&self) {
        self.set_word(CONSUMED, self.peer_word(PRODUCED));
    }
}

/// Sends bytes to the local socket. Ignores a closed socket.
pub(crate) fn send_bytes(mut socket: &UnixStream, bytes: &[u8]) {
    let _ = socket.write_all(bytes);
}
