//! From a stream to a connection: greet, choose a backend that both ends have, open it.

mod credentials;
mod entrants;
mod trial;
mod verdicts;

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

pub(crate) use self::credentials::{Credentials, Held};
use self::entrants::{Entrant, no_path, prepare};
pub(crate) use self::verdicts::Verdicts;
use self::verdicts::{Turn, Verdict};
use crate::addr::Address;
use crate::backend::{Backend, Opened, Regions, Role, Site, Staging};
use crate::connection::{Connection, Parts};
use crate::dial;
use crate::door::{
    self, Admission, Admitted, Asked, CRC32C, Caller, Control, Greeting, Identity, JoinKey, Joins, Offer,
    Proposal, STREAMS, Terms, Tls,
};
use crate::driver::Driver;
use crate::environment::{Environment, within};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Depot, Place, Pool};
use crate::path::{Candidate, Path};
use crate::waiting::Wait;
use crate::wire::unfinished::Unfinished;

/// What a connector may propose before it is sent away.
const PROPOSALS_MAX: usize = 16;

/// What an endpoint brings to each of its connections.
#[derive(Debug)]
pub(crate) struct Establisher {
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) backends: Vec<Arc<dyn Backend>>,
    pub(crate) identity: Identity,
    pub(crate) credentials: Credentials,
    pub(crate) trusts_user: bool,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    pub(crate) depot: Depot,
    pub(crate) unfinished: Unfinished,
    pub(crate) wait: Wait,
    pub(crate) heartbeat: Duration,
    pub(crate) linger: Duration,
    pub(crate) handshake_time: Duration,
    pub(crate) joins: Joins,
    /// Peers that have authenticated, and whose connection is not open yet.
    pub(crate) half_open: Admission,
    pub(crate) verdicts: Verdicts,
}

