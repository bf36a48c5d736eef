//! An interceptor with a trusted certificate, which the authority signed for another purpose or whose key leaked.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// Accepts one connection, and relays it to the listener at `port`, decrypting and encrypting all bytes.
async fn intercept(between: TcpListener, port: u16) {
    let Certificate { chain, key } = listeners();
    let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut shown = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    shown.alpn_protocols = vec![b"towline/1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ours().pem().as_bytes()).unwrap()).unwrap();
    let mut asked = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    asked.alpn_protocols = vec![b"towline/1".to_vec()];

    let (near, _) = between.accept().await.unwrap();
    let mut near = TlsAcceptor::from(Arc::new(shown)).accept(near).await.unwrap();
    let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut far = TlsConnector::from(Arc::new(asked)).connect(name, far).await.unwrap();
    // Both ends close once they detect the interceptor.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// Connects through the interceptor.
async fn through_an_interceptor(token: Option<&str>) -> towline::Result<Connection> {
    let endpoint = |tls: TlsBuilder| {
        let builder = Endpoint::builder().tls(tls.build().unwrap());
        match token {
            Some(token) => builder.token(Token::from_bytes(token).unwrap()).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let acceptor = Acceptor::at("tls://127.0.0.1:0", endpoint(listeners().shown_by(Tls::builder()))).await;
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::new(Scheme::Tls, "127.0.0.1", between.local_addr().unwrap().port()).unwrap();
    let intercepting = tokio::spawn(intercept(between, acceptor.port()));
    let result = in_time("the attempt", endpoint(trusting(&ours())).connect(&address)).await;
    if token.is_some() {
        acceptor.assert_refused("unauthenticated", 1).await;
        in_time("the interceptor's end", intercepting).await.unwrap();
    }
    result
}

#[tokio::test]
async fn a_token_detects_an_interceptor() {
    let error = through_an_interceptor(Some("secret")).await.unwrap_err();
    assert_error(&error, ErrorKind::Unauthenticated, &["the handshake was tampered with"]);
    // Certificates alone do not detect it, since the authority signed the interceptor's.
    through_an_interceptor(None).await.unwrap();
}
