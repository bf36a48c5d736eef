//! The handshake and the control stream, with a peer that sends arbitrary bytes.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, duplex};

use crate::backend::Inbox;
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{
    CRC32C, Control, Greeting, Identity, Inbound, Offer, Proposal, Role, STREAMS, Terms, Token, answer,
    answer_with, greet_as_acceptor, greet_as_connector, propose, receive_proposal,
};
use crate::platform::environment::Environment;
use crate::platform::environment::clockwork::Clockwork;
use crate::wire::handshake::{
    HEAD_LEN, HandshakeMessage, Hello, IDENTITY_LEN, MAC_LEN, NONCE_LEN, Transcript, decode, head,
};

/// How far the clock advances when nothing else happens.
const TICK: Duration = Duration::from_millis(20);

/// The next action of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAction {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends nothing for a while.
    Wait,
    /// Ends its side of the stream.
    End,
    /// Its stream fails.
    Broken,
}

/// The other end of a handshake.
pub trait Peer: Send {
    /// Receives what our end sent.
    fn receive(&mut self, bytes: &[u8]);
    /// Sends at most `len_max` bytes.
    fn send(&mut self, len_max: usize) -> PeerAction;
}

/// Our end of a handshake.
#[derive(Debug)]
pub struct GreetingConfig<'a> {
    /// Our role.
    pub role: Role,
    /// Our token.
    pub token: Option<&'a [u8]>,
    /// The backends that we offer.
    pub offers: &'a [&'a str],
    /// The time limit of the greeting, and again of the proposal.
    pub time: Duration,
}

/// The result of a handshake.
#[derive(Debug)]
pub struct GreetingOutcome {
    /// The backend that was agreed on.
    pub outcome: Result<String>,
    /// Whether the greeting succeeded.
    pub greeted: bool,
    /// The total length of the peer's offers, in bytes.
    pub offers_len: usize,
    /// How long it took.
    pub took: Duration,
}

/// Runs a greeting with `peer`, and agrees on a backend.
///
/// # Panics
/// Panics if it takes longer than its limit.
pub fn greet(config: &GreetingConfig<'_>, peer: &mut dyn Peer) -> Result<GreetingOutcome> {
    let clock = Clockwork::default();
    let offer = |name: &&str| Offer { backend: (*name).to_owned(), bytes: vec![7; 3] };
    let terms = Terms {
        binding: None,
        identity: Identity::from_bytes(&[3; IDENTITY_LEN]),
        token: config.token.map(Token::from_bytes).transpose()?,
        features: CRC32C | STREAMS,
        offers: config.offers.iter().map(offer).collect(),
        time_left: config.time,
        handshake_time: config.time,
    };
    let mut stream = PeerStream { peer };
    let mut greeting = None;
    let outcome = {
        let mut conversation = pin!(converse(config, &terms, &mut stream, &clock, &mut greeting));
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(outcome) = conversation.as_mut().poll(&mut cx) {
                break outcome;
            }
            clock.advance(TICK);
            assert!(clock.now() < config.time * 2 + Duration::from_secs(1), "the handshake never ends");
        }
    };
    let offers = greeting.iter().flat_map(|greeting: &Greeting| &greeting.offers);
    Ok(GreetingOutcome {
        outcome,
        greeted: greeting.is_some(),
        offers_len: offers.map(|offer| offer.bytes.len()).sum(),
        took: clock.now(),
    })
}

async fn converse(
    config: &GreetingConfig<'_>,
    terms: &Terms,
    stream: &mut PeerStream<'_>,
    clock: &Clockwork,
    greeting: &mut Option<Greeting>,
) -> Result<String> {
    match config.role {
        Role::Connector => {
            let greeting = greeting.insert(greet_as_connector(stream, terms, clock).await?);
            let Some(name) = greeting.offers.first().map(|offer| offer.backend.clone()) else {
                return Ok(String::new());
            };
            let streams = if greeting.features & STREAMS != 0 { 3 } else { 1 };
            let info = if greeting.features & CRC32C != 0 { vec![8; 5] } else { Vec::new() };
            let proposal = Proposal { backend: name.clone(), streams, info };
            match propose(stream, &proposal, clock.now() + config.time, clock).await? {
                Ok(_) => Ok(name),
                Err(_) => Ok(String::new()),
            }
        }
        Role::Acceptor => {
            let Inbound::Peer(greeted) = greet_as_acceptor(stream, terms, clock, |now| now).await? else {
                return Err(Error::new(ErrorKind::Incompatible, "no connection waits for streams here"));
            };
            *greeting = Some(greeted);
            let deadline = clock.now() + config.time;
            loop {
                let proposal = receive_proposal(stream, deadline, clock).await?;
                if terms.offers.iter().any(|offer| offer.backend == proposal.backend) {
                    answer_with(stream, &proposal.info).await?;
                    return Ok(proposal.backend);
                }
                answer(stream, Err("it is not offered")).await?;
            }
        }
    }
}

