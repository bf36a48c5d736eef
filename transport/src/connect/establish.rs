//! Turns a stream into a connection: authenticates, chooses a backend that both ends have, and opens it.

mod candidates;
mod credentials;
mod path_probe;
mod probe_results;

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use self::candidates::{BackendCandidate, no_path, path, prepare};
pub(crate) use self::credentials::{CredentialSet, Credentials};
pub(crate) use self::probe_results::ProbeResults;
use self::probe_results::{ProbePermit, ProbeResult};
use crate::address::Address;
use crate::backend::path::{Candidate, Path};
use crate::backend::{Backend, LinkContext, Opened, Regions, Role, Staging};
use crate::connect::dial;
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{
    self, Admission, Admitted, CRC32C, ConnectorReply, Control, Greeting, Identity, Inbound, JoinKey, Joins,
    Offer, Proposal, STREAMS, Terms, Tls,
};
use crate::memory::{BounceArena, Place, Pool};
use crate::platform::environment::{Environment, within};
use crate::progress::core::{CoreParts, OwnedCore};
use crate::progress::driver::Driver;
use crate::progress::waiting::Wait;
use crate::wire::record_budget::RecordBudget;

/// The most proposals of a connector before it is refused.
const PROPOSALS_MAX: usize = 16;

/// The parts of an endpoint that each of its connections uses.
#[derive(Debug)]
pub(crate) struct Establisher {
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    pub(crate) identity: Identity,
    pub(crate) credentials: Credentials,
    pub(crate) trusts_user: bool,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    pub(crate) bounce_arena: BounceArena,
    pub(crate) unfinished: RecordBudget,
    pub(crate) wait: Wait,
    pub(crate) heartbeat: Duration,
    pub(crate) linger: Duration,
    pub(crate) handshake_time: Duration,
    pub(crate) joins: Joins,
    /// Admits peers that have authenticated and whose connection is not open yet.
    pub(crate) half_open: Admission,
    pub(crate) probe_results: ProbeResults,
}

