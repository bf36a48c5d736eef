//! One repeat of one case: starts the serving side, measures ours, then the ceilings.

use std::net::ToSocketAddrs;
use std::time::Duration;

use bytes::Bytes;
use towline::{Address, Endpoint};

use super::case::{Case, Pattern};
use super::load::Load;
use super::patterns::{self, Bench};
use super::plan::Pace;
use super::sample::Sample;
use crate::ceiling::Ceiling;
use crate::ceiling::memcpy::Landing;
use crate::ceiling::socket::{self, Course};
use crate::failure::Failure;
use crate::payload::Payload;
use crate::peer::{Peer, Request, Serving};
use crate::progress::Progress;
use crate::trust::Trust;

/// What a repeat may take beyond its measurements before it counts as hung.
const GRACE: Duration = Duration::from_secs(60);

/// What is kept from repeat to repeat: warm memory, and where the other half is.
#[derive(Debug)]
pub(crate) struct Drive<'a> {
    pub(crate) pace: Pace,
    pub(crate) trust: &'a Trust,
    /// The serving side that somebody else started.
    pub(crate) elsewhere: Option<&'a Address>,
    pub(crate) progress: &'a mut Progress,
    payload: Payload,
    landing: Landing,
}

/// What one repeat gave.
#[derive(Debug)]
pub(crate) struct Repeat {
    pub(crate) path: String,
    pub(crate) sample: Sample,
    pub(crate) ceilings: Vec<Ceiling>,
}

impl<'a> Drive<'a> {
    pub(crate) fn new(
        pace: Pace,
        trust: &'a Trust,
        elsewhere: Option<&'a Address>,
        progress: &'a mut Progress,
    ) -> Self {
        Self { pace, trust, elsewhere, progress, payload: Payload::default(), landing: Landing::default() }
    }

    /// One repeat, within a time that leaves room for nothing but a hang.
    pub(crate) async fn repeat(&mut self, case: &Case) -> Result<Repeat, Failure> {
        let address = self.elsewhere.map(|address| address_for(case, address)).transpose()?;
        let mut serving = Serving::start(case, self.trust, address.as_ref()).await?;
        let limit = self.pace.warmup + self.pace.duration + 5 * self.pace.ceiling() + GRACE;
        match tokio::time::timeout(limit, self.measure(case, &serving)).await {
            Ok(outcome) => outcome.map_err(|failure| serving.explain(failure)),
            Err(_) => {
                let hung = Failure::run(format!("no end within {:.0} s: given up", limit.as_secs_f64()));
                Err(serving.explain(hung))
            }
        }
    }

    async fn measure(&mut self, case: &Case, serving: &Serving) -> Result<Repeat, Failure> {
        let memory = self.payload.prepare(case.layout());
        let load = Load::new(&memory, case.layout(), case.frames);
        let endpoint = self.trust.endpoint(case.wait)?;
        let peer = self.connect(&endpoint, serving.address()).await?;
        let (address, clock) = (serving.address(), serving.near_clock());
        let bench = Bench { case, endpoint: &endpoint, address, peer: &peer, load: &load, clock };
        let sample = patterns::measure(bench, self.pace).await?;
        let ceilings = self.ceilings(case, &peer, address, &memory).await?;
        let path = peer.connection.path().chosen().to_owned();
        peer.close().await?;
        Ok(Repeat { path, sample, ceilings })
    }

    async fn connect(&self, endpoint: &Endpoint, address: &Address) -> Result<Peer, Failure> {
        Ok(Peer::new(endpoint.connect(address).await?))
    }

