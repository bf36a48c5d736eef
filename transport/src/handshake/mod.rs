//! The front handshake: what two ends say to each other before a data path exists, on any stream.
//!
//! Every read takes exactly the message it expects, never a byte more: the stream is handed on afterwards, and what
//! follows the last message belongs to the data path.

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
pub(crate) use tls::Session;
pub use tls::Tls;
#[cfg(feature = "tls")]
pub use tls::TlsBuilder;
#[cfg(feature = "tls")]
pub(crate) use tls::tls_error;
pub use token::Token;

/// How long a handshake may take, where nothing else was asked for.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// What a handshake runs on: a socket, or TLS over one.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What this end brings to a handshake.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) identity: Identity,
    /// With one, the peer must know it too; without one, the peer must have none.
    pub(crate) token: Option<Token>,
    pub(crate) features: u64,
    /// At most 16, of at most 16 KiB each and a little less than 64 KiB together. Unauthenticated peers can read them.
    pub(crate) offers: Vec<Offer>,
    /// What the TLS session is known by that this runs on: the proofs cover it.
    pub(crate) binding: Option<[u8; BINDING_LEN]>,
    /// What is left for the whole greeting; telling the peer about a refusal may add 0.1 s.
    pub(crate) time_left: Duration,
    /// What the endpoint allows a handshake, as an error tells it.
    pub(crate) handshake_time: Duration,
}

/// What both ends know after a handshake.
pub(crate) struct Greeting {
    pub(crate) peer: Identity,
    /// The protocol version, the highest that both speak.
    pub(crate) version: u16,
    /// The features that both have.
    pub(crate) features: u64,
    /// What the peer's backends offer.
    pub(crate) offers: Vec<Offer>,
    /// Equal at both ends and of this connection only. With a token, nobody else knows it; without one, whoever saw
    /// the handshake does. The connection's further streams join by it.
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

/// TLS under the handshake, where `control` is a socket: with a listener at `host` for the end that connected.
///
/// `deadline` is a time of `env`'s clock, and `handshake_time` what the endpoint allows a handshake, as an error tells it;
/// telling the peer about a refusal may add 0.1 s.
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

/// Who arrived.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A peer, after its greeting.
    Peer(Greeting),
    /// A further stream of a connection, so it says.
    Lane(Join),
}

/// The handshake of the end that connected. After an error the stream is of no more use.
pub(crate) async fn greet_as_connector<S: Stream>(
    stream: &mut S,
    terms: &Terms,
    env: &dyn Environment,
) -> Result<Greeting> {
    let deadline = env.now().saturating_add(terms.time_left);
    let greeted = within(env, deadline, run_connector(stream, terms, env)).await;
    finish_greeting(greeted, Role::Connector, stream, terms, env).await
}

/// The handshake of the end that listened. After an error the stream is of no more use. `failed` is told when a peer fails to
/// authenticate, and tells when it may hear so.
pub(crate) async fn greet_as_acceptor<S: Stream>(
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

/// What a connector asks for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) backend: String,
    pub(crate) streams: u8,
    /// What the backend tells its twin now that both ends have proved who they are; empty where the offer said all.
    pub(crate) info: Vec<u8>,
}

impl std::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { backend, streams, info } = self;
        write!(f, "Proposal({backend}, {streams} streams, {} bytes)", info.len())
    }
}

/// Asks the acceptor for a backend; it answers with its endpoint info, which is empty if it has none or the proposal had none. `Ok(Err(reason))`
/// says that it cannot, and the next may be proposed.
///
/// `deadline` is a time of `env`'s clock, not a duration. After an error the stream is of no more use.
pub(crate) async fn propose<S: Stream>(
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
            let why = format!("the acceptor made no room for the proposal of {backend} in time");
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
    }
    let may_be_info = !info.is_empty();
    wait_for_reply(stream, backend, |message| parse_answer(message, may_be_info), deadline, env).await
}

/// Waits for the other end's word on `backend`: ready, or why not. `deadline` as for a proposal.
pub(crate) async fn receive_answer<S: Stream>(
    stream: &mut S,
    backend: &str,
    deadline: Duration,
    env: &dyn Environment,
) -> Result<Result<(), String>> {
    Ok(wait_for_reply(stream, backend, |message| parse_answer(message, false), deadline, env)
        .await?
        .map(drop))
}

