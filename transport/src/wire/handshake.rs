//! Handshake messages, and the checks on which both ends must agree. `docs/handshake.md` specifies every
//! byte.
//!
//! All of this is read from unauthenticated peers. A length is checked before anything of that length is
//! allocated, and text from a peer is sanitized before it is shown.
#![forbid(unsafe_code)]

mod decode;
mod text;
mod transcript;

use std::fmt;
use std::ops::RangeInclusive;

use crate::{Error, ErrorKind, Result};

pub(crate) use decode::{decode, head};
pub(crate) use text::{clean, excerpt, shorten};
pub use transcript::Role;
pub(crate) use transcript::{AttachKey, JoinKey, Transcript};

/// The first bytes of every handshake message. The last byte ends the output if a terminal displays the
/// stream.
pub(crate) const MAGIC: [u8; 8] = *b"TOWLINE\x1a";
/// The lowest version that this build speaks.
pub(crate) const VERSION_MIN: u16 = 1;
/// The highest version that this build speaks.
pub(crate) const VERSION_MAX: u16 = 1;

/// Feature bit: checksums on the data stream. An acceptor always has it, a connector if its address asks for
/// it.
pub(crate) const CRC32C: u64 = 1;

/// Feature bit: several streams. An acceptor always has it, a connector if its address asks for it.
pub(crate) const STREAMS: u64 = 2;
/// The most streams of one connection, the main one included.
pub(crate) const STREAMS_MAX: usize = 16;

pub(crate) const HEAD_LEN: usize = 16;
/// The most bytes of one message, head and body.
pub(crate) const MESSAGE_LEN_MAX: usize = 64 * 1024;
pub(crate) const IDENTITY_LEN: usize = 56;
pub(crate) const NONCE_LEN: usize = 32;
pub(crate) const MAC_LEN: usize = 32;
/// The length of a TLS channel binding, in bytes.
pub(crate) const BINDING_LEN: usize = 32;
/// The length of the name of a connection that waits for its additional streams, in bytes.
pub(crate) const NAME_LEN: usize = 16;
pub(crate) const OFFERS_MAX: usize = 16;
pub(crate) const OFFER_LEN_MAX: usize = 16 * 1024;
pub(crate) const INFO_LEN_MAX: usize = 16 * 1024;
pub(crate) const BACKEND_LEN_MAX: usize = 16;
pub(crate) const REASON_LEN_MAX: usize = 1024;
/// The most bytes after one [`HandshakeMessage::Measure`].
pub(crate) const MEASURE_LEN_MAX: usize = 1 << 20;

/// One message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeMessage {
    /// The first message of both ends.
    Hello(Hello),
    /// Proof of possession of the token; all zero if neither end has one.
    Proof { mac: [u8; MAC_LEN] },
    /// The connector proposes a backend.
    Propose { backend: String },
    /// The acceptor is ready to open it.
    Ready,
    /// The acceptor cannot open it; another may be proposed.
    NotReady { reason: String },
    /// The sender ends the handshake.
    Refuse { kind: ErrorKind, reason: String },
    /// The connector proposes a backend with several streams.
    ProposeStreams { streams: u8, backend: String },
    /// The first and only message on an additional stream.
    Join(Join),
    /// The connector proposes a backend with a number of streams, and sends endpoint info, which
    /// unauthenticated peers may not see.
    ProposeInfo { streams: u8, backend: String, info: Vec<u8> },
    /// The acceptor is ready to open it, and answers with its own endpoint info.
    ReadyInfo { info: Vec<u8> },
    /// The connector measures the stream: `len` bytes of no meaning follow.
    Measure { len: usize },
}

/// Assigns an additional stream to a connection, with a proof that it belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) connection: [u8; NAME_LEN],
    /// Counted from 1; stream 0 is that of the handshake.
    pub(crate) stream: u8,
    pub(crate) mac: [u8; MAC_LEN],
}

/// The properties of one end. The proofs cover all of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) features: u64,
    pub(crate) nonce: [u8; NONCE_LEN],
    /// Opaque here; `handshake::identity` decodes it.
    pub(crate) identity: [u8; IDENTITY_LEN],
    /// Whether the sender has a token. It then sends a proof and requires one.
    pub(crate) authenticates: bool,
    pub(crate) offers: Vec<Offer>,
}

/// What one backend sends to the same backend of the peer. Unauthenticated peers can read it, so nothing in
/// it may grant access.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The backend's name: at most 16 lowercase letters, digits, `-` and `_`.
    pub(crate) backend: String,
    /// Opaque bytes of that backend, at most 16 KiB.
    pub(crate) bytes: Vec<u8>,
}

