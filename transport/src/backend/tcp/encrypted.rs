//! TLS between a link and its socket: plaintext above, ciphertext below.
//!
//! The invariant: buffered plaintext is always reported by [`Encrypted::has_buffered`], since the socket does
//! not become readable for it again.

use std::cell::RefCell;
use std::io::{self, BufRead, ErrorKind, IoSlice, Write};
use std::ops::Range;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::Connection;
use smallvec::SmallVec;

use super::socket::Raw;
use crate::backend::streamed::IoOutcome;
use crate::handshake;
use crate::memory::RawBytes;
use crate::platform::mutex::Mutex;

/// The most ciphertext waiting for the socket, in bytes, plus one record: enough for the peer to decrypt
/// while more is encrypted.
const UNSENT_LEN_MAX: usize = 256 << 10;
/// The most ciphertext per read. Bytes beyond the current need are usually needed soon.
const READ_LEN: usize = 256 << 10;
/// Foreign memory is copied for encryption in blocks of this length, in bytes: the plaintext of one TLS record.
const BLOCK_LEN: usize = 16 << 10;
/// Writes of more pieces than this allocate memory for their list.
const PIECES_INLINE: usize = 16;
/// The number of ciphertext buffers that a thread keeps while no link uses them.
const IDLE_MAX: usize = 2;

type Pieces<'a> = SmallVec<[RawBytes<'a>; PIECES_INLINE]>;

thread_local! {
    /// Spare ciphertext buffers. A link holds one only while it has undecrypted bytes, so an idle link holds
    /// none.
    static IDLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A TLS session over a link's socket.
#[derive(Debug)]
pub(super) struct Encrypted {
    state: Mutex<EncryptedState>,
    /// There is buffered plaintext.
    has_buffered: AtomicBool,
}

#[derive(Debug)]
struct EncryptedState {
    tls: Connection,
    /// The ciphertext buffer, and the range of it that is not decrypted yet.
    ciphertext: Vec<u8>,
    undecrypted: Range<usize>,
}

impl Encrypted {
    pub(super) fn new(mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(UNSENT_LEN_MAX));
        // Data sent right after the TLS handshake may be buffered already.
        let has_buffered = AtomicBool::new(true);
        Self {
            state: Mutex::new(EncryptedState { tls, ciphertext: Vec::new(), undecrypted: 0..0 }),
            has_buffered,
        }
    }

    /// Returns true if a read would return data without reading the socket.
    pub(super) fn has_buffered(&self) -> bool {
        self.has_buffered.load(Ordering::Acquire)
    }

    /// Encrypts and sends plaintext until the socket is full. Bytes counted as written may not have left yet.
    pub(super) fn write(&self, raw: &Raw, pieces: &[RawBytes<'_>]) -> io::Result<IoOutcome> {
        let mut state = self.state();
        let mut pieces = Pieces::from_slice(pieces);
        let mut rest = &mut pieces[..];
        let mut taken = 0;
        while state.send(raw)? && !rest.is_empty() {
            let len = state.encrypt(rest)?;
            advance(&mut rest, len);
            taken += len;
        }
        Ok(if taken > 0 { IoOutcome::Bytes(taken) } else { IoOutcome::WouldBlock })
    }

    /// Sends pending ciphertext. Returns true if all of it has left.
    pub(super) fn flush(&self, raw: &Raw) -> io::Result<bool> {
        self.state().send(raw)
    }

    /// Passes up to `wanted` bytes of plaintext to `deliver`. `WouldBlock` means that the socket has no data
    /// and nothing is buffered.
    pub(super) fn read(
        &self,
        raw: &Raw,
        wanted: usize,
        mut deliver: impl FnMut(&[u8]),
    ) -> io::Result<IoOutcome> {
        let mut state = self.state();
        let (mut delivered, mut dry) = (0, false);
        let ended = loop {
            let ended = state.deliver_plaintext(wanted, &mut delivered, &mut deliver);
            if ended || delivered == wanted {
                break ended;
            }
            if !state.undecrypted.is_empty() {
                state.decrypt()?;
                continue;
            }
            if dry {
                break false;
            }
            match state.receive(raw) {
                Ok(IoOutcome::Bytes(len)) => dry = len < READ_LEN,
                Ok(IoOutcome::WouldBlock) => dry = true,
                // Data received before the connection failed is delivered; the next read reports the end.
                Err(_) if delivered > 0 => dry = true,
                Err(error) => return Err(error),
            }
        };
        while !state.undecrypted.is_empty() && !state.has_buffered() {
            state.decrypt()?;
        }
        state.recycle_memory();
        self.has_buffered.store(state.has_buffered(), Ordering::Release);
        Ok(if delivered > 0 || ended { IoOutcome::Bytes(delivered) } else { IoOutcome::WouldBlock })
    }

    /// Sends TLS's authenticated end of stream. Nothing more is written.
    pub(super) fn send_close_notify(&self, raw: &Raw) {
        let mut state = self.state();
        state.tls.send_close_notify();
        // Best effort: the socket may be full or closed.
        let _ = state.send(raw);
    }

    fn state(&self) -> MutexGuard<'_, EncryptedState> {
        self.state.lock()
    }
}

