//! TLS as the cases use it: what endpoints show, and peers made by hand that speak it.

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

/// What a peer made by hand speaks on.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What every endpoint of a row over TLS shows and believes.
pub(crate) fn tls() -> Tls {
    let names =
        [&["localhost", "127.0.0.1", "::1", MANY], &IPV4[..], &IPV6.map(bare)[..], &LINK_LOCAL].concat();
    mutual_tls(&names)
}

/// A stream to `listener`, over TLS if that is what it speaks, on which nothing of Towline has been said.
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

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}