impl Establisher {
    /// Establishes a connection as the connecting end.
    pub(crate) async fn connect(&self, control: Control, address: &Address) -> Result<OwnedCore> {
        let checked = address.option("integrity") == Some("crc32c");
        let (mut candidates, mut refused) = self.candidates(Role::Connector, address);
        if candidates.is_empty() {
            return Err(no_path(&refused));
        }
        let streams = address.streams()?;
        let asked = [(checked, CRC32C, "integrity=crc32c"), (streams > 1, STREAMS, "streams")];
        let asked = asked.into_iter().filter(|(is_asked, ..)| *is_asked);
        let features = asked.clone().fold(0, |features, (_, feature, _)| features | feature);
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        let mut control = self.secure(Role::Connector, control, address, deadline).await?;
        let addresses = control.addresses();
        let terms = self.terms(&candidates, features, &control, deadline)?;
        let greeting = handshake::greet_as_connector(&mut control, &terms, environment).await?;
        if let Some((.., option)) = asked.clone().find(|(_, feature, _)| greeting.features & feature == 0) {
            let why = format!("the peer's version has no {option}: upgrade it, or leave the option out");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        while !candidates.is_empty() {
            let mut candidate = candidates.remove(0);
            let asked_streams = streams;
            let streams = if candidate.backend.stripes() { streams } else { 1 };
            let mut context = self.context(Role::Connector, &candidate, &greeting, address);
            let mut permit = None;
            let meets = self.meets(&candidate, &greeting);
            let allowed = match meets {
                Ok(()) if candidate.is_probed => {
                    let found = self.probe_permit(
                        &mut candidate,
                        &mut candidates,
                        &greeting,
                        &control,
                        asked_streams,
                    );
                    found.await.map(|new_permit| permit = new_permit)
                }
                meets => meets,
            };
            let answer = match allowed.and_then(|()| prepare(&mut candidate, &mut context)) {
                Ok(()) => {
                    let deadline = environment.now() + self.handshake_time;
                    let (backend, info) = (candidate.backend.name().to_owned(), context.info.clone());
                    let proposal = Proposal { backend, streams, info };
                    handshake::propose(&mut control, &proposal, deadline, environment).await?
                }
                Err(reason) => Err(reason),
            };
            match answer {
                Ok(info) => context.peer_info = info,
                Err(reason) => {
                    if let Some(permit) = permit {
                        permit.record(&Err(reason.clone()), environment.now());
                    }
                    refused.push(candidate.refused(reason));
                    continue;
                }
            }
            let over_tls = terms.binding.is_some();
            let opened = if candidate.backend.takes_stream() {
                let key = JoinKey::new(greeting.secret, streams, over_tls);
                let lanes = self.join(&control, &key, address, streams).await?;
                (context.control, context.lanes) = (Some(control), lanes);
                candidate.backend.open(&mut context).await?
            } else {
                match self
                    .open_separately(&mut candidate, &mut candidates, permit, &mut context, &mut control)
                    .await?
                {
                    Ok(opened) => {
                        context.control = Some(control);
                        opened
                    }
                    Err(reason) => {
                        refused.push(candidate.refused(reason));
                        continue;
                    }
                }
            };
            let candidates = self.record(Role::Connector, &candidate, candidates, refused, &greeting);
            let path =
                path(address.to_string(), addresses, &candidate, &context, (over_tls, streams), candidates);
            return self.connection(&candidate, context, opened, path);
        }
        Err(no_path(&refused))
    }

    /// Opens the further streams of a connection. Each goes to the main stream's peer address, with the same
    /// encryption.
    async fn join(
        &self,
        main: &Control,
        key: &JoinKey,
        address: &Address,
        streams: u8,
    ) -> Result<Vec<Control>> {
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        let mut lanes = Vec::new();
        for stream in 1..streams {
            let nowhere = || Error::new(ErrorKind::Unsupported, "streams=N needs a socket to begin with");
            let peer = main.peer_addr().ok_or_else(nowhere)?;
            let timed_out =
                || Error::new(ErrorKind::TimedOut, "the further streams were not connected in time");
            let dialled = within(environment, deadline, dial::connect(peer)).await.ok_or_else(timed_out)?;
            let mut lane = self.secure(Role::Connector, dialled?.into(), address, deadline).await?;
            let join = key.join(stream, lane.binding()?.as_ref());
            handshake::join(&mut lane, join, deadline, environment).await?;
            lanes.push(lane);
        }
        Ok(lanes)
    }

    /// Establishes a connection as the accepting end. `None` for a stream that joined a waiting connection.
    ///
    /// The peer gives up its admission once it has authenticated. Until its connection is open, a new peer
    /// may replace it.
    pub(crate) async fn accept(
        &self,
        control: Control,
        listening: &Address,
        address: String,
        admitted: Admitted,
    ) -> Result<Option<OwnedCore>> {
        let evicted = || Error::new(ErrorKind::Unavailable, "the peer was replaced by a new one");
        let authenticated = admitted.hold(self.authenticate(control, listening, &admitted)).await;
        let Some(caller) = authenticated.ok_or_else(evicted)?? else { return Ok(None) };
        let half_open = self.half_open.place(admitted.source(), &*self.environment);
        let half_open = admitted.hold(half_open).await.ok_or_else(evicted)?;
        drop(admitted);
        let agreed = half_open.hold(self.agree(caller, listening, address, &half_open)).await;
        agreed.ok_or_else(evicted)?.map(Some)
    }

    /// Authenticates a peer. `None` for a stream that joined a waiting connection.
    async fn authenticate(
        &self,
        control: Control,
        listening: &Address,
        admitted: &Admitted,
    ) -> Result<Option<AuthenticatedPeer>> {
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        // Allocates nothing for a silent peer. The steps below report its timeout.
        let _ = within(environment, deadline, control.first_byte_or_end()).await;
        admitted.advanced(environment.now());
        let (candidates, refused) = self.candidates(Role::Acceptor, listening);
        let mut control = self.secure(Role::Acceptor, control, listening, deadline).await?;
        admitted.advanced(environment.now());
        let terms = self.terms(&candidates, CRC32C | STREAMS, &control, deadline)?;
        let over_tls = terms.binding.is_some();
        match handshake::greet_as_acceptor(&mut control, &terms, environment, |now| admitted.failed(now))
            .await?
        {
            Inbound::Peer(greeting) => {
                Ok(Some(AuthenticatedPeer { control, greeting, over_tls, candidates, refused }))
            }
            Inbound::Lane(join) => {
                let joined = self.joins.join(&join, control, environment);
                send_within(environment, deadline, joined).await.map(|()| None)
            }
        }
    }

    /// Accepts the first suitable proposal of the peer, and opens it.
    async fn agree(
        &self,
        caller: AuthenticatedPeer,
        listening: &Address,
        address: String,
        admitted: &Admitted,
    ) -> Result<OwnedCore> {
        let AuthenticatedPeer { mut control, greeting, over_tls, mut candidates, mut refused } = caller;
        let addresses = control.addresses();
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        for _ in 0..PROPOSALS_MAX {
            let Proposal { backend, streams, info } =
                handshake::receive_proposal(&mut control, deadline, environment).await?;
            admitted.advanced(environment.now());
            let Some(at) = candidates.iter().position(|candidate| candidate.backend.name() == backend) else {
                let answer = handshake::answer(&mut control, Err("it is not offered here"));
                send_within(environment, deadline, answer).await?;
                continue;
            };
            let mut candidate = candidates.remove(at);
            let mut context = self.context(Role::Acceptor, &candidate, &greeting, listening);
            context.peer_info = info;
            let may_stripe = candidate.backend.stripes() && greeting.features & STREAMS != 0;
            let key = || JoinKey::new(greeting.secret, streams, over_tls);
            let expected = self.meets(&candidate, &greeting).and_then(|()| match streams {
                1 => Ok(None),
                _ if may_stripe => Ok(Some(self.joins.expect(key()))),
                _ => Err("it has one stream".to_owned()),
            });
            let prepared =
                expected.and_then(|expected| prepare(&mut candidate, &mut context).map(|()| expected));
            let expected = match prepared {
                Ok(expected) => expected,
                Err(reason) => {
                    send_within(environment, deadline, handshake::answer(&mut control, Err(&reason))).await?;
                    refused.push(candidate.refused(reason));
                    continue;
                }
            };
            let opened = if candidate.backend.takes_stream() {
                // The backend takes the stream over, so the answer is the handshake's last message on it.
                send_within(environment, deadline, handshake::answer_with(&mut control, &context.info))
                    .await?;
                if let Some(expected) = expected {
                    context.lanes = expected.all(deadline, environment).await?;
                }
                context.control = Some(control);
                candidate.backend.open(&mut context).await?
            } else {
                match self
                    .open_separately(&mut candidate, &mut candidates, None, &mut context, &mut control)
                    .await?
                {
                    Ok(opened) => {
                        context.control = Some(control);
                        opened
                    }
                    Err(reason) => {
                        refused.push(candidate.refused(reason));
                        continue;
                    }
                }
            };
            let candidates = self.record(Role::Acceptor, &candidate, candidates, refused, &greeting);
            let path = path(address, addresses, &candidate, &context, (over_tls, streams), candidates);
            return self.connection(&candidate, context, opened, path);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the peer made {PROPOSALS_MAX} proposals and none would do"),
        ))
    }