impl EncryptedState {
    /// Sends ciphertext until none is left (true) or the socket is full (false).
    fn send(&mut self, raw: &Raw) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut CiphertextSocket(raw)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Encrypts bytes from the front of `pieces`, which are not empty, while there is room for ciphertext.
    /// Returns how many.
    fn encrypt(&mut self, pieces: &[RawBytes<'_>]) -> io::Result<usize> {
        let slices = pieces.iter().map_while(|piece| piece.as_slice().map(IoSlice::new));
        let slices: SmallVec<[_; PIECES_INLINE]> = slices.collect();
        if !slices.is_empty() {
            return self.tls.writer().write_vectored(&slices);
        }
        // Others may write the first piece, so that rustls gets a copy of each block.
        let (mut rest, mut taken) = (pieces[0], 0);
        let mut block = Vec::with_capacity(rest.len().min(BLOCK_LEN));
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.len().min(BLOCK_LEN));
            block.clear();
            part.append_to(&mut block);
            let len = self.tls.writer().write(&block)?;
            taken += len;
            if len < block.len() {
                break;
            }
            rest = later;
        }
        Ok(taken)
    }

    /// Passes plaintext to `deliver` until `wanted` bytes are `delivered` or none is left. Returns true at
    /// the end of the stream.
    fn deliver_plaintext(
        &mut self,
        wanted: usize,
        delivered: &mut usize,
        deliver: &mut impl FnMut(&[u8]),
    ) -> bool {
        while *delivered < wanted {
            let mut plaintext = self.tls.reader();
            match plaintext.fill_buf() {
                Ok([]) => return true,
                Ok(bytes) => {
                    let len = bytes.len().min(wanted - *delivered);
                    deliver(&bytes[..len]);
                    plaintext.consume(len);
                    *delivered += len;
                }
                // An end without close_notify is an end too: the session's close record decides whether the
                // peer was lost.
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        false
    }

    /// Reads ciphertext. Called only while there is none.
    fn receive(&mut self, raw: &Raw) -> io::Result<IoOutcome> {
        if self.ciphertext.is_empty() {
            let idle = IDLE.with_borrow_mut(Vec::pop);
            self.ciphertext = idle.unwrap_or_else(|| vec![0; READ_LEN]);
        }
        let moved = raw.receive(&mut self.ciphertext)?;
        match moved {
            IoOutcome::Bytes(0) => drop(self.tls.read_tls(&mut io::empty())?),
            IoOutcome::Bytes(len) => self.undecrypted = 0..len,
            IoOutcome::WouldBlock => {}
        }
        Ok(moved)
    }

    /// Decrypts the next records. Called only after all plaintext was delivered.
    fn decrypt(&mut self) -> io::Result<()> {
        self.undecrypted.start += self.tls.read_tls(&mut &self.ciphertext[self.undecrypted.clone()])?;
        self.tls
            .process_new_packets()
            .map_err(|fault| io::Error::other(handshake::tls_error(&self.tls, fault)))?;
        Ok(())
    }

    fn recycle_memory(&mut self) {
        if self.undecrypted.is_empty() && !self.ciphertext.is_empty() {
            let memory = std::mem::take(&mut self.ciphertext);
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < IDLE_MAX {
                    idle.push(memory);
                }
            });
        }
    }

    /// Returns true if there is plaintext, or the end of the stream.
    fn has_buffered(&mut self) -> bool {
        !matches!(self.tls.reader().fill_buf(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// Removes `len` bytes from the front of `pieces`.
fn advance(pieces: &mut &mut [RawBytes<'_>], mut len: usize) {
    while let Some(first) = pieces.first_mut() {
        if len < first.len() {
            *first = first.split_at(len).1;
            return;
        }
        len -= first.len();
        *pieces = &mut std::mem::take(pieces)[1..];
    }
}

/// A socket that rustls writes ciphertext to.
struct CiphertextSocket<'a>(&'a Raw);

impl Write for CiphertextSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.0.send(slices)? {
            IoOutcome::Bytes(len) => Ok(len),
            IoOutcome::WouldBlock => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
