//! TLS over a bare socket: plain rustls, with the library's buffer lengths.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::security::trust::{Certificate, throw_away_certificate};

/// The server name in the certificate, independent of the address.
const NAME: &str = "bare.towline";
/// Ciphertext bytes per read, and the limit of unsent ones: as in the library.
const CIPHERTEXT_LEN: usize = 256 << 10;

/// The TLS state of one end.
#[derive(Debug)]
pub(super) struct TlsSession {
    tls: Connection,
    ciphertext: Vec<u8>,
    /// The bytes that are not decrypted yet.
    fresh: Range<usize>,
}

/// Returns the far end's certificate.
pub(crate) fn certificate() -> io::Result<Certificate> {
    throw_away_certificate([NAME]).map_err(io::Error::other)
}

impl TlsSession {
    pub(super) fn far(certificate: &Certificate) -> io::Result<Self> {
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).map_err(io::Error::other)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(io::Error::other)?.with_no_client_auth();
        let config = builder.with_single_cert(vec![chain(&certificate.chain)?], key);
        let tls = ServerConnection::new(Arc::new(config.map_err(io::Error::other)?));
        Ok(Self::new(tls.map_err(io::Error::other)?.into()))
    }

    /// Creates the near end's state; `believed` is the far end's certificate.
    pub(super) fn near(believed: &str) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(chain(believed)?).map_err(io::Error::other)?;
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let builder = builder.map_err(io::Error::other)?.with_root_certificates(roots);
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::new(builder.with_no_client_auth()), name);
        Ok(Self::new(tls.map_err(io::Error::other)?.into()))
    }

    fn new(mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(CIPHERTEXT_LEN));
        Self { tls, ciphertext: vec![0; CIPHERTEXT_LEN], fresh: 0..0 }
    }

    /// Completes the TLS handshake.
    pub(super) fn shake(&mut self, socket: &mut (impl Read + Write)) -> io::Result<()> {
        loop {
            self.flush(socket)?;
            if !self.tls.is_handshaking() {
                return Ok(());
            }
            self.receive(socket)?;
        }
    }

    /// Reads at least one byte, unless the stream ends.
    pub(super) fn read(&mut self, socket: &mut (impl Read + Write), into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.receive(socket)?,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                outcome => return outcome,
            }
        }
    }

    pub(super) fn write_all(&mut self, socket: &mut impl Write, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            let taken = self.tls.writer().write(from)?;
            from = &from[taken..];
            self.flush(socket)?;
        }
        Ok(())
    }

    fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(socket)?;
        }
        Ok(())
    }

    /// Decrypts the next records, and reads from the socket if there are none.
    fn receive(&mut self, socket: &mut impl Read) -> io::Result<()> {
        if self.fresh.is_empty() {
            self.fresh = 0..socket.read(&mut self.ciphertext)?;
            if self.fresh.is_empty() && self.tls.is_handshaking() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.fresh.start += self.tls.read_tls(&mut &self.ciphertext[self.fresh.clone()])?;
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(())
    }
}

/// Returns the library's cipher, so that only the library itself differs.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

fn chain(pem: &str) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(io::Error::other)
}
