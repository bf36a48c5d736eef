//! TLS below the handshake: the certificate of an endpoint, and the authorities it trusts.

mod any_name;
mod errors;
mod stream;

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, ErrorKind, Result};

use any_name::AnyName;
pub(crate) use errors::tls_error;
pub(crate) use rustls::Connection as TlsSession;
pub(crate) use stream::{TlsStream, secure_as_acceptor, secure_as_connector};

/// The ALPN protocol that both ends must agree on.
const ALPN: &[u8] = b"towline/1";

/// An endpoint's TLS settings, for `tls://` and `towlines://`: its certificate, and the authorities it
/// trusts.
///
/// Needs the feature `tls`, which is on by default. Only TLS 1.3 is spoken. Only the authorities named here
/// are trusted: the operating system's are not, unless they are named. Revocation lists are not consulted.
///
/// - To **listen**, an endpoint needs a [certificate](TlsBuilder::certificate). With an
///   [authority](TlsBuilder::authority) as well, every peer must present a certificate that the authority
///   signed, unless [anonymous clients](TlsBuilder::anonymous_clients) are allowed.
/// - To **connect**, an endpoint needs an authority. The listener's certificate must be valid for the host of
///   the address, or for the [server name](TlsBuilder::server_name). If the endpoint has a certificate too,
///   it is presented to listeners that ask for one.
///
/// ```no_run
/// use towline::{Endpoint, Tls};
///
/// let tls = Tls::builder()
///     .certificate(std::fs::read("cert.pem")?, std::fs::read("key.pem")?)
///     .authority(std::fs::read("ca.pem")?)
///     .build()?;
/// let endpoint = Endpoint::builder().tls(tls).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tls(Arc<TlsInner>);

struct TlsInner {
    client: Option<Arc<ClientConfig>>,
    server: Option<Arc<ServerConfig>>,
    server_name: Option<ServerName<'static>>,
    /// Listeners require a certificate of every peer.
    knows_clients: bool,
    /// Connectors accept a certificate for any name.
    any_name: bool,
}

/// Builds a [`Tls`].
#[derive(Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct TlsBuilder {
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    authorities: Vec<Vec<u8>>,
    server_name: Option<String>,
    any_name: bool,
    anonymous_clients: bool,
}

impl Tls {
    /// Returns a builder of settings.
    pub fn builder() -> TlsBuilder {
        TlsBuilder::default()
    }

    /// Returns whether these settings can do all that `others` can: present a certificate, trust an
    /// authority, check a listener's name, require certificates of peers.
    pub(crate) fn does_what(&self, others: &Self) -> bool {
        let does = |tls: &Self| {
            let connects = tls.0.client.is_some();
            [tls.0.server.is_some(), connects, connects && !tls.0.any_name, tls.0.knows_clients]
        };
        does(self).into_iter().zip(does(others)).all(|(ours, theirs)| ours || !theirs)
    }

    /// Returns whether listeners authenticate their peers by certificate.
    pub(crate) fn knows_clients(&self) -> bool {
        self.0.knows_clients
    }

    /// Returns the configuration of a listener, or an error that names what is missing.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>> {
        let missing = || {
            invalid("a TLS listener needs a certificate: give the endpoint one with its key (--cert, --key)")
        };
        self.0.server.clone().ok_or_else(missing)
    }

    /// Returns the configuration of a connector, or an error that names what is missing.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>> {
        let missing = || {
            invalid(
                "no listener would be trusted: give the endpoint the authority that signed the listener's certificate (--ca)",
            )
        };
        self.0.client.clone().ok_or_else(missing)
    }

    /// Returns the name that a listener at `host` must prove.
    pub(crate) fn server_name(&self, host: &str) -> Result<ServerName<'static>> {
        if let Some(name) = &self.0.server_name {
            return Ok(name.clone());
        }
        // The zone of a link-local address is local to this machine and never in a certificate.
        let host = host.split_once('%').map_or(host, |(address, _)| address);
        name(host)
    }
}

/// Shows what the settings allow, and nothing of a key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TlsInner { client, server, server_name, knows_clients, any_name } = &*self.0;
        f.debug_struct("Tls")
            .field("listens", &server.is_some())
            .field("connects", &client.is_some())
            .field("server_name", server_name)
            .field("any_name", any_name)
            .field("knows_clients", knows_clients)
            .finish()
    }
}

impl fmt::Debug for TlsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsBuilder")
            .field("certificate", &self.certificate.is_some())
            .field("authorities", &self.authorities.len())
            .field("server_name", &self.server_name)
            .field("any_name", &self.any_name)
            .field("anonymous_clients", &self.anonymous_clients)
            .finish()
    }
}