/// What `take` makes of the other end's word.
async fn wait_for_reply<S: Stream, T>(
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
            let why = format!("the other end did not say in time whether it is ready for {backend}");
            Err(Error::new(ErrorKind::TimedOut, why))
        }
    }
}

/// Ready, with an endpoint info where there may be one, or why not.
fn parse_answer(message: HandshakeMessage, may_be_info: bool) -> Result<Result<Vec<u8>, String>, Refusal> {
    match message {
        HandshakeMessage::Ready => Ok(Ok(Vec::new())),
        HandshakeMessage::ReadyInfo { info } if may_be_info => Ok(Ok(info)),
        HandshakeMessage::NotReady { reason } => Ok(Err(reason)),
        other => Err(out_of_turn("Ready or NotReady", &other)),
    }
}

/// Waits for the connector's next proposal; `Closed` where it ends without one.
///
/// `deadline` is a time of `env`'s clock, not a duration. After an error the stream is of no more use.
pub(crate) async fn receive_proposal<S: Stream>(
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

/// Answers a proposal. What a reason has beyond 1 KiB is cut off.
pub(crate) async fn answer<S: Stream>(stream: &mut S, ready: Result<(), &str>) -> Result<()> {
    let message = match ready {
        Ok(()) => HandshakeMessage::Ready,
        Err(reason) => HandshakeMessage::NotReady { reason: reason.to_owned() },
    };
    send(stream, &encoded(&message)?).await?;
    Ok(())
}

/// Answers a proposal that had an endpoint info with one; an empty one is none.
pub(crate) async fn answer_with<S: Stream>(stream: &mut S, info: &[u8]) -> Result<()> {
    if info.is_empty() {
        return answer(stream, Ok(())).await;
    }
    send(stream, &encoded(&HandshakeMessage::ReadyInfo { info: info.to_owned() })?).await?;
    Ok(())
}

/// What a greeting came to, told to the peer where that is an error.
async fn finish_greeting<S: Stream, T>(
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

async fn run_connector<S: Stream>(
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

async fn run_acceptor<S: Stream>(
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

/// A peer that refuses may be gone before it has read everything; then its reason is worth more than the broken pipe.
async fn send_hello<S: Stream>(stream: &mut S, bytes: &[u8], env: &dyn Environment) -> Result<(), Refusal> {
    let Err(broken) = send(stream, bytes).await else {
        return Ok(());
    };
    match receive_first(Role::Connector, stream, env).await {
        Err(refusal) if refusal.kind() != ErrorKind::PeerLost => Err(refusal),
        _ => Err(broken.into()),
    }
}

/// The receive_first message from the other end. Whatever shows that it is no Towline endpoint ends the wait at once.
async fn receive_first<S: Stream>(
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

async fn send_proof<S: Stream>(
    stream: &mut S,
    transcript: &Transcript<'_>,
    token: Option<&[u8]>,
    role: Role,
) -> Result<(), Refusal> {
    let proof = encoded(&HandshakeMessage::Proof { mac: transcript.proof(token, role) })?;
    Ok(send(stream, &proof).await?)
}

async fn check_proof<S: Stream>(
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

async fn receive<S: Stream>(stream: &mut S) -> Result<(HandshakeMessage, Vec<u8>), Refusal> {
    let mut head = [0; HEAD_LEN];
    fill(stream, &mut head).await?;
    receive_body(stream, head).await
}

/// The message that `head` begins, and its bytes, head included. The peer's refusal comes back as an error.
async fn receive_body<S: Stream>(
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

/// Fills `out`, and not a byte more.
async fn fill<S: Stream>(stream: &mut S, out: &mut [u8]) -> Result<(), Refusal> {
    let mut len = 0;
    while len < out.len() {
        match stream.read(&mut out[len..]).await? {
            0 => return Err(cut_off()),
            read => len += read,
        }
    }
    Ok(())
}

async fn send<S: Stream>(stream: &mut S, bytes: &[u8]) -> std::io::Result<()> {
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
    Error::new(ErrorKind::Corrupt, format!("{kind} came where {expected} was due")).into()
}

fn cut_off() -> Refusal {
    Refusal::without_reply(Error::new(
        ErrorKind::PeerLost,
        "the peer ended the connection during the handshake",
    ))
}

#[cfg(test)]
mod tests;