    /// Opens one end of a path that does not use the stream, while the peer opens the other end.
    ///
    /// `Ok(Err(reason))` means that an end could not open it, or that it is not faster than the stream's
    /// backend. Both ends know that then, and another path may be proposed.
    async fn open_separately(
        &self,
        candidate: &mut BackendCandidate,
        others: &mut [BackendCandidate],
        permit: Option<ProbePermit<'_>>,
        context: &mut LinkContext,
        control: &mut Control,
    ) -> Result<Result<Opened, String>> {
        let environment = &*self.environment;
        let now = environment.now();
        let (opened_by, answered_by) = (now + self.handshake_time / 2, now + self.handshake_time);
        let opened_by = if permit.is_some() { opened_by.min(now + path_probe::OPEN_TIME) } else { opened_by };
        let (role, info, backend) = (context.role, context.info.clone(), candidate.backend.clone());
        let opening = async {
            let timed_out = || Err(Error::new(ErrorKind::TimedOut, "its two ends did not meet in time"));
            let opened = within(environment, opened_by, backend.open(context)).await;
            opened.unwrap_or_else(timed_out).map_err(|error| error.to_string())
        };
        if role == Role::Connector {
            let mut opened = opening.await;
            if let Some(permit) = permit {
                opened = self.probe_path(permit, opened, candidate, others, control, answered_by).await?;
            }
            let answer = handshake::answer(control, opened.as_ref().map(drop).map_err(String::as_str));
            send_within(environment, answered_by, answer).await?;
            // The acceptor's answer says which end failed first.
            let answered =
                handshake::receive_answer(control, backend.name(), answered_by, environment).await?;
            return Ok(answered.and(opened));
        }
        let measurements = if candidate.is_probed { path_probe::MEASUREMENTS_MAX } else { 0 };
        let (opened, asked) = {
            let (mut opening, mut opened) = (std::pin::pin!(opening), None);
            let peer = async {
                send_within(environment, answered_by, handshake::answer_with(control, &info)).await?;
                handshake::receive_measure_or_answer(
                    control,
                    backend.name(),
                    measurements,
                    answered_by,
                    environment,
                )
                .await
            };
            let mut peer = std::pin::pin!(peer);
            let asked = std::future::poll_fn(|cx| {
                // The peer may reach this end before it receives the answer.
                if opened.is_none()
                    && let Poll::Ready(result) = opening.as_mut().poll(cx)
                {
                    opened = Some(result);
                }
                peer.as_mut().poll(cx)
            })
            .await?;
            let opened = match (opened, &asked) {
                (Some(opened), _) => opened,
                (None, ConnectorReply::Answer(Err(reason))) => Err(reason.clone()),
                (None, _) => opening.await,
            };
            (opened, asked)
        };
        let answer = match asked {
            ConnectorReply::Answer(answer) => answer,
            ConnectorReply::Measure(len) => {
                let link = opened.as_ref().ok().map(Opened::link);
                candidate.candidate.reason = "the peer probed it and prefers it".into();
                path_probe::answer_probe(len, link, context, (control, backend.name()), answered_by).await?
            }
        };
        let opened = match (opened, answer) {
            (Ok(_), Err(reason)) => Err(reason),
            (opened, _) => opened,
        };
        let answer = handshake::answer(control, opened.as_ref().map(drop).map_err(String::as_str));
        send_within(environment, answered_by, answer).await?;
        Ok(opened)
    }

