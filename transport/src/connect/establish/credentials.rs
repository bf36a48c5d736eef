//! An endpoint's token and TLS settings. Each connection uses those in force when its handshake begins.

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

    /// Replaces each credential that is given. The new ones admit no peer class that the old ones excluded.
    ///
    /// # Errors
    /// `Invalid` for a credential that the endpoint was built without, and for TLS that does less than
    /// before.
    pub(crate) fn renew(&self, token: Option<Token>, tls: Option<Tls>) -> Result<()> {
        let mut current = self.0.lock();
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::Invalid, why));
        match (&current.tls, &tls) {
            (None, Some(_)) => {
                return invalid("the endpoint has no TLS that could be renewed (`Builder::tls`)");
            }
            (Some(old), Some(new)) if !new.does_what(old) => {
                return invalid(
                    "the new TLS shows no certificate, trusts no authority or asks peers for none, where the old one did",
                );
            }
            _ => {}
        }
        if current.token.is_none() && token.is_some() {
            return invalid("the endpoint has no token that could be renewed (`Builder::token`)");
        }
        current.token = token.or_else(|| current.token.take());
        current.tls = tls.or_else(|| current.tls.take());
        Ok(())
    }
}
