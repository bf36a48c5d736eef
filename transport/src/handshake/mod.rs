//! The handshake: the messages that both ends exchange on any stream before a data path exists.
//!
//! Each read takes exactly the expected message: the stream is then handed to the data path, which owns every
//! byte after the last message.

mod admission;
mod attending;
mod control;
mod identity;
mod joins;
mod measuring;
mod refusal;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
mod without_tls;
#[cfg(not(feature = "tls"))]
use without_tls as tls;
mod token;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::platform::environment::{Environment, within};
use crate::wire::handshake::{
    BINDING_LEN, HEAD_LEN, HandshakeMessage, Hello, Join, Kind, MAGIC, NONCE_LEN, Transcript, VERSION_MAX,
    VERSION_MIN, agree, decode, head,
};
use crate::{Error, ErrorKind, Result};
use refusal::Refusal;

pub use crate::wire::handshake::Role;
pub(crate) use crate::wire::handshake::{
    AttachKey, CRC32C, INFO_LEN_MAX, JoinKey, Offer, STREAMS, STREAMS_MAX,
};
pub use admission::{Admission, Admitted, Source};
pub use control::Control;
pub use identity::Identity;
pub(crate) use joins::{Joins, join};
pub(crate) use measuring::{ConnectorReply, measure, receive_measure_or_answer, receive_measurement};
pub use tls::Tls;
#[cfg(feature = "tls")]
pub use tls::TlsBuilder;
pub(crate) use tls::TlsSession;
#[cfg(feature = "tls")]
pub(crate) use tls::tls_error;
pub use token::Token;

/// The default limit on the duration of a handshake.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// The stream of a handshake: a socket, or TLS over one.
pub(crate) trait HandshakeStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> HandshakeStream for S {}

/// The local parameters of a handshake.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) identity: Identity,
    /// With a token, the peer must prove that it has the same one. Without, the peer must have none.
    pub(crate) token: Option<Token>,
    pub(crate) features: u64,
    /// At most 16, each at most 16 KiB, all together less than 64 KiB. Unauthenticated peers can read them.
    pub(crate) offers: Vec<Offer>,
    /// The channel binding of the TLS session below, if there is one. The proofs cover it.
    pub(crate) binding: Option<[u8; BINDING_LEN]>,
    /// The time left for the whole greeting. Sending a refusal may add 0.1 s.
    pub(crate) time_left: Duration,
    /// The endpoint's limit on a handshake, for error texts.
    pub(crate) handshake_time: Duration,
}

/// The result of a greeting.
pub(crate) struct Greeting {
    pub(crate) peer: Identity,
    /// The protocol version: the highest that both ends speak.
    pub(crate) version: u16,
    /// The features that both ends have.
    pub(crate) features: u64,
    /// The offers of the peer's backends.
    pub(crate) offers: Vec<Offer>,
    /// Equal at both ends and unique to this connection. With a token no other process knows it; without one,
    /// any observer of the handshake does. Additional streams join with it.
    pub(crate) secret: [u8; 32],
}

impl std::fmt::Debug for Greeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { peer, version, features, offers, secret: _ } = self;
        f.debug_struct("Greeting")
            .field("peer", peer)
            .field("version", version)
            .field("features", features)
            .field("offers", offers)
            .finish_non_exhaustive()
    }
}

/// Sets up TLS if `control` is a socket. For the connector, `host` is that of the listener's address.
///
/// `deadline` is a time of `env`'s clock; `handshake_time` is the endpoint's limit, for error texts. Sending
/// a refusal may add 0.1 s.
pub(crate) async fn secure(
    role: Role,
    control: Control,
    (tls, host): (&Tls, &str),
    deadline: Duration,
    handshake_time: Duration,
    env: &dyn Environment,
) -> Result<Control> {
    let secured = within(env, deadline, control.secure(role, tls, host, env)).await;
    secured.unwrap_or_else(|| {
        let within = handshake_time.as_secs_f64();
        let why = format!("TLS was not set up within the {within} s of a handshake: {}", timeout_hint(role));
        Err(Error::new(ErrorKind::TimedOut, why))
    })
}

/// An incoming stream, after its first message.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A peer, after its greeting.
    Peer(Greeting),
    /// An additional stream of a connection, not verified yet.
    Lane(Join),
}

/// Runs the connector's greeting. After an error the stream must be dropped.
pub(crate) async fn greet_as_connector<S: HandshakeStream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<Greeting> {
    let deadline = env.now().saturating_add(terms.time_left);
    let greeted = within(env, deadline, run_connector(stream, terms, env)).await;
    finish_greeting(greeted, Role::Connector, stream, terms, env).await
}

