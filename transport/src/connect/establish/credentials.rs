//! What an endpoint proves itself by, and what it asks of its peers. Each connection takes what holds when it begins.

use crate::handshake::{Tls, Token};
use crate::platform::mutex::Mutex;
use crate::{Error, ErrorKind, Result};

/// The credentials of an endpoint, which can be renewed.
#[derive(Debug)]
pub(crate) struct Credentials(Mutex<CredentialSet>);

/// The credentials of one moment.
#[derive(Clone, Debug)]
pub(crate) struct CredentialSet {
    pub(crate) token: Option<Token>,
    pub(crate) tls: Option<Tls>,
}

impl Credentials {
    pub(crate) fn new(token: Option<Token>, tls: Option<Tls>) -> Self {
        Self(Mutex::new(CredentialSet { token, tls }))
    }

    pub(crate) fn now(&self) -> CredentialSet {
        self.0.lock().clone()
    }

    /// Replaces what is given. What an endpoint promised when it began to listen, it keeps: nobody comes in later who would
    /// not have come in then.
    pub(crate) fn renew(&self, token: Option<Token>, tls: Option<Tls>) -> Result<()> {
        let mut held = self.0.lock();
        let refused = |why: &'static str| Err(Error::new(ErrorKind::Invalid, why));
        match (&held.tls, &tls) {
            (None, Some(_)) => {
                return refused("the endpoint has no TLS that could be renewed (`Builder::tls`)");
            }
            (Some(old), Some(new)) if !new.does_what(old) => {
                return refused(
                    "the new TLS shows no certificate, believes nobody or asks peers for none, where the old one did",
                );
            }
            _ => {}
        }
        if held.token.is_none() && token.is_some() {
            return refused("the endpoint has no token that could be renewed (`Builder::token`)");
        }
        held.token = token.or_else(|| held.token.take());
        held.tls = tls.or_else(|| held.tls.take());
        Ok(())
    }
}