impl HandshakeMessage {
    /// Appends the message, head included. A message beyond a limit is `Invalid` or `TooLarge`, and leaves
    /// `out` unchanged.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[self.kind().code(), 0, 0, 0, 0, 0, 0, 0]);
        let result = self.encode_body(out).and_then(|()| {
            let body_len = out.len() - start - HEAD_LEN;
            if body_len > self.kind().body_len_max() {
                return Err(too_large(format!(
                    "{} of {body_len} bytes exceeds the limit of {}: offer fewer backends, or shorter offers",
                    self.kind(),
                    self.kind().body_len_max()
                )));
            }
            out[start + 12..start + HEAD_LEN].copy_from_slice(&(body_len as u32).to_le_bytes());
            Ok(())
        });
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Returns the kind of this message.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Proof { .. } => Kind::Proof,
            Self::Propose { .. } => Kind::Propose,
            Self::Ready => Kind::Ready,
            Self::NotReady { .. } => Kind::NotReady,
            Self::Refuse { .. } => Kind::Refuse,
            Self::ProposeStreams { .. } => Kind::ProposeStreams,
            Self::Join(_) => Kind::Join,
            Self::ProposeInfo { .. } => Kind::ProposeInfo,
            Self::ReadyInfo { .. } => Kind::ReadyInfo,
            Self::Measure { .. } => Kind::Measure,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Hello(hello) => hello.encode(out)?,
            Self::Proof { mac } => out.extend_from_slice(mac),
            Self::Propose { backend } => {
                check_backend(backend.as_bytes(), ErrorKind::Invalid)?;
                out.extend_from_slice(backend.as_bytes());
            }
            Self::Ready => {}
            Self::NotReady { reason } => {
                out.extend_from_slice(shorten(reason, REASON_LEN_MAX).as_bytes());
            }
            Self::Refuse { kind, reason } => {
                out.push(code_of(*kind));
                out.extend_from_slice(shorten(reason, REASON_LEN_MAX).as_bytes());
            }
            Self::ProposeStreams { streams, backend } => {
                check_backend(backend.as_bytes(), ErrorKind::Invalid)?;
                out.push(*streams);
                out.extend_from_slice(backend.as_bytes());
            }
            Self::Join(Join { connection, stream, mac }) => {
                out.extend_from_slice(connection);
                out.push(*stream);
                out.extend_from_slice(mac);
            }
            Self::ProposeInfo { streams, backend, info } => {
                check_backend(backend.as_bytes(), ErrorKind::Invalid)?;
                check_info(info, ErrorKind::Invalid)?;
                out.extend_from_slice(&[*streams, backend.len() as u8]);
                out.extend_from_slice(backend.as_bytes());
                out.extend_from_slice(info);
            }
            Self::ReadyInfo { info } => {
                check_info(info, ErrorKind::Invalid)?;
                out.extend_from_slice(info);
            }
            Self::Measure { len } => {
                let len = check_measure(*len as u64, ErrorKind::Invalid)?;
                out.extend_from_slice(&(len as u32).to_le_bytes());
            }
        }
        Ok(())
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.version_min.to_le_bytes());
        out.extend_from_slice(&self.version_max.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.identity);
        out.push(self.authenticates.into());
        if self.offers.len() > OFFERS_MAX {
            return Err(too_large(format!("{} offers exceed the limit of {OFFERS_MAX}", self.offers.len())));
        }
        out.push(self.offers.len() as u8);
        for (at, Offer { backend, bytes }) in self.offers.iter().enumerate() {
            check_backend(backend.as_bytes(), ErrorKind::Invalid)?;
            if self.offers[..at].iter().any(|earlier| earlier.backend == *backend) {
                return Err(Error::new(ErrorKind::Invalid, format!("two offers are named {backend}")));
            }
            if bytes.len() > OFFER_LEN_MAX {
                return Err(too_large(format!(
                    "the offer of {backend}, {} bytes, exceeds the limit of {OFFER_LEN_MAX}",
                    bytes.len()
                )));
            }
            out.push(backend.len() as u8);
            out.extend_from_slice(backend.as_bytes());
            out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        Ok(())
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &(self.version_min..=self.version_max))
            .field("authenticates", &self.authenticates)
            .field("offers", &self.offers)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offer({}, {} bytes)", self.backend, self.bytes.len())
    }
}

