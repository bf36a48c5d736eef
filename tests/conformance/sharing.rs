//! A peer made by hand that shares memory: it goes where peers of one host meet, says and shows what it likes, and writes into
//! its own segment whatever it likes at any time.

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
use crate::raw_peer::{greet, hand, heard, send};

const MAGIC: [u8; 8] = *b"TOWLSHM\x1a";
const WORDS_LEN: usize = 56;
pub(crate) const HELLO_LEN: usize = WORDS_LEN + 32;
/// Where a ring begins in its segment, and how long this peer's is.
const BYTES_AT: usize = 4096;
pub(crate) const RING_LEN: usize = 64 << 10;
pub(crate) const SEGMENT_LEN: usize = BYTES_AT + RING_LEN + TABLE_LEN;
/// The words on loans, behind the ring, and where the other end's begin.
const TABLE_LEN: usize = 32 << 10;
pub(crate) const TABLE_AT: usize = BYTES_AT + RING_LEN;
pub(crate) const THEIR_TABLE_AT: usize = BYTES_AT + (256 << 10);
/// What a segment says of its end, by where.
pub(crate) const PRODUCED: usize = 0;
pub(crate) const CONSUMED: usize = 128;
pub(crate) const ASLEEP: usize = 256;
/// How long this peer waits for a word at the meeting.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most descriptors it shows.
const SHOWN_MAX: usize = 8;

const READY: u8 = 4;
const NOT_READY: u8 = 5;

/// An endpoint that takes any backend, and where peers by hand and friends come to it.
pub(crate) async fn listening(row: &Row) -> (Endpoint, Listener) {
    let endpoint = row.builder().handshake_time(HANDSHAKE_TIME).build().unwrap();
    let listener = endpoint.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (endpoint, listener)
}

/// Half of it is how long an end waits for the other to come to the meeting.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(1);

/// Where an honest peer of this process gets shared memory, and nothing else.
pub(crate) fn by_shm(listener: &Listener) -> Address {
    let address = listener.address();
    format!("shm://{}:{}", address.host(), address.port()).parse().unwrap()
}

/// An honest connection: the connecting end, and the accepting one.
pub(crate) async fn friend(near: &Endpoint, listener: &Listener) -> (Connection, Connection) {
    let address = by_shm(listener);
    let both = async { tokio::join!(near.connect(&address), listener.accept()) };
    let (a, b) = in_time("a friend", both).await;
    (a.unwrap(), b.unwrap())
}

/// Memory as a segment is, or almost.
pub(crate) struct Segment {
    pub(crate) memfd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address of a mapping that stays until drop (M1).
unsafe impl Send for Segment {}

impl Segment {
    /// One that is whole and sealed, as it should be.
    pub(crate) fn sealed() -> Self {
        let segment = Self::open(SEGMENT_LEN);
        // Not `fallocate`: pages that were never filled count as holes.
        segment.store(0, &[0; SEGMENT_LEN]);
        segment.seal(SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL);
        segment
    }

    /// One of `len` bytes without a page or a seal.
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

    /// One of its aligned words.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.len && at.is_multiple_of(8));
        let word = self.base.as_ptr().wrapping_add(at).cast::<u64>();
        // SAFETY: aligned and within the mapping, which stays while this is borrowed (M1); other accesses here are atomic too.
        unsafe { AtomicU64::from_ptr(word) }
    }

    pub(crate) fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        let to = self.base.as_ptr().wrapping_add(at);
        // SAFETY: within the mapping (M1), which nobody writes but this peer's one thread (M9), and no part of `bytes`.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: M1: a whole mapping of this value's own, with nothing borrowed of it any more.
        unsafe { munmap(self.base.as_ptr().cast(), self.len) }.unwrap();
    }
}

/// A peer that has proposed to share memory, and is expected at the meeting.
pub(crate) struct Visitor {
    pub(crate) control: Box<dyn Stream>,
    local_socket: Vec<u8>,
    secret: [u8; 32],
}