/// Runs the acceptor's greeting. After an error the stream must be dropped. `failed` is called with the
/// current time when a peer fails to authenticate, and returns when to send the refusal.
pub(crate) async fn greet_as_acceptor<S: HandshakeStream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
    failed: impl FnOnce(Duration) -> Duration,
) -> Result<Inbound> {
    let deadline = env.now().saturating_add(terms.time_left);
    let greeted = within(env, deadline, run_acceptor(stream, terms, env)).await;
    if let Some(Err(refusal)) = &greeted
        && refusal.kind() == ErrorKind::Unauthenticated
    {
        let now = env.now();
        let told_at = failed(now);
        if told_at > now {
            env.sleep_until(told_at).await;
        }
    }
    finish_greeting(greeted, Role::Acceptor, stream, terms, env).await
}

/// A connector's proposal.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) backend: String,
    pub(crate) streams: u8,
    /// The backend's endpoint info, sent after the proofs; empty if its offer contains everything.
    pub(crate) info: Vec<u8>,
}

impl std::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backend, streams, info } = self;
        write!(f, "Proposal({backend}, {streams} streams, {} bytes)", info.len())
    }
}

/// Proposes a backend. Returns the acceptor's endpoint info, which is empty if it has none or the proposal
/// had none. `Ok(Err(reason))` means that the acceptor cannot open it, and another may be proposed.
///
/// `deadline` is a time of `env`'s clock, not a duration. After an error the stream must be dropped.
pub(crate) async fn propose<S: HandshakeStream>(
    stream: &mut S,
    proposal: &Proposal,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<Result<Vec<u8>, String>> {
    let Proposal { backend, streams, info } = proposal.clone();
    let message = encoded(&match streams {
        _ if !info.is_empty() => HandshakeMessage::ProposeInfo { streams, backend, info },
        1 => HandshakeMessage::Propose { backend },
        _ => HandshakeMessage::ProposeStreams { streams, backend },
    })?;
    let Proposal { backend, info, .. } = proposal;
    match within(env, deadline, send(stream, &message)).await {
        Some(sent) => sent?,
        None => {
            let why =
                format!("the proposal of {backend} could not be sent in time: the acceptor does not read");
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
    }
    let may_be_info = !info.is_empty();
    wait_for_reply(stream, backend, |message| parse_answer(message, may_be_info), deadline, env).await
}

/// Waits for the other end's answer on `backend`: ready, or why not. `deadline` is as for a proposal.
pub(crate) async fn receive_answer<S: HandshakeStream>(
    stream: &mut S,
    backend: &str,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<Result<(), String>> {
    Ok(wait_for_reply(stream, backend, |message| parse_answer(message, false), deadline, env)
        .await?
        .map(drop))
}

/// Receives a message and parses it with `take`.
async fn wait_for_reply<S: HandshakeStream, T>(
    stream: &mut S,
    backend: &str,
    take: impl FnOnce(HandshakeMessage) -> Result<T, Refusal>,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<T> {
    let conversation = async { take(receive(stream).await?.0) };
    match within(env, deadline, conversation).await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(refusal)) => Err(refusal.deliver(stream, env).await),
        None => {
            let why = format!("the other end did not answer in time whether it is ready for {backend}");
            Err(Error::new(ErrorKind::TimedOut, why))
        }
    }
}

/// Parses an answer: ready, with endpoint info if allowed, or why not.
fn parse_answer(message: HandshakeMessage, may_be_info: bool) -> Result<Result<Vec<u8>, String>, Refusal> {
    match message {
        HandshakeMessage::Ready => Ok(Ok(Vec::new())),
        HandshakeMessage::ReadyInfo { info } if may_be_info => Ok(Ok(info)),
        HandshakeMessage::NotReady { reason } => Ok(Err(reason)),
        other => Err(out_of_turn("Ready or NotReady", &other)),
    }
}

/// Waits for the connector's next proposal. Returns `Closed` if the connector ends without one.
///
/// `deadline` is a time of `env`'s clock, not a duration. After an error the stream must be dropped.
pub(crate) async fn receive_proposal<S: HandshakeStream>(
    stream: &mut S,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<Proposal> {
    let conversation = async {
        let mut head = [0; HEAD_LEN];
        let len = stream.read(&mut head).await?;
        if len == 0 {
            let detail = "the connector ended the connection without choosing a backend";
            return Err(Refusal::without_reply(Error::new(ErrorKind::Closed, detail)));
        }
        fill(stream, &mut head[len..]).await?;
        match receive_body(stream, head).await?.0 {
            HandshakeMessage::Propose { backend } => Ok(Proposal { backend, streams: 1, info: Vec::new() }),
            HandshakeMessage::ProposeStreams { streams, backend } => {
                Ok(Proposal { backend, streams, info: Vec::new() })
            }
            HandshakeMessage::ProposeInfo { streams, backend, info } => {
                Ok(Proposal { backend, streams, info })
            }
            other => Err(out_of_turn("Propose", &other)),
        }
    };
    match within(env, deadline, conversation).await {
        Some(Ok(proposal)) => Ok(proposal),
        Some(Err(refusal)) => Err(refusal.deliver(stream, env).await),
        None => Err(Error::new(ErrorKind::TimedOut, "the connector proposed no backend in time")),
    }
}

/// Answers a proposal. A reason is truncated to 1 KiB.
pub(crate) async fn answer<S: HandshakeStream>(stream: &mut S, ready: Result<(), &str>) -> Result<()> {
    let message = match ready {
        Ok(()) => HandshakeMessage::Ready,
        Err(reason) => HandshakeMessage::NotReady { reason: reason.to_owned() },
    };
    send(stream, &encoded(&message)?).await?;
    Ok(())
}

/// Answers a proposal that had endpoint info, with endpoint info or, if `info` is empty, without.
pub(crate) async fn answer_with<S: HandshakeStream>(stream: &mut S, info: &[u8]) -> Result<()> {
    if info.is_empty() {
        return answer(stream, Ok(())).await;
    }
    send(stream, &encoded(&HandshakeMessage::ReadyInfo { info: info.to_owned() })?).await?;
    Ok(())
}

/// Converts the result of a greeting. Sends a refusal to the peer on an error.
async fn finish_greeting<S: HandshakeStream, T>(
    greeted: Option<Result<T, Refusal>>,
    role: Role,
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<T> {
    match greeted {
        Some(Ok(greeted)) => Ok(greeted),
        Some(Err(refusal)) => Err(refusal.deliver(stream, env).await),
        None => Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "the handshake was not done within {} s: {}",
                terms.handshake_time.as_secs_f64(),
                timeout_hint(role)
            ),
        )),
    }
}

fn timeout_hint(role: Role) -> &'static str {
    match role {
        Role::Connector => "the other end may be overloaded, or no Towline endpoint",
        Role::Acceptor => "the other end may be slow, gone, or no Towline endpoint",
    }
}