    /// The ceilings that mean something beside `case`.
    async fn ceilings(
        &mut self,
        case: &Case,
        peer: &Peer,
        address: &Address,
        memory: &Bytes,
    ) -> Result<Vec<Ceiling>, Failure> {
        let mut ceilings = Vec::new();
        if matches!(case.pattern, Pattern::Bandwidth | Pattern::Get | Pattern::Put) {
            ceilings.push(self.memcpy(case, memory).await?);
        }
        let path = peer.connection.path();
        if path.chosen() == "mem" || matches!(case.pattern, Pattern::Connect | Pattern::Bidirectional) {
            return Ok(ceilings);
        }
        let over_tls = (path.encryption() == "tls").then_some(true);
        for tls in [Some(false), over_tls].into_iter().flatten() {
            match self.socket(case, tls, peer, address, memory).await {
                Ok(ceiling) => ceilings.push(ceiling),
                // A firewall may let our port through and no other.
                Err(failure) if self.elsewhere.is_some() => {
                    self.progress.warn(&format!("{case}: without the ceiling of a bare socket: {failure}"));
                }
                Err(failure) => return Err(failure.during("the ceiling of a bare socket")),
            }
        }
        Ok(ceilings)
    }

    async fn memcpy(&mut self, case: &Case, memory: &Bytes) -> Result<Ceiling, Failure> {
        let (mut landing, memory) = (std::mem::take(&mut self.landing), memory.clone());
        let (layout, duration) = (case.layout(), self.pace.ceiling());
        let (landing, ceiling) = blocking(move || {
            let ceiling = landing.measure(layout, &memory, duration);
            (landing, ceiling)
        })
        .await?;
        self.landing = landing;
        Ok(ceiling)
    }

    /// The faster of a blocking and a spinning one.
    async fn socket(
        &self,
        case: &Case,
        tls: bool,
        peer: &Peer,
        address: &Address,
        memory: &Bytes,
    ) -> Result<Ceiling, Failure> {
        let mut best: Option<Ceiling> = None;
        for spin in [false, true] {
            let course = Course {
                layout: case.layout(),
                ping_pong: case.pattern == Pattern::Latency,
                spin,
                tls,
                duration_ms: self.pace.ceiling().as_millis().max(1) as u64,
            };
            let (port, key, certificate) = peer.socket(&Request::Socket { course }).await?;
            let (host, memory) = (address.host().to_owned(), memory.clone());
            let near = move || {
                let nowhere = || std::io::Error::other("the host has no address");
                let address = (host.as_str(), port).to_socket_addrs()?.next().ok_or_else(nowhere)?;
                socket::near(address, key, course, certificate.as_deref(), &memory)
            };
            let ceiling = blocking(near).await?.map_err(|error| Failure::run(error.to_string()))?;
            best = Some(best.map_or(ceiling, |best| best.best(ceiling)));
        }
        best.ok_or_else(|| Failure::run("not measured"))
    }
}

/// Runs `work` on a thread of its own, so that an interruption is noticed meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::run(format!("a ceiling: {error}")))
}

/// The address elsewhere, narrowed to the case's transport, with its options.
fn address_for(case: &Case, elsewhere: &Address) -> Result<Address, Failure> {
    let place = elsewhere.to_string();
    let place = place.split_once("://").map_or(place.as_str(), |(_, place)| place);
    let (place, query) = place.split_once('?').unwrap_or((place, ""));
    let mut text = format!("{}://{place}{}", case.transport.scheme(), case.transport.query());
    if !query.is_empty() {
        text.push(if case.transport.query().is_empty() { '?' } else { '&' });
        text.push_str(query);
    }
    text.parse().map_err(|error: towline::Error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::case;

    #[test]
    fn an_address_elsewhere_takes_the_transport_and_its_options() {
        let mut tcp = case("tcp", Pattern::Latency, 8);
        let narrowed =
            |case: &Case, text: &str| address_for(case, &text.parse().unwrap()).unwrap().to_string();
        assert_eq!(narrowed(&tcp, "towline://[::1]:7"), "tcp://[::1]:7");
        tcp.transport.options.insert("streams".into(), "4".into());
        assert_eq!(
            narrowed(&tcp, "tcp://host:7?integrity=crc32c"),
            "tcp://host:7?streams=4&integrity=crc32c"
        );
        tcp.transport.options.insert("tls".into(), "on".into());
        assert_eq!(narrowed(&tcp, "towlines://host:7"), "tls://host:7?streams=4");
    }
}
