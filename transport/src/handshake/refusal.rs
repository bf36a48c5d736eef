//! Refusals: ends a handshake so that the other end can read the reason, whatever it is.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::HandshakeStream;
use crate::platform::environment::{Environment, within};
use crate::wire::handshake::{HandshakeMessage, Role, excerpt};
use crate::{Error, ErrorKind};

/// The time limit of sending a refusal, from the first byte written to the last byte drained, and of waiting
/// for an unauthenticated peer's first bytes.
const DRAIN_TIME: Duration = Duration::from_millis(100);
/// The most bytes drained. Closing a socket with unread bytes resets it, and a reset overtakes the reason.
const DRAIN_LEN_MAX: usize = 64 * 1024;
/// The most bytes of an unauthenticated peer that are examined.
const FIRST_BYTES_MAX: usize = 32;

/// Why a handshake ends, and what is sent to the other end.
#[derive(Debug)]
pub(super) struct Refusal {
    error: Error,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Nothing,
    Message,
    Http,
}

impl Refusal {
    /// Sends nothing: the other end has closed, knows the reason, or is not involved.
    pub(super) fn without_reply(error: Error) -> Self {
        Self { error, reply: Reply::Nothing }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// Sends the refusal, ends the stream, and returns the error for this end. Best effort, within
    /// [`DRAIN_TIME`].
    pub(super) async fn deliver<S: HandshakeStream>(self, stream: &mut S, env: &dyn Environment) -> Error {
        self.deliver_after(&[], stream, env).await
    }

    /// As [`deliver`](Self::deliver), after `bytes` of TLS.
    pub(super) async fn deliver_after<S: HandshakeStream>(
        self,
        bytes: &[u8],
        stream: &mut S,
        env: &dyn Environment,
    ) -> Error {
        let mut bytes = bytes.to_vec();
        match self.reply {
            Reply::Nothing => {}
            Reply::Http => bytes.extend(http_answer()),
            Reply::Message => {
                let (kind, reason) = (self.error.kind(), self.error.detail().to_owned());
                let refuse = HandshakeMessage::Refuse { kind, reason };
                if refuse.encode(&mut bytes).is_err() {
                    return self.error;
                }
            }
        }
        if bytes.is_empty() {
            return self.error;
        }
        let draining = async {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
            drain(stream).await
        };
        // This end fails alike, whether or not the peer reads.
        let _ = within(env, env.now().saturating_add(DRAIN_TIME), draining).await;
        self.error
    }
}

/// Errors that this end detects are sent to the peer.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, reply: Reply::Message }
    }
}

/// A broken stream carries no refusal.
impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::without_reply(error.into())
    }
}

/// The error for a refusal that the peer sent.
pub(super) fn from_peer(kind: ErrorKind, reason: &str) -> Refusal {
    let reason = if reason.is_empty() { "it gave no reason" } else { reason };
    Refusal::without_reply(Error::new(kind, format!("the peer refused: {reason}")))
}

/// The refusal of a peer that is not a Towline endpoint and has sent `first`. `role` is this end's.
pub(super) async fn of_unauthenticated_peer<S: HandshakeStream>(
    role: Role,
    stream: &mut S,
    first: &[u8],
    env: &dyn Environment,
) -> Refusal {
    unauthenticated_peer(role, &read_first_bytes(stream, first, env).await)
}

/// The refusal of a connector that does not speak TLS to a TLS listener.
#[cfg(feature = "tls")]
pub(super) async fn of_plain_connector<S: HandshakeStream>(stream: &mut S, env: &dyn Environment) -> Refusal {
    let bytes = read_first_bytes(stream, &[], env).await;
    if !bytes.starts_with(&crate::wire::handshake::MAGIC) {
        return unauthenticated_peer(Role::Acceptor, &bytes);
    }
    let why = "the connector speaks Towline in the clear, and this listener only over TLS: connect to tls:// or towlines://";
    Error::new(ErrorKind::Incompatible, why).into()
}

/// The refusal of a listener that does not speak TLS to a TLS connector.
#[cfg(feature = "tls")]
pub(super) async fn of_plain_listener<S: HandshakeStream>(stream: &mut S, env: &dyn Environment) -> Refusal {
    match super::receive_first(Role::Connector, stream, env).await.and_then(super::expect_hello) {
        Err(refusal) => Refusal::without_reply(refusal.error),
        Ok(_) => {
            let why = "the listener speaks Towline in the clear: connect to tcp:// or towline://, or have it listen over TLS";
            Refusal::without_reply(Error::new(ErrorKind::Incompatible, why))
        }
    }
}

/// Reads the first bytes of the other end, as far as they arrive within [`DRAIN_TIME`].
async fn read_first_bytes<S: HandshakeStream>(
    stream: &mut S,
    first: &[u8],
    env: &dyn Environment,
) -> Vec<u8> {
    let mut bytes = first.to_vec();
    let listening = async {
        let mut more = [0; FIRST_BYTES_MAX];
        while bytes.len() < FIRST_BYTES_MAX {
            let room = FIRST_BYTES_MAX - bytes.len();
            match stream.read(&mut more[..room]).await {
                Ok(0) | Err(_) => break,
                Ok(read) => bytes.extend_from_slice(&more[..read]),
            }
        }
    };
    // On a timeout, the bytes received so far are used.
    let _ = within(env, env.now().saturating_add(DRAIN_TIME), listening).await;
    bytes
}

/// The refusal for the first bytes of a peer that is not a Towline endpoint.
fn unauthenticated_peer(role: Role, bytes: &[u8]) -> Refusal {
    let refused = |detail: String| Error::new(ErrorKind::Incompatible, detail);
    let said = excerpt(bytes);
    match role {
        Role::Connector if is_tls(bytes) => {
            Refusal::without_reply(refused("not a plain Towline endpoint: it answered in TLS".to_owned()))
        }
        Role::Connector => {
            Refusal::without_reply(refused(format!("not a Towline endpoint: it answered \"{said}\"")))
        }
        Role::Acceptor if is_tls(bytes) => refused(
            "the connector speaks TLS and this endpoint does not: use TLS at both ends or at neither"
                .to_owned(),
        )
        .into(),
        Role::Acceptor if is_http(bytes) => Refusal {
            error: refused(format!("the connector speaks HTTP, and this is a Towline endpoint: \"{said}\"")),
            reply: Reply::Http,
        },
        Role::Acceptor => refused(format!(
            "the connector does not speak Towline, as this endpoint does: it sent \"{said}\""
        ))
        .into(),
    }
}

fn is_http(bytes: &[u8]) -> bool {
    const METHODS: [&str; 10] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI"];
    METHODS
        .iter()
        .any(|method| bytes.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' ')))
}

/// Whether the bytes begin a TLS handshake or alert record, of any version.
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 0x03, ..])
}

fn http_answer() -> Vec<u8> {
    let body =
        "This is a Towline endpoint, not a web server. Connect to it with the towline library or command.\n";
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn drain<S: HandshakeStream>(stream: &mut S) -> std::io::Result<()> {
    let mut scrap = [0; 4096];
    let mut len = 0;
    while len < DRAIN_LEN_MAX {
        let room = scrap.len().min(DRAIN_LEN_MAX - len);
        match stream.read(&mut scrap[..room]).await? {
            0 => break,
            read => len += read,
        }
    }
    Ok(())
}