/// Returns the proof of the end in `role`, for these two `Hello`s.
pub fn proof(token: Option<&[u8]>, role: Role, connector: &[u8], acceptor: &[u8]) -> [u8; MAC_LEN] {
    Transcript { connector, acceptor, binding: None }.proof(token, role)
}

/// Encodes a `Hello` that offers these backends.
pub fn hello(offers: &[&str]) -> Result<Vec<u8>> {
    let offer = |name: &&str| Offer { backend: (*name).to_owned(), bytes: Vec::new() };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 1,
        nonce: [1; NONCE_LEN],
        identity: [2; IDENTITY_LEN],
        authenticates: false,
        offers: offers.iter().map(offer).collect(),
    };
    let mut out = Vec::new();
    HandshakeMessage::Hello(hello).encode(&mut out)?;
    Ok(out)
}

/// Decodes a handshake message.
pub fn decode_greeting(bytes: &[u8]) -> Result<()> {
    read(bytes).map(|message| drop(std::hint::black_box(message)))
}

/// Decodes the handshake message at the start of `bytes` and encodes it again. Also returns its length.
pub fn greeting_message(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let Some((message, len)) = read(bytes)? else { return Ok(None) };
    let mut out = Vec::new();
    message.encode(&mut out)?;
    Ok(Some((out, len)))
}

fn read(bytes: &[u8]) -> Result<Option<(HandshakeMessage, usize)>> {
    let Some((first, rest)) = bytes.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
    let (kind, len) = head(first)?;
    let Some(body) = rest.get(..len) else { return Ok(None) };
    Ok(Some((decode(kind, body)?, HEAD_LEN + len)))
}

struct PeerStream<'a> {
    peer: &'a mut dyn Peer,
}

impl AsyncRead for PeerStream<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().peer.send(buf.remaining()) {
            PeerAction::Bytes(bytes) => {
                buf.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            PeerAction::Wait => Poll::Pending,
            PeerAction::End => Poll::Ready(Ok(())),
            PeerAction::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for PeerStream<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().peer.receive(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The result of a control stream.
#[derive(Debug)]
pub struct ControlOutcome {
    /// Its end, if it ended.
    pub end: Option<Option<Error>>,
    /// The bytes that our end sent.
    pub sent: Vec<u8>,
    /// When it ended, or how long it ran.
    pub took: Duration,
}

/// Runs a control stream whose peer takes these actions in turn; `Wait` lets a quarter of a heartbeat pass.
/// With `reads_nothing`, the peer never reads. Our link drains before step `drain_at`, if given. At the end
/// the connection is over.
pub fn attend(
    heartbeat: Duration,
    steps: &[PeerAction],
    reads_nothing: bool,
    drain_at: Option<usize>,
) -> ControlOutcome {
    /// The capacity of the stream, in bytes.
    const ROOM: usize = 8;
    let clock = Clockwork::default();
    let (near, far) = duplex(ROOM);
    let mut far = Some(far);
    let inbox = Inbox::default();
    let (draining, ended) = (inbox.until_draining(), inbox.until_ended());
    let mut attending = pin!(Control::from(near).attend(heartbeat, &clock, draining, ended));
    let mut cx = Context::from_waker(Waker::noop());
    let mut sent = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        if drain_at == Some(at) {
            inbox.drain(Error::new(ErrorKind::Closed, "it parts"));
        }
        let mut bytes = match step {
            PeerAction::Bytes(bytes) => &bytes[..],
            PeerAction::Wait => {
                clock.advance(heartbeat / 4);
                &[]
            }
            PeerAction::End | PeerAction::Broken => {
                far = None;
                &[]
            }
        };
        loop {
            if let Some(far) = &mut far
                && let Poll::Ready(Ok(len)) = Pin::new(far).poll_write(&mut cx, bytes)
            {
                bytes = &bytes[len..];
            }
            let end = attending.as_mut().poll(&mut cx);
            if let Some(far) = far.as_mut().filter(|_| !reads_nothing) {
                read_available(far, &mut sent, &mut cx);
            }
            if let Poll::Ready(end) = end {
                return ControlOutcome { end: Some(end), sent, took: clock.now() };
            }
            if bytes.is_empty() || far.is_none() || reads_nothing {
                break;
            }
        }
    }
    inbox.end(Error::new(ErrorKind::Closed, "it is over"));
    let end = match attending.as_mut().poll(&mut cx) {
        Poll::Ready(end) => Some(end),
        Poll::Pending => None,
    };
    ControlOutcome { end, sent, took: clock.now() }
}

fn read_available(far: &mut tokio::io::DuplexStream, sent: &mut Vec<u8>, cx: &mut Context<'_>) {
    loop {
        let mut bytes = [0; 16];
        let mut buf = ReadBuf::new(&mut bytes);
        match Pin::new(&mut *far).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => sent.extend_from_slice(buf.filled()),
            _ => return,
        }
    }
}
