//! What both ends saw, and the proof that they know the token.
//!
//! The transcript is both `Hello`s as the bytes that travelled, so whoever changes one of them breaks both proofs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{BINDING_LEN, MAC_LEN};
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
