//! The transcript of a handshake, and the proofs of possession of the token.
//!
//! The transcript is both `Hello` messages as they were sent. Changing either invalidates both proofs.

use std::ops::Range;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{BINDING_LEN, Join, MAC_LEN, NAME_LEN};
use crate::{Error, ErrorKind, Result};

/// The role of an end in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened the connection, and sends its proof first.
    Connector,
    /// Accepted the connection.
    Acceptor,
}

impl Role {
    /// Returns the role's name for error texts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::Acceptor => "acceptor",
        }
    }

    fn label(self) -> &'static [u8] {
        match self {
            Self::Connector => b"towline connector",
            Self::Acceptor => b"towline acceptor",
        }
    }
}

/// Both `Hello` messages, heads included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transcript<'a> {
    pub(crate) connector: &'a [u8],
    pub(crate) acceptor: &'a [u8],
    /// The channel binding of the TLS session, if there is one. A man in the middle has two sessions with
    /// different bindings.
    pub(crate) binding: Option<&'a [u8; BINDING_LEN]>,
}

impl Transcript<'_> {
    /// Returns the proof of the end in `role`; all zero without a token.
    pub(crate) fn proof(&self, token: Option<&[u8]>, role: Role) -> [u8; MAC_LEN] {
        token.map_or([0; MAC_LEN], |token| self.mac(token, role.label()).finalize().into_bytes().into())
    }

    /// Verifies the proof of the end in `role`, in constant time.
    pub(crate) fn verify(&self, token: Option<&[u8]>, role: Role, proof: &[u8; MAC_LEN]) -> Result<()> {
        let peer = role.name();
        let Some(token) = token else {
            if *proof == [0; MAC_LEN] {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the {peer} sent a proof although its Hello has no token"),
            ));
        };
        self.mac(token, role.label()).verify_slice(proof).map_err(|_| {
            Error::new(
                ErrorKind::Unauthenticated,
                format!(
                    "the {peer}'s proof is wrong: the two ends have different tokens, or the handshake was tampered with"
                ),
            )
        })
    }

    /// Derives the connection's secret. Both ends know it; with a token, no other process does.
    pub(crate) fn secret(&self, token: Option<&[u8]>) -> [u8; 32] {
        const LABEL: &[u8] = b"towline session";
        match token {
            Some(token) => self.mac(token, LABEL).finalize().into_bytes().into(),
            None => {
                let hash = Sha256::new().chain_update(LABEL).chain_update(self.connector);
                hash.chain_update(self.acceptor).chain_update(self.bound()).finalize().into()
            }
        }
    }

    /// No label is a prefix of another, and each `Hello` carries its length, so different transcripts never
    /// hash the same bytes.
    fn mac(&self, token: &[u8], label: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(token).expect("HMAC takes keys of every length");
        mac.chain_update(label)
            .chain_update(self.connector)
            .chain_update(self.acceptor)
            .chain_update(self.bound())
    }

    fn bound(&self) -> &[u8] {
        self.binding.map_or(&[], |binding| &binding[..])
    }
}

/// The key that additional streams of one connection join with, derived from its secret and the number of
/// streams.
#[derive(Clone)]
pub(crate) struct JoinKey {
    secret: [u8; 32],
    streams: u8,
    /// All streams are encrypted.
    encrypted: bool,
}

impl JoinKey {
    /// Creates the key for a connection of `streams` streams, the main one included.
    pub(crate) fn new(secret: [u8; 32], streams: u8, encrypted: bool) -> Self {
        Self { secret, streams, encrypted }
    }

    /// Returns the numbers of the additional streams.
    pub(crate) fn further(&self) -> Range<u8> {
        1..self.streams
    }

    /// Returns the name of the connection while it waits for its streams. Without the secret it cannot be
    /// computed.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let mac: [u8; MAC_LEN] = self.mac(b"towline streams").finalize().into_bytes().into();
        std::array::from_fn(|at| mac[at])
    }

    /// Returns the `Join` message of an additional stream. `binding` is that of the stream's own TLS session.
    pub(crate) fn join(&self, stream: u8, binding: Option<&[u8; BINDING_LEN]>) -> Join {
        let mac = self.proof(stream, binding).finalize().into_bytes().into();
        Join { connection: self.name(), stream, mac }
    }

    /// Verifies that a stream belongs to this connection, over this TLS session, in constant time.
    pub(crate) fn verify(&self, join: &Join, binding: Option<&[u8; BINDING_LEN]>) -> Result<()> {
        let wrong = |why| Err(Error::new(ErrorKind::Unauthenticated, why));
        if binding.is_some() != self.encrypted {
            return wrong("either all streams of a connection are encrypted or none");
        }
        let is_one = self.further().contains(&join.stream);
        let proof = self.proof(join.stream, binding).verify_slice(&join.mac);
        if !is_one || proof.is_err() {
            return wrong("the stream's proof is wrong: it does not belong to a connection of this endpoint");
        }
        Ok(())
    }

    fn proof(&self, stream: u8, binding: Option<&[u8; BINDING_LEN]>) -> Hmac<Sha256> {
        let mac = self.mac(b"towline join").chain_update([self.streams, stream]);
        mac.chain_update(binding.map_or(&[][..], |binding| &binding[..]))
    }

    fn mac(&self, label: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.secret);
        mac.expect("HMAC takes keys of every length").chain_update(label)
    }
}

/// The key by which both ends of a path outside the stream identify each other when they attach, derived from
/// the connection's secret.
#[derive(Clone)]
pub(crate) struct AttachKey([u8; 32]);

impl AttachKey {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Returns the name of the connection at the local socket.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let mac: [u8; MAC_LEN] = self.mac(b"towline meeting").finalize().into_bytes().into();
        std::array::from_fn(|at| mac[at])
    }

    /// Returns the proof of the end in `role` over the bytes `words` that it sends.
    pub(crate) fn proof(&self, role: Role, words: &[u8]) -> [u8; MAC_LEN] {
        self.mac(role.label()).chain_update(words).finalize().into_bytes().into()
    }

    /// Verifies that the end in `role` sent `words`, in constant time.
    pub(crate) fn verify(&self, role: Role, words: &[u8], proof: &[u8; MAC_LEN]) -> Result<()> {
        self.mac(role.label()).chain_update(words).verify_slice(proof).map_err(|_| {
            let why = "the process that attached is not the peer of this connection";
            Error::new(ErrorKind::Unauthenticated, why)
        })
    }

    fn mac(&self, label: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0);
        mac.expect("HMAC takes keys of every length").chain_update(label)
    }
}