/// What it says and shows there.
pub(crate) struct Hello {
    /// What it says: magic, version, flags, length of its ring, name of the connection, and where its memory is, which is nowhere.
    pub(crate) words: [u8; WORDS_LEN],
    /// Whether that is proven.
    pub(crate) proven: bool,
    pub(crate) shown: Vec<OwnedFd>,
}

impl Visitor {
    /// Greets, and proposes shared memory, for which the other end is ready.
    pub(crate) async fn new(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> Self {
        let local = endpoint.identity();
        let mut identity = [nonce; 56];
        identity[..16].copy_from_slice(&local.host);
        let (mut control, [ours, theirs]) = greet(listener, nonce, &identity, &["shm", "tcp"]).await;
        send(&mut control, &hand(3, b"shm")).await.unwrap();
        assert_eq!(heard(&mut control).await, (READY, vec![]), "it comes to the meeting");
        let at = theirs.windows(4).position(|bytes| bytes == b"\x03shm").expect("it offers a meeting");
        let secret = Sha256::new().chain_update(b"towline session").chain_update(&ours).chain_update(&theirs);
        Self { control, local_socket: theirs[at + 6..at + 22].to_vec(), secret: secret.finalize().into() }
    }

    /// What an honest peer would say and show, and what it keeps: its segment, and the doorbell pipe of its doorbell.
    pub(crate) fn hello(&self) -> (Hello, Segment, OwnedFd) {
        let segment = Segment::sealed();
        let (heard_at, pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut words = [0; WORDS_LEN];
        words[..8].copy_from_slice(&MAGIC);
        words[8] = 1;
        words[12..16].copy_from_slice(&(RING_LEN as u32).to_le_bytes());
        words[16..32].copy_from_slice(&self.mac(b"towline meeting", b"")[..16]);
        let (_, holder) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let shown = vec![segment.memfd.try_clone().unwrap(), heard_at, holder];
        (Hello { words, proven: true, shown }, segment, pipe)
    }

    /// A socket to the meeting, on which nothing was said.
    pub(crate) fn dial(&self) -> UnixStream {
        let digits: String = self.local_socket.iter().map(|byte| format!("{byte:02x}")).collect();
        let at = SocketAddr::from_abstract_name(format!("towline-{digits}")).unwrap();
        let socket = UnixStream::connect_addr(&at).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// The bytes of `hello`.
    pub(crate) fn spelled(&self, hello: &Hello) -> Vec<u8> {
        let proof = if hello.proven { self.mac(b"towline connector", &hello.words) } else { [7; 32] };
        [&hello.words[..], &proof].concat()
    }

    /// Goes there and says this; what came back, unless the other end hung up.
    pub(crate) fn meet(&self, hello: &Hello) -> (UnixStream, Option<Vec<OwnedFd>>) {
        let socket = self.dial();
        show(&socket, &self.spelled(hello), &hello.shown);
        let heard = listen(&socket).ok();
        (socket, heard)
    }

    /// Says that this end is ready; whether the other is too, or why not.
    pub(crate) async fn conclude(&mut self) -> Result<(), String> {
        send(&mut self.control, &hand(READY, b"")).await.unwrap();
        match heard(&mut self.control).await {
            (READY, _) => Ok(()),
            (NOT_READY, reason) => Err(String::from_utf8(reason).unwrap()),
            other => panic!("its word is {other:?}"),
        }
    }

    fn mac(&self, label: &[u8], words: &[u8]) -> [u8; 32] {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret).unwrap();
        mac.chain_update(label).chain_update(words).finalize().into_bytes().into()
    }
}

/// Says these bytes and shows these descriptors, as far as the other end still listens.
pub(crate) fn show(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SHOWN_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let shown: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !shown.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&shown)));
    }
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

/// Hears a whole hello: the descriptors that came with it.
fn listen(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let (mut len, mut descriptors) = (0, Vec::new());
    while len < HELLO_LEN {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SHOWN_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; HELLO_LEN];
        let mut room = [IoSliceMut::new(&mut bytes[len..])];
        match recvmsg(socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => len += received,
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(shown) = message {
                descriptors.extend(shown);
            }
        }
    }
    Ok(descriptors)
}