impl Establisher {
    /// The connecting end.
    pub(crate) async fn connect(&self, control: Control, address: &Address) -> Result<Connection> {
        let checked = address.option("integrity") == Some("crc32c");
        let (mut entrants, mut refused) = self.entrants(Role::Connector, address);
        if entrants.is_empty() {
            return Err(no_path(&refused));
        }
        let streams = address.streams()?;
        let asked = [(checked, CRC32C, "integrity=crc32c"), (streams > 1, STREAMS, "streams")];
        let asked = asked.into_iter().filter(|(is_asked, ..)| *is_asked);
        let features = asked.clone().fold(0, |features, (_, feature, _)| features | feature);
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        let mut control = self.secure(Role::Connector, control, address, deadline).await?;
        let terms = self.terms(&entrants, features, &control, deadline)?;
        let greeting = door::greet_as_connector(&mut control, &terms, environment).await?;
        if let Some((.., option)) = asked.clone().find(|(_, feature, _)| greeting.features & feature == 0) {
            let why = format!("the peer's version has no {option}: upgrade it, or leave the option out");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        while !entrants.is_empty() {
            let mut entrant = entrants.remove(0);
            let asked_streams = streams;
            let streams = if entrant.backend.stripes() { streams } else { 1 };
            let mut site = self.site(Role::Connector, &entrant, &greeting, address);
            let mut turn = None;
            let met = self.meets(&entrant, &greeting);
            let may_be = match met {
                Ok(()) if entrant.on_trial => {
                    let allowed =
                        self.allowed(&mut entrant, &mut entrants, &greeting, &control, asked_streams);
                    allowed.await.map(|untried| turn = untried)
                }
                met => met,
            };
            let answer = match may_be.and_then(|()| prepare(&mut entrant, &mut site)) {
                Ok(()) => {
                    let deadline = environment.now() + self.handshake_time;
                    let (backend, card) = (entrant.backend.name().to_owned(), site.card.clone());
                    let proposal = Proposal { backend, streams, card };
                    door::propose(&mut control, &proposal, deadline, environment).await?
                }
                Err(reason) => Err(reason),
            };
            match answer {
                Ok(card) => site.peer_card = card,
                Err(reason) => {
                    if let Some(turn) = turn {
                        turn.settle(&Err(reason.clone()), environment.now());
                    }
                    entrant.candidate.reason = reason;
                    refused.push(entrant.candidate);
                    continue;
                }
            }
            let over_tls = terms.binding.is_some();
            let opened = if entrant.backend.takes_stream() {
                let key = JoinKey::new(greeting.secret, streams, over_tls);
                let strands = self.join(&control, &key, address, streams).await?;
                (site.control, site.strands) = (Some(control), strands);
                entrant.backend.open(&mut site).await?
            } else {
                match self.open_beside(&mut entrant, &mut entrants, turn, &mut site, &mut control).await? {
                    Ok(opened) => {
                        site.control = Some(control);
                        opened
                    }
                    Err(reason) => {
                        entrant.candidate.reason = reason;
                        refused.push(entrant.candidate);
                        continue;
                    }
                }
            };
            let candidates = self.settle(Role::Connector, &entrant, entrants, refused, &greeting);
            let path = path(address.to_string(), &entrant, &site, (over_tls, streams), candidates);
            return self.connection(&entrant, site, opened, path);
        }
        Err(no_path(&refused))
    }

    /// The further streams of a connection, each joined to it where its main stream leads, and as encrypted.
    async fn join(
        &self,
        main: &Control,
        key: &JoinKey,
        address: &Address,
        streams: u8,
    ) -> Result<Vec<Control>> {
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        let mut strands = Vec::new();
        for stream in 1..streams {
            let nowhere = || Error::new(ErrorKind::Unsupported, "streams=N needs a socket to begin with");
            let peer = main.peer_addr().ok_or_else(nowhere)?;
            let late = || Error::new(ErrorKind::TimedOut, "the further streams were not connected in time");
            let dialled = within(environment, deadline, dial::connect(peer)).await.ok_or_else(late)?;
            let mut strand = self.secure(Role::Connector, dialled?.into(), address, deadline).await?;
            let join = key.join(stream, strand.binding()?.as_ref());
            door::join(&mut strand, join, deadline, environment).await?;
            strands.push(strand);
        }
        Ok(strands)
    }

    /// The accepting end; `None` for a stream that joined a connection that waited for it. The peer gives its place back once it
    /// has authenticated; until then, and until its connection is open, it may have to make room for others.
    pub(crate) async fn accept(
        &self,
        control: Control,
        listening: &Address,
        address: String,
        admitted: Admitted,
    ) -> Result<Option<Connection>> {
        let made_room = || Error::new(ErrorKind::Unavailable, "the peer made room for newcomers");
        let greeted = admitted.hold(self.greet(control, listening, &admitted)).await;
        let Some(caller) = greeted.ok_or_else(made_room)?? else { return Ok(None) };
        let half_open = self.half_open.place(admitted.source(), &*self.environment);
        let half_open = admitted.hold(half_open).await.ok_or_else(made_room)?;
        drop(admitted);
        let agreed = half_open.hold(self.agree(caller, listening, address, &half_open)).await;
        agreed.ok_or_else(made_room)?.map(Some)
    }

    /// The greeting of a peer that has arrived; `None` for a stream that joined.
    async fn greet(
        &self,
        control: Control,
        listening: &Address,
        admitted: &Admitted,
    ) -> Result<Option<Greeted>> {
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        // Nothing is made for a peer that says nothing. What follows reports the end of its time.
        let _ = within(environment, deadline, control.spoken()).await;
        admitted.advanced(environment.now());
        let (entrants, refused) = self.entrants(Role::Acceptor, listening);
        let mut control = self.secure(Role::Acceptor, control, listening, deadline).await?;
        admitted.advanced(environment.now());
        let terms = self.terms(&entrants, CRC32C | STREAMS, &control, deadline)?;
        let over_tls = terms.binding.is_some();
        match door::greet_caller(&mut control, &terms, environment, |now| admitted.failed(now)).await? {
            Caller::Peer(greeting) => Ok(Some(Greeted { control, greeting, over_tls, entrants, refused })),
            Caller::Strand(join) => {
                let joined = self.joins.join(&join, control, environment);
                tell(environment, deadline, joined).await.map(|()| None)
            }
        }
    }

    /// Takes the first of the peer's proposals that will do, and opens it.
    async fn agree(
        &self,
        caller: Greeted,
        listening: &Address,
        address: String,
        admitted: &Admitted,
    ) -> Result<Connection> {
        let Greeted { mut control, greeting, over_tls, mut entrants, mut refused } = caller;
        let environment = &*self.environment;
        let deadline = environment.now() + self.handshake_time;
        for _ in 0..PROPOSALS_MAX {
            let Proposal { backend, streams, card } =
                door::proposed(&mut control, deadline, environment).await?;
            admitted.advanced(environment.now());
            let Some(at) = entrants.iter().position(|entrant| entrant.backend.name() == backend) else {
                let answer = door::answer(&mut control, Err("it is not offered here"));
                tell(environment, deadline, answer).await?;
                continue;
            };
            let mut entrant = entrants.remove(at);
            let mut site = self.site(Role::Acceptor, &entrant, &greeting, listening);
            site.peer_card = card;
            let may_stripe = entrant.backend.stripes() && greeting.features & STREAMS != 0;
            let key = || JoinKey::new(greeting.secret, streams, over_tls);
            let expected = self.meets(&entrant, &greeting).and_then(|()| match streams {
                1 => Ok(None),
                _ if may_stripe => Ok(Some(self.joins.expect(key()))),
                _ => Err("it has one stream".to_owned()),
            });
            let prepared = expected.and_then(|expected| prepare(&mut entrant, &mut site).map(|()| expected));
            let expected = match prepared {
                Ok(expected) => expected,
                Err(reason) => {
                    tell(environment, deadline, door::answer(&mut control, Err(&reason))).await?;
                    entrant.candidate.reason = reason;
                    refused.push(entrant.candidate);
                    continue;
                }
            };
            let opened = if entrant.backend.takes_stream() {
                // It can be opened only when nothing more is to be said on the stream.
                tell(environment, deadline, door::answer_with(&mut control, &site.card)).await?;
                if let Some(expected) = expected {
                    site.strands = expected.all(deadline, environment).await?;
                }
                site.control = Some(control);
                entrant.backend.open(&mut site).await?
            } else {
                match self.open_beside(&mut entrant, &mut entrants, None, &mut site, &mut control).await? {
                    Ok(opened) => {
                        site.control = Some(control);
                        opened
                    }
                    Err(reason) => {
                        entrant.candidate.reason = reason;
                        refused.push(entrant.candidate);
                        continue;
                    }
                }
            };
            let candidates = self.settle(Role::Acceptor, &entrant, entrants, refused, &greeting);
            let path = path(address, &entrant, &site, (over_tls, streams), candidates);
            return self.connection(&entrant, site, opened, path);
        }
        Err(Error::new(
            ErrorKind::Refused,
            format!("the peer made {PROPOSALS_MAX} proposals and none would do"),
        ))
    }

    /// Opens one end of a path beside the stream, while the peer opens the other; `Ok(Err(reason))` says that one of the two
    /// could not, or that it is not better than what takes the stream, which both know then, and another path may be proposed.
    async fn open_beside(
        &self,
        entrant: &mut Entrant,
        others: &mut [Entrant],
        turn: Option<Turn<'_>>,
        site: &mut Site,
        control: &mut Control,
    ) -> Result<Result<Opened, String>> {
        let environment = &*self.environment;
        let now = environment.now();
        let (opened_by, answered_by) = (now + self.handshake_time / 2, now + self.handshake_time);
        let opened_by = if turn.is_some() { opened_by.min(now + trial::OPEN_TIME) } else { opened_by };
        let (role, card, backend) = (site.role, site.card.clone(), entrant.backend.clone());
        let opening = async {
            let late = || Err(Error::new(ErrorKind::TimedOut, "its two ends did not meet in time"));
            let opened = within(environment, opened_by, backend.open(site)).await;
            opened.unwrap_or_else(late).map_err(|error| error.to_string())
        };
        if role == Role::Connector {
            let mut opened = opening.await;
            if let Some(turn) = turn {
                opened = self.try_out(turn, opened, entrant, others, control, answered_by).await?;
            }
            let answer = door::answer(control, opened.as_ref().map(drop).map_err(String::as_str));
            tell(environment, answered_by, answer).await?;
            // The acceptor knows which of the two failed first.
            let answered = door::answered(control, backend.name(), answered_by, environment).await?;
            return Ok(answered.and(opened));
        }
        let measurements = if entrant.on_trial { trial::MEASUREMENTS_MAX } else { 0 };
        let (opened, asked) = {
            let (mut opening, mut opened) = (std::pin::pin!(opening), None);
            let peer = async {
                tell(environment, answered_by, door::answer_with(control, &card)).await?;
                door::asked(control, backend.name(), measurements, answered_by, environment).await
            };
            let mut peer = std::pin::pin!(peer);
            let asked = std::future::poll_fn(|cx| {
                // This end can be met before the peer hears that it may come.
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
                (None, Asked::Said(Err(reason))) => Err(reason.clone()),
                (None, _) => opening.await,
            };
            (opened, asked)
        };
        let said = match asked {
            Asked::Said(said) => said,
            Asked::Measure(len) => {
                let link = opened.as_ref().ok().map(Opened::link);
                entrant.candidate.reason = "the peer tried it, and prefers it".into();
                trial::take_part(len, link, site, (control, backend.name()), answered_by).await?
            }
        };
        let opened = match (opened, said) {
            (Ok(_), Err(reason)) => Err(reason),
            (opened, _) => opened,
        };
        let answer = door::answer(control, opened.as_ref().map(drop).map_err(String::as_str));
        tell(environment, answered_by, answer).await?;
        Ok(opened)
    }

    /// Whether a backend on trial may be proposed, as far as is known of it; with this connection's turn where it is untried.
    async fn allowed(
        &self,
        entrant: &mut Entrant,
        others: &mut [Entrant],
        greeting: &Greeting,
        control: &Control,
        streams: u8,
    ) -> Result<Option<Turn<'_>>, String> {
        if streams > 1 {
            return Err("it has one stream, and the address asks for several".into());
        }
        if !others.iter().any(|other| other.backend.takes_stream() && self.meets(other, greeting).is_ok()) {
            // There is nothing to be better than.
            return Ok(None);
        }
        let environment = &*self.environment;
        let way = (entrant.backend.name(), greeting.peer.host, control.peer_addr().map(|at| at.ip()));
        // The acceptor waits for a proposal meanwhile.
        let by = environment.now() + self.handshake_time / 2;
        match self.verdicts.of(way, by, environment).await {
            Verdict::Figures(figures) => trial::heed(figures, entrant, others).map(|()| None),
            Verdict::Nothing(why) => Err(why),
            Verdict::Untried(turn) => Ok(Some(turn)),
        }
    }

    /// Measures what was opened against what takes the stream; gives it up if it is not much better.
    async fn try_out(
        &self,
        turn: Turn<'_>,
        opened: Result<Opened, String>,
        entrant: &mut Entrant,
        others: &mut [Entrant],
        control: &mut Control,
        deadline: Duration,
    ) -> Result<Result<Opened, String>> {
        let environment = &*self.environment;
        let outcome = match &opened {
            Ok(opened) => trial::measure(opened.link(), control, deadline, environment).await?,
            Err(reason) => Err(reason.clone()),
        };
        turn.settle(&outcome, environment.now());
        let heeded = outcome.and_then(|figures| trial::heed(figures, entrant, others));
        Ok(heeded.and(opened))
    }

    /// Counts what became of an attempt that began at `begin`.
    pub(crate) fn count(&self, role: &'static str, begin: Duration, result: &Result<Connection>) {
        let path = result.as_ref().map(|connection| connection.path().chosen()).map_err(Error::kind);
        self.driver.meters.established(role, path, self.environment.now().saturating_sub(begin));
    }

    /// The endpoint's TLS, or what to do to have it.
    pub(crate) fn tls(&self) -> Result<Tls> {
        let missing = || {
            let why = "the endpoint has no TLS (`Builder::tls`): to listen it needs a certificate and its key (--cert, --key), \
                       to connect an authority to believe (--ca)";
            Error::new(ErrorKind::Invalid, why)
        };
        self.credentials.now().tls.ok_or_else(missing)
    }

    /// Puts TLS under the handshake, where `address` asks for it.
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
        door::secure(role, control, (&tls, address.host()), deadline, self.handshake_time, &*self.environment)
            .await
    }

