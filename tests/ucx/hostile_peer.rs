//! A hostile peer: it performs the handshake as Towline does, and then sends any bytes over UCX.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use towline::Listener;
use ucx_sys::{Library, UCP_AM_SEND_FLAG_EAGER, ucp_send_am_flags};

use crate::node::{Node, Sending};
use crate::polls::TIMEOUT;
use crate::wire::{MAGIC, hand, hello};

// The ids of messages over UCX.
pub(crate) const RECORDS: u32 = 0;
pub(crate) const PACKET: u32 = 1;
pub(crate) const HELLO: u32 = 2;

// The types of handshake messages.
pub(crate) const PROPOSE: u8 = 3;
pub(crate) const READY: u8 = 4;
pub(crate) const NOT_READY: u8 = 5;
pub(crate) const REFUSE: u8 = 6;
const PROPOSE_INFO: u8 = 9;
pub(crate) const READY_INFO: u8 = 10;
pub(crate) const MEASURE: u8 = 11;

/// A hostile peer whose connection is open.
pub(crate) struct HostilePeer {
    pub(crate) node: Node,
    /// Memory that UCX may read as long as the node lives.
    sent: RefCell<Vec<Sending<'static>>>,
    /// The key of the other end.
    pub(crate) key: [u8; 16],
    _handshake: Handshake,
}

/// The stream of the handshake.
pub(crate) struct Handshake(TcpStream);

impl HostilePeer {
    /// Connects as a correct peer does.
    pub(crate) fn connected(
        ucx: &'static Library,
        listener: &Listener,
        nonce: u8,
        settings: &[(&CStr, &CStr)],
    ) -> Self {
        let mut met = None;
        let node = Node::attach(ucx, settings, |info| {
            let (mut handshake, key) = Handshake::greeted(listener, nonce);
            handshake.send(&propose(&info_of(ucx, info)));
            let (kind, theirs) = handshake.receive(|| ());
            assert_eq!(kind, READY_INFO, "{}", String::from_utf8_lossy(&theirs));
            met = Some((handshake, key));
            theirs[INFO_HEAD_LEN..].to_vec()
        });
        let (mut handshake, key) = met.unwrap();
        let sent = RefCell::new(vec![node.send_as(HELLO, &key, (&[]).into(), UCP_AM_SEND_FLAG_EAGER)]);
        handshake.send(&hand(READY, b""));
        assert_eq!(handshake.receive(|| node.progress()), (READY, vec![]), "the acceptor is open");
        Self { node, sent, key, _handshake: handshake }
    }

    /// Sends a message eagerly, whatever its length.
    pub(crate) fn send(&self, id: u32, header: &[u8], body: Vec<u8>) {
        self.send_with(id, header, body, UCP_AM_SEND_FLAG_EAGER);
    }

    pub(crate) fn send_with(&self, id: u32, header: &[u8], body: Vec<u8>, flag: ucp_send_am_flags) {
        self.sent.borrow_mut().push(self.node.send_as(id, header, body.into(), flag));
    }

    /// Returns a header for the other end: its key, then `rest`.
    pub(crate) fn header(&self, rest: &[u8]) -> Vec<u8> {
        [&self.key[..], rest].concat()
    }
}

impl Handshake {
    /// Connects and exchanges proofs. Returns the stream, and the key of the listening end.
    pub(crate) fn greeted(listener: &Listener, nonce: u8) -> (Self, [u8; 16]) {
        let address = listener.address();
        let stream = TcpStream::connect((address.host(), address.port())).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut handshake = Self(stream);
        let ours = hello([nonce; 32], &[nonce; 56], &[("ucx", &[])]);
        handshake.send(&ours);
        let (kind, theirs) = handshake.receive(|| ());
        assert_eq!(kind, 1, "its Hello");
        handshake.send(&hand(2, &[0; 32]));
        assert_eq!(handshake.receive(|| ()), (2, vec![0; 32]), "its Proof");
        let secret = Sha256::new().chain_update(b"towline session").chain_update(&ours);
        let secret = secret.chain_update(hand(1, &theirs)).finalize();
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&secret).unwrap();
        let mac = mac.chain_update(b"towline acceptor").chain_update(b"ucx").finalize().into_bytes();
        (handshake, std::array::from_fn(|at| mac[at]))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // The bytes fit in the socket's buffer.
        self.0.write_all(bytes).unwrap();
    }

    /// Receives the next handshake message, calling `progress` meanwhile.
    pub(crate) fn receive(&mut self, mut progress: impl FnMut()) -> (u8, Vec<u8>) {
        let head = self.read(16, &mut progress);
        assert!(head.starts_with(MAGIC), "{head:?}");
        let len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        (head[8], self.read(len as usize, &mut progress))
    }

    fn read(&mut self, len: usize, progress: &mut impl FnMut()) -> Vec<u8> {
        let (mut bytes, mut read) = (vec![0; len], 0);
        let deadline = Instant::now() + TIMEOUT;
        while read < len {
            match self.0.read(&mut bytes[read..]) {
                Ok(0) => panic!("the stream ended"),
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "no message within {TIMEOUT:?}");
                    progress();
                    sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        bytes
    }
}

/// The bytes before the worker's address.
const INFO_HEAD_LEN: usize = 8;

/// Returns the endpoint info of an end with this UCX.
pub(crate) fn info_of(ucx: &Library, address: &[u8]) -> Vec<u8> {
    let version = ucx.version();
    let [major, minor, release] =
        [version.major, version.minor, version.release].map(|word| (word as u16).to_le_bytes());
    [&[1, 0][..], &major, &minor, &release, address].concat()
}

/// Returns a proposal of UCX with this endpoint info.
pub(crate) fn propose(info: &[u8]) -> Vec<u8> {
    hand(PROPOSE_INFO, &[&[1, 3], &b"ucx"[..], info].concat())
}