async fn run_connector<S: HandshakeStream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<Greeting, Refusal> {
    let ours = our_hello(terms, env);
    let our_bytes = encoded(&HandshakeMessage::Hello(ours.clone())).map_err(Refusal::without_reply)?;
    let token = terms.token.as_ref().map(Token::as_bytes);
    send_hello(stream, &our_bytes, env).await?;
    let (theirs, their_bytes) = expect_hello(receive_first(Role::Connector, stream, env).await?)?;
    let version = agree(&ours, &theirs)?;
    let binding = terms.binding.as_ref();
    let transcript = Transcript { connector: &our_bytes, acceptor: &their_bytes, binding };
    send_proof(stream, &transcript, token, Role::Connector).await?;
    check_proof(stream, &transcript, token, Role::Acceptor).await?;
    Ok(greeting(&ours, theirs, version, transcript.secret(token)))
}

async fn run_acceptor<S: HandshakeStream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<Inbound, Refusal> {
    let ours = our_hello(terms, env);
    let our_bytes = encoded(&HandshakeMessage::Hello(ours.clone())).map_err(Refusal::without_reply)?;
    let token = terms.token.as_ref().map(Token::as_bytes);
    let (theirs, their_bytes) = match receive_first(Role::Acceptor, stream, env).await? {
        (HandshakeMessage::Join(join), _) => return Ok(Inbound::Lane(join)),
        other => expect_hello(other)?,
    };
    let version = agree(&theirs, &ours)?;
    send(stream, &our_bytes).await?;
    let binding = terms.binding.as_ref();
    let transcript = Transcript { connector: &their_bytes, acceptor: &our_bytes, binding };
    check_proof(stream, &transcript, token, Role::Connector).await?;
    send_proof(stream, &transcript, token, Role::Acceptor).await?;
    Ok(Inbound::Peer(greeting(&ours, theirs, version, transcript.secret(token))))
}

fn our_hello(terms: &Terms, env: &dyn Environment) -> Hello {
    let mut nonce = [0; NONCE_LEN];
    env.random(&mut nonce);
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        features: terms.features,
        nonce,
        identity: terms.identity.to_bytes(),
        authenticates: terms.token.is_some(),
        offers: terms.offers.clone(),
    }
}

