//! The client of a serving side: sends requests and data.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towline::{CandidateState, Connection, ErrorKind, Explained, Explanation, Message, RemoteRegion};

use super::{Answer, Candidate, MessageReceiver, PeerView, Request, Speed, Usage, encode, is_conversation};
use crate::ceiling::blocking;
use crate::ceiling::socket::{SocketClient, SocketTest};
use crate::data::payload::MessageSpec;
use crate::failure::Failure;
use crate::process::cpu_clock::CpuClock;

/// An answer takes less, unless the other end is not `towline serve`.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A connection to a serving side.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    /// Payload bytes copied at this end, in addition to those that the connection counts.
    copied: Arc<AtomicU64>,
}

impl Peer {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, copied: Arc::default() }
    }

    /// Returns the receiver of messages of `spec`.
    pub(crate) fn intake(&self, spec: MessageSpec) -> Result<MessageReceiver, Failure> {
        Ok(MessageReceiver::new(&self.connection, spec, &self.copied)?)
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        match tokio::time::timeout(ANSWER_WITHIN, self.exchange(request)).await {
            Ok(Ok(Answer::Problem { why })) => Err(Failure::run(format!("the serving side: {why}"))),
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::run(format!(
                "no answer within {} s: is the other end a `towline serve` of this version?",
                ANSWER_WITHIN.as_secs()
            ))),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Answer, Failure> {
        let header = encode(request).map_err(Failure::run)?;
        self.connection.deliver(Message::new(header)).await?;
        let message = self.connection.recv().await?;
        if let Some(kind) = towline_runtime::kind_of(message.header()) {
            let ask = if kind == "scheduler" { ": `towline top` connects to it" } else { "" };
            return Err(Failure::run(format!(
                "the other end is not `towline serve` but a {kind} of the task runtime{ask}"
            )));
        }
        if !is_conversation(message.header()) {
            return Err(Failure::run(
                "received a message instead of an answer: is the other end a `towline serve`?",
            ));
        }
        serde_json::from_slice(message.header())
            .map_err(|error| Failure::run(format!("an answer that this version cannot decode: {error}")))
    }

    /// Sends a request that has no answer of its own.
    pub(crate) async fn notify(&self, request: &Request) -> Result<(), Failure> {
        let header = encode(request).map_err(Failure::run)?;
        self.connection.send(Message::new(header)).await?;
        Ok(())
    }

    /// Sends a request whose answer is only success or failure.
    pub(crate) async fn require(&self, request: &Request) -> Result<(), Failure> {
        match self.ask(request).await? {
            Answer::Ready => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn hello(&self) -> Result<PeerView, Failure> {
        match self.ask(&Request::Hello).await? {
            Answer::Hello(about) => Ok(about),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the far end's cost. Fails if the far end received a wrong message.
    pub(crate) async fn usage(&self) -> Result<Usage, Failure> {
        match self.ask(&Request::Usage).await? {
            Answer::Usage(Usage { problem: Some(why), .. }) => Err(Failure::run(why)),
            Answer::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns this end's cost.
    pub(crate) fn own_usage(&self, clock: CpuClock) -> Usage {
        Usage {
            cpu_s: clock.seconds(),
            bytes_copied: self.connection.stats().bytes_copied + self.copied.load(Ordering::Relaxed),
            ..Usage::default()
        }
    }

    pub(crate) async fn region(&self, request: &Request) -> Result<RemoteRegion, Failure> {
        match self.ask(request).await? {
            Answer::Region { remote } => Ok(RemoteRegion::from_bytes(&remote)?),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a bare socket to the far end at `host`.
    pub(crate) async fn open_socket(&self, host: &str, course: SocketTest) -> Result<SocketClient, Failure> {
        let (port, key, certificate) = match self.ask(&Request::Socket { course }).await? {
            Answer::Socket { port, key, certificate } => (port, key, certificate),
            other => return Err(unexpected(&other)),
        };
        let host = host.to_owned();
        let open = move || {
            let nowhere = || std::io::Error::other("the host has no address");
            let address = (host.as_str(), port).to_socket_addrs()?.next().ok_or_else(nowhere)?;
            SocketClient::open(address, key, course, certificate.as_deref())
        };
        blocking(open).await?.map_err(|error| Failure::run(error.to_string()))
    }

    /// Closes the connection; a close that times out is no failure.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        match self.connection.close().await {
            Err(error) if !matches!(error.kind(), ErrorKind::Closed | ErrorKind::TimedOut) => {
                Err(error.into())
            }
            _ => Ok(()),
        }
    }
}

fn unexpected(answer: &Answer) -> Failure {
    Failure::run(format!("the serving side sent an unexpected answer: {answer:?}"))
}

impl Candidate {
    /// Returns every path that one end considered.
    pub(crate) fn all_of(explanation: &Explanation) -> Vec<Self> {
        let one = |Explained { candidate, predicted, .. }: &Explained| Self {
            transport: candidate.name.to_owned(),
            state: match candidate.state {
                CandidateState::Chosen => "chosen",
                CandidateState::Available => "available",
                CandidateState::Refused => "refused",
            }
            .to_owned(),
            reason: candidate.reason.clone(),
            remedy: candidate.remedy.clone(),
            predicted: predicted.map(|predicted| Speed {
                gb_per_s: predicted.speed.gb_per_s,
                p50_us: predicted.speed.p50_us,
            }),
            basis: predicted.map(|predicted| predicted.basis.to_owned()),
        };
        explanation.candidates.iter().map(one).collect()
    }
}
