//! What both ends saw, and the proof that they know the token.
//!
//! The transcript is both `Hello`s as the bytes that travelled, so whoever changes one of them breaks both proofs.

use std::ops::Range;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{BINDING_LEN, Join, MAC_LEN, NAME_LEN};
use crate::{Error, ErrorKind, Result};

/// Which end of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened the connection, and proves first.
    Connector,
    /// Took it.
    Acceptor,
}

impl Role {
    /// As sentences call it.
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
    /// What the session below this one is known by, where it is encrypted: who sits in the middle has two of them.
    pub(crate) binding: Option<&'a [u8; BINDING_LEN]>,
}

impl Transcript<'_> {
    /// What the end in `role` sends; all zero without a token.
    pub(crate) fn proof(&self, token: Option<&[u8]>, role: Role) -> [u8; MAC_LEN] {
        token.map_or([0; MAC_LEN], |token| self.mac(token, role.label()).finalize().into_bytes().into())
    }

    /// Whether the end in `role` sent what it should have; compared in constant time.
    pub(crate) fn verify(&self, token: Option<&[u8]>, role: Role, proof: &[u8; MAC_LEN]) -> Result<()> {
        let peer = role.name();
        let Some(token) = token else {
            if *proof == [0; MAC_LEN] {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the {peer} proves a token that it said it lacks"),
            ));
        };
        self.mac(token, role.label()).verify_slice(proof).map_err(|_| {
            Error::new(
                ErrorKind::Unauthenticated,
                format!(
                    "the {peer}'s proof is wrong: the two ends have different tokens, or someone meddles"
                ),
            )
        })
    }

    /// Names this connection: known to both ends, and with a token to nobody else.
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

    /// No label begins another, and each `Hello` carries its length: two transcripts never feed the same bytes.
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

/// What the further streams of one connection join it by: made of its secret, and of their number.
#[derive(Clone)]
pub(crate) struct JoinKey {
    secret: [u8; 32],
    streams: u8,
    /// Each of them is.
    encrypted: bool,
}

impl JoinKey {
    /// For a connection of so many streams, the main one included.
    pub(crate) fn new(secret: [u8; 32], streams: u8, encrypted: bool) -> Self {
        Self { secret, streams, encrypted }
    }

    /// The numbers of the streams beside the main one.
    pub(crate) fn further(&self) -> Range<u8> {
        1..self.streams
    }

    /// What the connection goes by while it waits: known to nobody who does not know its secret.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let mac: [u8; MAC_LEN] = self.mac(b"towline streams").finalize().into_bytes().into();
        std::array::from_fn(|at| mac[at])
    }

    /// What a further stream says. `binding` is of the encrypted session that it runs in itself.
    pub(crate) fn join(&self, stream: u8, binding: Option<&[u8; BINDING_LEN]>) -> Join {
        let mac = self.proof(stream, binding).finalize().into_bytes().into();
        Join { connection: self.name(), stream, mac }
    }

    /// Whether a stream proves that it belongs, over this session; compared in constant time.
    pub(crate) fn verify(&self, join: &Join, binding: Option<&[u8; BINDING_LEN]>) -> Result<()> {
        let wrong = |why| Err(Error::new(ErrorKind::Unauthenticated, why));
        if binding.is_some() != self.encrypted {
            return wrong("a connection's streams are all encrypted, or none is");
        }
        let is_one = self.further().contains(&join.stream);
        let proof = self.proof(join.stream, binding).verify_slice(&join.mac);
        if !is_one || proof.is_err() {
            return wrong("the stream's proof is wrong: it is of no connection here");
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

/// What the two ends of a path beside the stream know each other by where they meet: made of the connection's secret.
#[derive(Clone)]
pub(crate) struct AttachKey([u8; 32]);

impl AttachKey {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// What the connection goes by there.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let mac: [u8; MAC_LEN] = self.mac(b"towline meeting").finalize().into_bytes().into();
        std::array::from_fn(|at| mac[at])
    }

    /// What the end in `role` shows, together with what it says.
    pub(crate) fn proof(&self, role: Role, words: &[u8]) -> [u8; MAC_LEN] {
        self.mac(role.label()).chain_update(words).finalize().into_bytes().into()
    }

    /// Whether the end in `role` said that; compared in constant time.
    pub(crate) fn verify(&self, role: Role, words: &[u8], proof: &[u8; MAC_LEN]) -> Result<()> {
        self.mac(role.label()).chain_update(words).verify_slice(proof).map_err(|_| {
            let why = "whoever came to the meeting is not the peer of this connection";
            Error::new(ErrorKind::Unauthenticated, why)
        })
    }

    fn mac(&self, label: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0);
        mac.expect("HMAC takes keys of every length").chain_update(label)
    }
}