/// A peer by hand that shares memory with a connection. Dropped, it is dead.
pub(crate) struct Sharer {
    pub(crate) ours: Segment,
    /// The other end's segment, where its doorbell is heard, and what a holder of its loans keeps.
    pub(crate) theirs: [OwnedFd; 3],
    pipe: OwnedFd,
    written: u64,
    /// Where arenas are shown between ends that trust each other.
    pub(crate) attach: UnixStream,
    _control: Box<dyn Stream>,
}

impl Sharer {
    /// One, and the connection it is the peer of.
    pub(crate) async fn connected(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection) {
        let connected = Self::connected_by(endpoint, listener, nonce, |_| ()).await;
        connected.expect("what is honest is believed")
    }

    /// The same after a lie, if it is believed.
    pub(crate) async fn connected_by(
        endpoint: &Endpoint,
        listener: &Listener,
        nonce: u8,
        violation: impl FnOnce(&mut Hello),
    ) -> Result<(Self, Connection), String> {
        let mut visitor = Visitor::new(endpoint, listener, nonce).await;
        let (mut hello, ours, pipe) = visitor.hello();
        violation(&mut hello);
        let (attach, shown) = visitor.meet(&hello);
        visitor.conclude().await?;
        let theirs = shown.expect("it comes to the meeting").try_into().expect("it shows three");
        let taken = tokio::time::timeout(HANDSHAKE_TIME, listener.accept()).await;
        let connection = taken.map_err(|_| "it was not taken in")?.unwrap();
        let control = visitor.control;
        Ok((Self { ours, theirs, pipe, written: 0, attach, _control: control }, connection))
    }

    /// The same, which is trusted.
    pub(crate) async fn trusted(endpoint: &Endpoint, listener: &Listener, nonce: u8) -> (Self, Connection) {
        let trusting = |hello: &mut Hello| hello.words[10] = 1;
        Self::connected_by(endpoint, listener, nonce, trusting).await.expect("it is believed")
    }

    /// Writes more than its ring has room for, as far as the other end takes it.
    pub(crate) fn pour(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(RING_LEN / 2) {
            let limit = Instant::now() + PATIENCE;
            while self.heard(CONSUMED) + (RING_LEN / 2) as u64 <= self.written && Instant::now() < limit {
                std::thread::sleep(Duration::from_micros(100));
            }
            self.write(piece);
        }
    }

    /// Writes into its ring, tells of it and rings.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.leave(bytes);
        self.tell(PRODUCED, self.written);
    }

    /// Writes into its ring and tells nobody.
    pub(crate) fn leave(&mut self, bytes: &[u8]) {
        let at = self.written as usize % RING_LEN;
        let (first, second) = bytes.split_at(bytes.len().min(RING_LEN - at));
        self.ours.store(BYTES_AT + at, first);
        self.ours.store(BYTES_AT, second);
        self.written += bytes.len() as u64;
    }

    /// Says that one of its words is this, and rings.
    pub(crate) fn tell(&self, word: usize, value: u64) {
        self.ours.word(word).store(value, Ordering::SeqCst);
        self.ring();
    }

    pub(crate) fn ring(&self) {
        // Full, or nobody there: rung often enough.
        let _ = rustix::io::write(&self.pipe, &[1]);
    }

    /// What one of its own words says.
    pub(crate) fn told(&self, word: usize) -> u64 {
        self.ours.word(word).load(Ordering::SeqCst)
    }

    /// What one of the other end's words says.
    pub(crate) fn heard(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        pread(&self.theirs[0], &mut bytes, word as u64).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Says that it has taken everything.
    pub(crate) fn swallow(&self) {
        self.tell(CONSUMED, self.heard(PRODUCED));
    }
}

/// Says something at the meeting that is not from a peer of anybody, as far as it is heard.
pub(crate) fn babble(mut socket: &UnixStream, bytes: &[u8]) {
    let _ = socket.write_all(bytes);
}