    fn terms(
        &self,
        entrants: &[Entrant],
        features: u64,
        control: &Control,
        deadline: Duration,
    ) -> Result<Terms> {
        let offer = |entrant: &Entrant| Offer {
            backend: entrant.backend.name().to_owned(),
            bytes: entrant.offer.clone(),
        };
        Ok(Terms {
            identity: self.identity,
            token: self.credentials.now().token,
            features,
            offers: entrants.iter().map(offer).collect(),
            binding: control.binding()?,
            time_left: deadline.saturating_sub(self.environment.now()),
            handshake_time: self.handshake_time,
        })
    }

    fn site(&self, role: Role, entrant: &Entrant, greeting: &Greeting, address: &Address) -> Site {
        let name = entrant.backend.name();
        let peer_offer = greeting.offers.iter().find(|offer| offer.backend == name);
        Site {
            role,
            local: self.identity,
            peer: greeting.peer,
            address: address.clone(),
            offer: entrant.offer.clone(),
            peer_offer: peer_offer.map(|offer| offer.bytes.clone()).unwrap_or_default(),
            card: Vec::new(),
            peer_card: Vec::new(),
            prepared: None,
            secret: greeting.secret,
            trusts: self.credentials.now().token.is_some() || self.trusts_user,
            control: None,
            strands: Vec::new(),
            inbox: Arc::default(),
            regions: Regions::new(self.environment.clone()),
            pool: self.pools[&Place::Host].clone(),
            depot: self.depot.clone(),
            unfinished: self.unfinished.clone(),
            environment: self.environment.clone(),
            heartbeat: self.heartbeat,
            checked: entrant.backend.checks() && greeting.features & CRC32C != 0,
        }
    }