    /// Returns whether a probed backend may be proposed, by the recorded result. Without a result, returns
    /// the permit to probe it.
    async fn probe_permit(
        &self,
        candidate: &mut BackendCandidate,
        others: &mut [BackendCandidate],
        greeting: &Greeting,
        control: &Control,
        streams: u8,
    ) -> Result<Option<ProbePermit<'_>>, String> {
        if streams > 1 {
            return Err("it has one stream, and the address asks for several".into());
        }
        if !others.iter().any(|other| other.backend.takes_stream() && self.meets(other, greeting).is_ok()) {
            // No other candidate competes with it.
            return Ok(None);
        }
        let environment = &*self.environment;
        let key = (candidate.backend.name(), greeting.peer.host, control.peer_addr().map(|at| at.ip()));
        // The acceptor is waiting for a proposal meanwhile.
        let by = environment.now() + self.handshake_time / 2;
        match self.probe_results.of(key, by, environment).await {
            ProbeResult::Measured(speeds) => {
                path_probe::apply_probe(speeds, candidate, others).map(|()| None)
            }
            ProbeResult::Failed(why) => Err(why),
            ProbeResult::Unprobed(permit) => Ok(Some(permit)),
        }
    }

    /// Probes the opened path against the stream. Gives it up if it is not faster by the required factor.
    async fn probe_path(
        &self,
        permit: ProbePermit<'_>,
        opened: Result<Opened, String>,
        candidate: &mut BackendCandidate,
        others: &mut [BackendCandidate],
        control: &mut Control,
        deadline: Duration,
    ) -> Result<Result<Opened, String>> {
        let environment = &*self.environment;
        let outcome = match &opened {
            Ok(opened) => path_probe::measure(opened.link(), control, deadline, environment).await?,
            Err(reason) => Err(reason.clone()),
        };
        permit.record(&outcome, environment.now());
        let applied = outcome.and_then(|speeds| path_probe::apply_probe(speeds, candidate, others));
        Ok(applied.and(opened))
    }

    /// Counts the result of an attempt that began at `begin`.
    pub(crate) fn count(&self, role: &'static str, begin: Duration, result: &Result<OwnedCore>) {
        let path = result.as_ref().map(|connection| connection.core().path.chosen()).map_err(Error::kind);
        self.driver.meters.established(role, path, self.environment.now().saturating_sub(begin));
    }

    /// Returns the endpoint's TLS settings, or an error that says how to set them.
    pub(crate) fn tls(&self) -> Result<Tls> {
        let missing = || {
            if cfg!(not(feature = "tls")) {
                let why = "this build of towline has no TLS: build it with its feature `tls`, which is on by default";
                return Error::new(ErrorKind::Unsupported, why);
            }
            let why = "the endpoint has no TLS (`Builder::tls`): to listen it needs a certificate and its key (--cert, --key), \
                       to connect an authority to believe (--ca)";
            Error::new(ErrorKind::Invalid, why)
        };
        self.credentials.now().tls.ok_or_else(missing)
    }

    /// Encrypts the handshake stream with TLS, if `address` requires it.
    async fn secure(
        &self,
        role: Role,
        control: Control,
        address: &Address,
        deadline: Duration,
    ) -> Result<Control> {
        if !address.scheme().is_encrypted() {
            return Ok(control);
        }
        let tls = self.tls()?;
        handshake::secure(
            role,
            control,
            (&tls, address.host()),
            deadline,
            self.handshake_time,
            &*self.environment,
        )
        .await
    }

    fn terms(
        &self,
        candidates: &[BackendCandidate],
        features: u64,
        control: &Control,
        deadline: Duration,
    ) -> Result<Terms> {
        let offer = |candidate: &BackendCandidate| Offer {
            backend: candidate.backend.name().to_owned(),
            bytes: candidate.offer.clone(),
        };
        Ok(Terms {
            identity: self.identity,
            token: self.credentials.now().token,
            features,
            offers: candidates.iter().map(offer).collect(),
            binding: control.binding()?,
            time_left: deadline.saturating_sub(self.environment.now()),
            handshake_time: self.handshake_time,
        })
    }

    fn context(
        &self,
        role: Role,
        candidate: &BackendCandidate,
        greeting: &Greeting,
        address: &Address,
    ) -> LinkContext {
        let name = candidate.backend.name();
        let peer_offer = greeting.offers.iter().find(|offer| offer.backend == name);
        LinkContext {
            role,
            local: self.identity,
            peer: greeting.peer,
            address: address.clone(),
            offer: candidate.offer.clone(),
            peer_offer: peer_offer.map(|offer| offer.bytes.clone()).unwrap_or_default(),
            info: Vec::new(),
            peer_info: Vec::new(),
            prepared: None,
            secret: greeting.secret,
            trusts: self.credentials.now().token.is_some() || self.trusts_user,
            control: None,
            lanes: Vec::new(),
            inbox: Arc::default(),
            regions: Regions::new(self.environment.clone()),
            pool: self.pools[&Place::Host].clone(),
            bounce_arena: self.bounce_arena.clone(),
            unfinished: self.unfinished.clone(),
            environment: self.environment.clone(),
            heartbeat: self.heartbeat,
            checked: candidate.backend.checks() && greeting.features & CRC32C != 0,
        }
    }

    fn connection(
        &self,
        candidate: &BackendCandidate,
        context: LinkContext,
        opened: Opened,
        path: Path,
    ) -> Result<OwnedCore> {
        let opened = opened.wrapped(|link| Staging::over(link, context.pool));
        if let Some(control) = context.control.filter(|_| !candidate.backend.carries_control()) {
            let (link, inbox) = (opened.link().clone(), context.inbox.clone());
            let (environment, heartbeat) = (self.environment.clone(), self.heartbeat);
            self.environment.spawn(Box::pin(async move {
                let (draining, ended) = (inbox.until_draining(), inbox.until_ended());
                if let Some(why) = control.attend(heartbeat, &*environment, draining, ended).await {
                    link.end(why);
                }
            }));
        }
        OwnedCore::new(CoreParts {
            opened,
            inbox: context.inbox,
            regions: context.regions,
            driver: self.driver.clone(),
            pools: self.pools.clone(),
            peer: context.peer,
            path,
            wait: self.wait,
            linger: self.linger,
        })
    }
}

/// Sends `answer` by `deadline`, a time of `environment`'s clock.
async fn send_within(
    environment: &dyn Environment,
    deadline: Duration,
    answer: impl Future<Output = Result<()>>,
) -> Result<()> {
    let timed_out =
        || Err(Error::new(ErrorKind::TimedOut, "the other end did not receive an answer in time"));
    within(environment, deadline, answer).await.unwrap_or_else(timed_out)
}

/// A peer that has authenticated, and what it may propose.
struct AuthenticatedPeer {
    control: Control,
    greeting: Greeting,
    over_tls: bool,
    candidates: Vec<BackendCandidate>,
    refused: Vec<Candidate>,
}