/// The kinds of messages, as a head encodes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello = 1,
    Proof,
    Propose,
    Ready,
    NotReady,
    Refuse,
    ProposeStreams,
    Join,
    ProposeInfo,
    ReadyInfo,
    Measure,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Proof,
        Self::Propose,
        Self::Ready,
        Self::NotReady,
        Self::Refuse,
        Self::ProposeStreams,
        Self::Join,
        Self::ProposeInfo,
        Self::ReadyInfo,
        Self::Measure,
    ];

    fn code(self) -> u8 {
        self as u8
    }

    fn body_len_max(self) -> usize {
        match self {
            Self::Hello => MESSAGE_LEN_MAX - HEAD_LEN,
            Self::Proof => MAC_LEN,
            Self::Propose => BACKEND_LEN_MAX,
            Self::Ready => 0,
            Self::NotReady => REASON_LEN_MAX,
            Self::Refuse => 1 + REASON_LEN_MAX,
            Self::ProposeStreams => 1 + BACKEND_LEN_MAX,
            Self::Join => NAME_LEN + 1 + MAC_LEN,
            Self::ProposeInfo => 2 + BACKEND_LEN_MAX + INFO_LEN_MAX,
            Self::ReadyInfo => INFO_LEN_MAX,
            Self::Measure => size_of::<u32>(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Returns the protocol version of a connection between these two ends, or why there is none. Both ends call
/// this with the same arguments and get the same result.
///
/// The error texts name roles, since the end that refuses sends them to the other.
pub(crate) fn agree(connector: &Hello, acceptor: &Hello) -> Result<u16> {
    let version = negotiate(
        acceptor.version_min..=acceptor.version_max,
        connector.version_min..=connector.version_max,
    )?;
    if connector.nonce == acceptor.nonce {
        return Err(Error::new(
            ErrorKind::Incompatible,
            "both ends sent the same nonce: the handshake was reflected, or the random numbers are broken",
        ));
    }
    let lacking = match (connector.authenticates, acceptor.authenticates) {
        (false, true) => {
            "the acceptor requires a token and the connector has none: give the connector the same token"
        }
        (true, false) => {
            "the connector requires a token and the acceptor has none: give the acceptor the same token"
        }
        _ => return Ok(version),
    };
    Err(Error::new(ErrorKind::Unauthenticated, lacking))
}

/// Returns the highest version in both ranges. The error text is valid at both ends.
pub(crate) fn negotiate(refusing: RangeInclusive<u16>, refused: RangeInclusive<u16>) -> Result<u16> {
    let highest = *refusing.end().min(refused.end());
    if refusing.contains(&highest) && refused.contains(&highest) {
        return Ok(highest);
    }
    let range = |versions: &RangeInclusive<u16>| format!("{} to {}", versions.start(), versions.end());
    Err(Error::new(
        ErrorKind::Incompatible,
        format!(
            "no common protocol version: the refusing end speaks {}, the other end {}; upgrade the older one",
            range(&refusing),
            range(&refused)
        ),
    ))
}

/// The codes of [`HandshakeMessage::Refuse`]. A kind without a code is sent as `Unavailable`: it is a failure of
/// the refusing end, which may pass. An unknown code is read as `Incompatible`.
const CODES: [(u8, ErrorKind); 9] = [
    (1, ErrorKind::Incompatible),
    (2, ErrorKind::Unauthenticated),
    (3, ErrorKind::TooLarge),
    (4, ErrorKind::Corrupt),
    (5, ErrorKind::Unavailable),
    (6, ErrorKind::Unsupported),
    (7, ErrorKind::Invalid),
    (8, ErrorKind::TimedOut),
    (9, ErrorKind::Closed),
];

fn code_of(kind: ErrorKind) -> u8 {
    CODES.iter().find(|(_, known)| *known == kind).map_or(5, |(code, _)| *code)
}

fn kind_of(code: u8) -> ErrorKind {
    CODES.iter().find(|(known, _)| *known == code).map_or(ErrorKind::Incompatible, |(_, kind)| *kind)
}

fn check_backend(name: &[u8], kind: ErrorKind) -> Result<&str> {
    let fits = (1..=BACKEND_LEN_MAX).contains(&name.len());
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    match std::str::from_utf8(name) {
        Ok(name) if fits && name.as_bytes().iter().all(plain) => Ok(name),
        _ => Err(Error::new(
            kind,
            format!(
                "\"{}\" is not a backend name, which has 1 to {BACKEND_LEN_MAX} lowercase letters, digits, - and _",
                excerpt(name)
            ),
        )),
    }
}

/// Checks an endpoint info. It is never empty: a proposal without one is another message.
fn check_info(info: &[u8], kind: ErrorKind) -> Result<&[u8]> {
    match info.len() {
        0 => Err(Error::new(kind, "an endpoint info is empty")),
        1..=INFO_LEN_MAX => Ok(info),
        len => Err(too_large(format!("an endpoint info of {len} bytes exceeds the limit of {INFO_LEN_MAX}"))),
    }
}

/// Checks the length of a measurement, which is not 0.
fn check_measure(len: u64, kind: ErrorKind) -> Result<usize> {
    match usize::try_from(len) {
        Ok(0) => Err(Error::new(kind, "a measurement of no bytes")),
        Ok(len) if len <= MEASURE_LEN_MAX => Ok(len),
        _ => Err(too_large(format!("a measurement of {len} bytes exceeds the limit of {MEASURE_LEN_MAX}"))),
    }
}

fn too_large(detail: String) -> Error {
    Error::new(ErrorKind::TooLarge, detail)
}

#[cfg(test)]
mod tests;
