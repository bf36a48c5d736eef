//! TLS: which peers are accepted, which are refused, and the errors at both ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod interceptor;
mod refusals;
mod settings;
mod version_1;

use std::time::Duration;

use towline::{
    Address, Connection, Endpoint, Error, ErrorKind, Listener, Message, Scheme, Tls, TlsBuilder, Token,
};
use towline_tests::certificates::{Authority, Certificate, Kind};

/// Longer than any step here, including handshakes that time out.
const TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIME: Duration = Duration::from_millis(800);

/// The authority that both ends trust.
fn ours() -> Authority {
    Authority::new(1)
}

fn listeners() -> Certificate {
    ours().sign(&["localhost", "127.0.0.1"], 2, Kind::Usual)
}

fn connectors() -> Certificate {
    ours().sign(&["worker"], 3, Kind::Usual)
}

/// Returns settings that present `certificate` and trust `authority`.
fn tls_with(certificate: &Certificate, authority: &Authority) -> Tls {
    certificate.shown_by(trusting(authority)).build().unwrap()
}

fn trusting(authority: &Authority) -> TlsBuilder {
    Tls::builder().authority(authority.pem())
}

fn endpoint(tls: Tls) -> Endpoint {
    Endpoint::builder().tls(tls).handshake_time(HANDSHAKE_TIME).build().unwrap()
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// A listener, and its endpoint, which counts refused peers.
struct Acceptor {
    endpoint: Endpoint,
    listener: Listener,
}

impl Acceptor {
    async fn open(tls: Tls) -> Self {
        Self::at("tls://127.0.0.1:0", endpoint(tls)).await
    }

    async fn at(address: &str, endpoint: Endpoint) -> Self {
        let listener = endpoint.listen(&address.parse().unwrap()).await.unwrap();
        Self { endpoint, listener }
    }

    fn port(&self) -> u16 {
        self.listener.address().port()
    }

    /// Returns the listener's port with another scheme and host.
    fn address(&self, scheme: Scheme, host: &str) -> Address {
        Address::new(scheme, host, self.port()).unwrap()
    }

    async fn meet(&self, near: &Endpoint, address: &Address) -> (Connection, Connection) {
        let both = async { tokio::join!(near.connect(address), self.listener.accept()) };
        let (a, b) = in_time("a connection", both).await;
        (a.unwrap(), b.unwrap())
    }

    /// Checks that a trusted peer connects and exchanges messages.
    async fn assert_open(&self) {
        let honest = endpoint(tls_with(&connectors(), &ours()));
        let (a, b) = self.meet(&honest, self.listener.address()).await;
        let both = async {
            tokio::join!(
                a.deliver(Message::new("there")),
                b.recv(),
                b.deliver(Message::new("back")),
                a.recv()
            )
        };
        let (there, received, back, answer) = in_time("messages", both).await;
        there.and(back).unwrap();
        assert_eq!(
            (&received.unwrap().header()[..], &answer.unwrap().header()[..]),
            (&b"there"[..], &b"back"[..])
        );
    }

    /// Waits until the endpoint has counted `count` peers refused for this reason.
    async fn assert_refused(&self, why: &str, count: u64) {
        let line = format!("towline_connections_failed_total{{role=\"acceptor\",why=\"{why}\"}} {count}");
        let counted = async {
            while !self.endpoint.metrics().text().contains(&line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let counted = tokio::time::timeout(TIMEOUT, counted).await;
        assert!(counted.is_ok(), "no {line} in {}", self.endpoint.metrics().text());
    }
}

/// Connects to `address`, which must fail, and returns the error.
async fn refused(near: &Endpoint, address: &Address) -> Error {
    in_time("a refusal", near.connect(address)).await.unwrap_err()
}

#[track_caller]
fn assert_error(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for words in words {
        assert!(error.to_string().contains(words), "{words:?} in: {error}");
    }
}