    fn connection(&self, entrant: &Entrant, site: Site, opened: Opened, path: Path) -> Result<Connection> {
        let opened = opened.wrapped(|link| Staging::over(link, site.pool));
        if let Some(control) = site.control.filter(|_| !entrant.backend.carries_control()) {
            let (link, inbox) = (opened.link().clone(), site.inbox.clone());
            let (environment, heartbeat) = (self.environment.clone(), self.heartbeat);
            self.environment.spawn(Box::pin(async move {
                let (parting, ended) = (inbox.until_parting(), inbox.until_ended());
                if let Some(why) = control.attend(heartbeat, &*environment, parting, ended).await {
                    link.end(why);
                }
            }));
        }
        Connection::new(Parts {
            opened,
            inbox: site.inbox,
            regions: site.regions,
            driver: self.driver.clone(),
            pools: self.pools.clone(),
            peer: site.peer,
            path,
            wait: self.wait,
            linger: self.linger,
        })
    }
}

/// Sends an answer, for which the other end makes room until `deadline`, a time of `environment`'s clock.
async fn tell(
    environment: &dyn Environment,
    deadline: Duration,
    answer: impl Future<Output = Result<()>>,
) -> Result<()> {
    let late = || Err(Error::new(ErrorKind::TimedOut, "the other end made no room for an answer in time"));
    within(environment, deadline, answer).await.unwrap_or_else(late)
}

/// A peer that has greeted, and what it may propose.
struct Greeted {
    control: Control,
    greeting: Greeting,
    over_tls: bool,
    entrants: Vec<Entrant>,
    refused: Vec<Candidate>,
}

/// `over_tls`: the door's stream is, and whatever carries control took it over.
fn path(
    address: String,
    entrant: &Entrant,
    site: &Site,
    (over_tls, streams): (bool, u8),
    candidates: Vec<Candidate>,
) -> Path {
    let encrypted = over_tls && entrant.backend.takes_stream();
    let (chosen, checked, streams) = (entrant.backend.name(), site.checked, streams.into());
    let Site { local, peer, .. } = *site;
    Path { address, chosen, checked, encrypted, streams, candidates, local, peer }
}