fn greeting(ours: &Hello, theirs: Hello, version: u16, secret: [u8; 32]) -> Greeting {
    Greeting {
        peer: Identity::from_bytes(&theirs.identity),
        version,
        features: ours.features & theirs.features,
        offers: theirs.offers,
        secret,
    }
}

/// A peer that refuses may close before it has read everything. Its reason is then reported rather than the
/// broken pipe.
async fn send_hello<S: HandshakeStream>(
    stream: &mut S,
    bytes: &[u8],
    env: &dyn Environment,
) -> Result<(), Refusal> {
    let Err(broken) = send(stream, bytes).await else {
        return Ok(());
    };
    match receive_first(Role::Connector, stream, env).await {
        Err(refusal) if refusal.kind() != ErrorKind::PeerLost => Err(refusal),
        _ => Err(broken.into()),
    }
}

/// Receives the first message of the other end. Fails at the first byte that no Towline endpoint would send.
async fn receive_first<S: HandshakeStream>(
    role: Role,
    stream: &mut S,
    env: &dyn Environment,
) -> Result<(HandshakeMessage, Vec<u8>), Refusal> {
    let mut head = [0; HEAD_LEN];
    let mut len = 0;
    while len < HEAD_LEN {
        let read = stream.read(&mut head[len..]).await?;
        if read == 0 {
            return Err(cut_off());
        }
        len += read;
        if !MAGIC.starts_with(&head[..len.min(MAGIC.len())]) {
            return Err(refusal::of_unauthenticated_peer(role, stream, &head[..len], env).await);
        }
    }
    receive_body(stream, head).await
}

fn expect_hello((message, bytes): (HandshakeMessage, Vec<u8>)) -> Result<(Hello, Vec<u8>), Refusal> {
    match message {
        HandshakeMessage::Hello(hello) => Ok((hello, bytes)),
        other => Err(out_of_turn("Hello", &other)),
    }
}

async fn send_proof<S: HandshakeStream>(
    stream: &mut S,
    transcript: &Transcript<'_>,
    token: Option<&[u8]>,
    role: Role,
) -> Result<(), Refusal> {
    let proof = encoded(&HandshakeMessage::Proof { mac: transcript.proof(token, role) })?;
    Ok(send(stream, &proof).await?)
}

async fn check_proof<S: HandshakeStream>(
    stream: &mut S,
    transcript: &Transcript<'_>,
    token: Option<&[u8]>,
    peer: Role,
) -> Result<(), Refusal> {
    match receive(stream).await?.0 {
        HandshakeMessage::Proof { mac } => Ok(transcript.verify(token, peer, &mac)?),
        other => Err(out_of_turn("Proof", &other)),
    }
}

async fn receive<S: HandshakeStream>(stream: &mut S) -> Result<(HandshakeMessage, Vec<u8>), Refusal> {
    let mut head = [0; HEAD_LEN];
    fill(stream, &mut head).await?;
    receive_body(stream, head).await
}

/// Receives the body of a message. Returns the message and its bytes, head included. A refusal of the peer is
/// returned as an error.
async fn receive_body<S: HandshakeStream>(
    stream: &mut S,
    head_bytes: [u8; HEAD_LEN],
) -> Result<(HandshakeMessage, Vec<u8>), Refusal> {
    let (kind, body_len) = head(&head_bytes)?;
    let mut bytes = vec![0; HEAD_LEN + body_len];
    bytes[..HEAD_LEN].copy_from_slice(&head_bytes);
    fill(stream, &mut bytes[HEAD_LEN..]).await?;
    match decode(kind, &bytes[HEAD_LEN..])? {
        HandshakeMessage::Refuse { kind, reason } => Err(refusal::from_peer(kind, &reason)),
        message => Ok((message, bytes)),
    }
}

/// Fills `out`, and reads nothing beyond.
async fn fill<S: HandshakeStream>(stream: &mut S, out: &mut [u8]) -> Result<(), Refusal> {
    let mut len = 0;
    while len < out.len() {
        match stream.read(&mut out[len..]).await? {
            0 => return Err(cut_off()),
            read => len += read,
        }
    }
    Ok(())
}

async fn send<S: HandshakeStream>(stream: &mut S, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn encoded(message: &HandshakeMessage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes)?;
    Ok(bytes)
}

fn out_of_turn(expected: &str, message: &HandshakeMessage) -> Refusal {
    let kind: Kind = message.kind();
    Error::new(ErrorKind::Corrupt, format!("{kind} arrived where {expected} was expected")).into()
}

fn cut_off() -> Refusal {
    Refusal::without_reply(Error::new(
        ErrorKind::PeerLost,
        "the peer ended the connection during the handshake",
    ))
}

#[cfg(test)]
mod tests;
