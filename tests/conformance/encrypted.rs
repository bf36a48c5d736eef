//! TLS for the cases: the settings of endpoints, and raw peers over TLS.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use towline::{Listener, Tls};
use towline_tests::certificates::{Authority, Kind, mutual_tls};

use crate::namespaces::{IPV4, IPV6, LINK_LOCAL, MANY};

/// The stream of a raw peer.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Returns the TLS settings of every endpoint of a row over TLS.
pub(crate) fn tls() -> Tls {
    let names =
        [&["localhost", "127.0.0.1", "::1", MANY], &IPV4[..], &IPV6.map(bare)[..], &LINK_LOCAL].concat();
    mutual_tls(&names)
}

/// Connects a stream to `listener`, over TLS if its scheme uses TLS. Sends nothing of Towline's protocol.
pub(crate) async fn dial(listener: &Listener) -> Box<dyn Stream> {
    let address = listener.address();
    let stream = TcpStream::connect((address.host(), address.port())).await.unwrap();
    if !address.scheme().is_encrypted() {
        return Box::new(stream);
    }
    let authority = Authority::new(1);
    let certificate = authority.sign(&["peer by hand"], 3, Kind::Usual);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"towline/1".to_vec()];
    let name = ServerName::try_from(address.host().to_owned()).unwrap();
    Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
}

/// Strips the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}
