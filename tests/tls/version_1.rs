//! Certificates of X.509 version 1 are refused with the remedy, wherever they are.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const ALPN: &[u8] = b"towline/1";
const REMEDY: [&str; 2] = ["X.509 version 1", "openssl x509 -req -extfile"];

/// The certificate and its key, for rustls, which does not look into it.
fn unchecked(certificate: &Certificate) -> Arc<SingleCertAndKey> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, any_supported_type(&key).unwrap())))
}

#[test]
fn the_own_certificate_is_refused_with_the_remedy() {
    let theirs = ours().sign_version_1(2);
    for tls in [theirs.shown_by(Tls::builder()), theirs.shown_by(trusting(&ours())).any_name(true)] {
        assert_error(&tls.build().unwrap_err(), ErrorKind::Invalid, &REMEDY);
    }
}

#[tokio::test]
async fn a_listeners_certificate_is_refused_with_the_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(unchecked(&ours().sign_version_1(2)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    for any_name in [false, true] {
        let near = endpoint(trusting(&ours()).any_name(any_name).build().unwrap());
        let error = refused(&near, &Address::new(Scheme::Tls, "127.0.0.1", port).unwrap()).await;
        assert_error(&error, ErrorKind::Unauthenticated, &REMEDY);
        assert_error(&error, ErrorKind::Unauthenticated, &["the listener's certificate"]);
    }
}

#[tokio::test]
async fn a_connectors_certificate_is_refused() {
    let acceptor = Acceptor::open(tls_with(&listeners(), &ours())).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ours().pem().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_cert_resolver(unchecked(&ours().sign_version_1(3)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", acceptor.port())).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    // TLS 1.3: the connector is done before the listener has seen its certificate.
    let _stream = in_time("TLS", TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    acceptor.assert_refused("unauthenticated", 1).await;
    acceptor.assert_open().await;
}