impl TlsBuilder {
    /// Sets this endpoint's certificate and private key, both as PEM. Intermediate certificates follow the
    /// certificate. The key is PKCS #8, SEC 1 or PKCS #1, and not encrypted.
    pub fn certificate(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificate = Some((chain.into(), key.into()));
        self
    }

    /// Adds trusted authorities: one or more certificates as PEM. Repeated calls add to them.
    pub fn authority(mut self, certificates: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(certificates.into());
        self
    }

    /// Sets the name or IP address that a listener must prove, instead of the host of the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Accepts a listener's certificate for any name if a trusted authority signed it. For authorities that
    /// sign for one cluster alone, whose certificates name no hosts.
    ///
    /// **Danger:** whoever holds any certificate of the authority, for whatever purpose, can pose as every
    /// listener. Never use it with an authority that also signs for others, as public ones do. Signature,
    /// validity and purpose are checked as usual. Not with a [server name](Self::server_name).
    ///
    /// ```no_run
    /// # use towline::Tls;
    /// let tls = Tls::builder().authority(std::fs::read("cluster-ca.pem")?).any_name(true).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn any_name(mut self, any_name: bool) -> Self {
        self.any_name = any_name;
        self
    }

    /// Accepts peers without a certificate although there is an authority. An endpoint that connects needs an
    /// authority, while its listeners may authenticate peers by the token alone.
    pub fn anonymous_clients(mut self, anonymous_clients: bool) -> Self {
        self.anonymous_clients = anonymous_clients;
        self
    }

    /// # Errors
    /// `Invalid` if a certificate, key or name is not valid, the key does not belong to the certificate, the
    /// certificate is of X.509 version 1, or both a server name and any name are set.
    pub fn build(self) -> Result<Tls> {
        if self.any_name && self.server_name.is_some() {
            return Err(invalid("any name and a server name exclude each other: leave one of them out"));
        }
        let certificate = match &self.certificate {
            Some((chain, key)) => Some((certificates(chain, "certificate")?, private_key(key)?)),
            None => None,
        };
        let roots = roots(&self.authorities)?;
        let server_name = self.server_name.as_deref().map(name).transpose()?;
        let knows_clients = certificate.is_some() && roots.is_some() && !self.anonymous_clients;
        let server = match &certificate {
            Some((chain, key)) => {
                let believed = roots.clone().filter(|_| knows_clients);
                Some(Arc::new(server(chain.clone(), key.clone_key(), believed)?))
            }
            None => None,
        };
        let any_name = self.any_name;
        let client = roots.map(|roots| client(certificate, roots, any_name)).transpose()?.map(Arc::new);
        Ok(Tls(Arc::new(TlsInner { client, server, server_name, knows_clients, any_name })))
    }
}

/// AES-128 first, as in browsers: it is secure enough, and the fastest.
fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    believed: Option<Arc<RootCertStore>>,
) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(unusable)?;
    let builder = match believed {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(unusable)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Sessions are never resumed.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    roots: Arc<RootCertStore>,
    any_name: bool,
) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(unusable)?;
    let builder = if any_name {
        let algorithms = provider().signature_verification_algorithms;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName { roots, algorithms }))
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| invalid(format!("the {what} is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(invalid(format!(
            "the PEM of the {what} contains no certificate: it should begin with -----BEGIN CERTIFICATE-----"
        )));
    }
    Ok(found)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        let why = "the private key cannot be read: it should be PEM, begin with -----BEGIN PRIVATE KEY-----, and not be encrypted";
        invalid(why).caused_by(error)
    })
}

fn roots(authorities: &[Vec<u8>]) -> Result<Option<Arc<RootCertStore>>> {
    if authorities.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for pem in authorities {
        for certificate in certificates(pem, "authority")? {
            roots
                .add(certificate)
                .map_err(|error| invalid("the authority's certificate cannot be used").caused_by(error))?;
        }
    }
    Ok(Some(Arc::new(roots)))
}

fn name(text: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        invalid(format!("\"{}\" is not a name that a certificate can have", text.escape_debug()))
    })
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let tls = (&error as &dyn std::any::Any).downcast_ref();
    if let Some(rustls::Error::InvalidCertificate(wrong)) = tls
        && errors::is_version_1(wrong)
    {
        return invalid(format!("the certificate {}", errors::VERSION_1));
    }
    invalid("the certificate and its key cannot be used").caused_by(error)
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}
