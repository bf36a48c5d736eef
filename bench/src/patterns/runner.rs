//! Runs one repeat of one case: starts the serving side, then measures ours and the ceilings.

use std::time::Duration;

use towline::{Address, Buffer, Endpoint};

use super::PatternContext;
use super::group::WorkerGroup;
use super::tasks;
use crate::case::Pace;
use crate::case::{Case, Pattern, Wait};
use crate::ceiling::memcpy::Destination;
use crate::ceiling::socket::SocketTest;
use crate::ceiling::{blocking, eventfd};
use crate::data::messages::MessageSource;
use crate::data::payload::Payload;
use crate::failure::Failure;
use crate::patterns;
use crate::peer::{Peer, Serving};
use crate::results::ceiling::Ceiling;
use crate::results::sample::Repeat;
use crate::security::trust::Trust;
use crate::terminal::progress::Progress;

/// How long a repeat may take beyond its measurements before it fails as hung.
const GRACE: Duration = Duration::from_secs(60);

/// The same for each connection among many workers, which all connect at once and share the cores.
const FLOW_GRACE: Duration = Duration::from_millis(30);

/// Runs the repeats of cases. It keeps the warm memory and the address of the other end between repeats.
#[derive(Debug)]
pub(crate) struct CaseRunner<'a> {
    pub(crate) pace: Pace,
    pub(crate) trust: &'a Trust,
    /// A serving side that this process did not start.
    pub(crate) elsewhere: Option<&'a Address>,
    pub(crate) progress: &'a mut Progress,
    payload: Payload,
    destination: Destination,
}

impl<'a> CaseRunner<'a> {
    pub(crate) fn new(
        pace: Pace,
        trust: &'a Trust,
        elsewhere: Option<&'a Address>,
        progress: &'a mut Progress,
    ) -> Self {
        Self {
            pace,
            trust,
            elsewhere,
            progress,
            payload: Payload::default(),
            destination: Destination::default(),
        }
    }

    /// Runs one repeat, within a limit that only a hang exceeds.
    pub(crate) async fn repeat(&mut self, case: &Case) -> Result<Repeat, Failure> {
        let address = self.elsewhere.map(|address| address_for(case, address)).transpose()?;
        // A case that falls behind its schedule gets the duration twice.
        let turns = if case.rate.is_some() { 2 } else { 1 };
        let flows = case.pattern.flows(case.workers) as u32;
        let limit = turns * (self.pace.warmup + self.pace.duration)
            + 5 * self.pace.ceiling()
            + GRACE
            + flows * FLOW_GRACE;
        let hung = |_| Failure::run(format!("slow: no end within {:.0} s", limit.as_secs_f64()));
        if case.pattern == Pattern::Alltoall {
            return tokio::time::timeout(limit, self.group(case, address.as_ref()))
                .await
                .map_err(hung)
                .flatten();
        }
        if case.pattern.is_of_tasks() {
            let measured = tasks::repeat(case, self.pace, self.trust, &mut self.destination);
            return tokio::time::timeout(limit, measured).await.map_err(hung).flatten();
        }
        let mut serving = Serving::start(case, self.trust, address.as_ref()).await?;
        let outcome = tokio::time::timeout(limit, self.measure(case, &serving)).await;
        outcome.map_err(hung).flatten().map_err(|failure| serving.explain(failure))
    }

    async fn measure(&mut self, case: &Case, serving: &Serving) -> Result<Repeat, Failure> {
        if case.pattern.takes_workers() {
            return self.group(case, Some(serving.address())).await;
        }
        let memory = self.payload.prepare(case.layout(), case.places.from)?;
        let load = MessageSource::new(memory.clone(), case.spec());
        let endpoint = self.trust.endpoint(case.wait)?;
        let peer = self.connect(&endpoint, serving.address()).await?;
        let (address, clock) = (serving.address(), serving.near_clock());
        let bench = PatternContext { case, endpoint: &endpoint, address, peer: &peer, load: &load, clock };
        let sample = patterns::measure(bench, self.pace).await?;
        let ceilings = self.ceilings(case, &peer, address, &memory).await?;
        let path = peer.connection.path().chosen().to_owned();
        peer.close().await?;
        Ok(Repeat { path, sample, ceilings })
    }

    /// Runs one repeat of a case of many workers, with the peer at `address`, if any.
    async fn group(&mut self, case: &Case, address: Option<&Address>) -> Result<Repeat, Failure> {
        let mut group = WorkerGroup::gather(case, self.trust, address).await?;
        let sample = group.measure(case, self.pace).await?;
        let mut ceilings = Vec::new();
        if case.pattern == Pattern::Incast && !matches!(group.path.as_str(), "mem" | "shm") {
            let outcome = group.sockets(|spin| self.course(case, spin, false)).await;
            ceilings.extend(self.bare(case, outcome)?);
        }
        Ok(Repeat { path: group.path, sample, ceilings })
    }

    async fn connect(&self, endpoint: &Endpoint, address: &Address) -> Result<Peer, Failure> {
        Ok(Peer::new(endpoint.connect(address).await?))
    }

    /// Measures the ceilings that apply to `case`.
    async fn ceilings(
        &mut self,
        case: &Case,
        peer: &Peer,
        address: &Address,
        memory: &Buffer,
    ) -> Result<Vec<Ceiling>, Failure> {
        let mut ceilings = Vec::new();
        if matches!(case.pattern, Pattern::Bandwidth | Pattern::Get | Pattern::Put) {
            ceilings.push(self.memcpy(case, memory).await?);
        }
        let path = peer.connection.path();
        match path.chosen() {
            "mem" => return Ok(ceilings),
            "shm" => {
                // A spinning end needs no wake-up.
                if case.pattern == Pattern::Latency && case.wait != Wait::Spin {
                    ceilings.push(self.eventfd(case).await?);
                }
                return Ok(ceilings);
            }
            _ if matches!(case.pattern, Pattern::Connect | Pattern::Bidirectional) => return Ok(ceilings),
            _ => {}
        }
        let over_tls = (path.encryption() == "tls").then_some(true);
        for tls in [Some(false), over_tls].into_iter().flatten() {
            let outcome = self.sockets(case, tls, peer, address, memory).await;
            let Some([blocking, spinning]) = self.bare(case, outcome)? else { continue };
            ceilings.push(blocking.best(spinning));
            if case.wait == Wait::Sleep && !tls {
                // A sleeping socket costs a wake-up, as ours does with `--wait sleep`: both rows are useful.
                ceilings.push(Ceiling { kind: "blocking_socket", ..blocking });
            }
        }
        Ok(ceilings)
    }

    /// Returns what bare sockets measured. With `--connect` a failure is reported, and yields `None`.
    fn bare<T>(&mut self, case: &Case, outcome: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match outcome {
            Ok(measured) => Ok(Some(measured)),
            // A firewall may admit only the port of `--connect`.
            Err(failure) if self.elsewhere.is_some() => {
                self.progress.keep(&format!("{case}: without the ceiling of a bare socket: {failure}"));
                Ok(None)
            }
            Err(failure) => Err(failure.during("the ceiling of a bare socket")),
        }
    }

    /// Returns what both ends of a bare socket do beside `case`.
    fn course(&self, case: &Case, spin: bool, tls: bool) -> SocketTest {
        SocketTest {
            layout: case.layout(),
            ping_pong: case.pattern == Pattern::Latency,
            spin,
            tls,
            duration_ms: self.pace.ceiling().as_millis().max(1) as u64,
        }
    }

    async fn memcpy(&mut self, case: &Case, memory: &Buffer) -> Result<Ceiling, Failure> {
        let (mut destination, memory) = (std::mem::take(&mut self.destination), memory.clone());
        let (layout, duration) = (case.layout(), self.pace.ceiling());
        let (destination, ceiling) = blocking(move || {
            let ceiling = destination.measure(layout, memory.as_slice().unwrap_or_default(), duration);
            (destination, ceiling)
        })
        .await?;
        self.destination = destination;
        Ok(ceiling)
    }

    async fn eventfd(&self, case: &Case) -> Result<Ceiling, Failure> {
        let duration = self.pace.ceiling();
        let ceiling = blocking(move || eventfd::measure(duration)).await?;
        let ceiling = ceiling.map_err(|error| Failure::run(format!("the ceiling of eventfds: {error}")))?;
        Ok(if case.rate.is_some() { ceiling.there_and_back() } else { ceiling })
    }

    /// Measures a bare socket that blocks, and one that spins.
    async fn sockets(
        &self,
        case: &Case,
        tls: bool,
        peer: &Peer,
        address: &Address,
        memory: &Buffer,
    ) -> Result<[Ceiling; 2], Failure> {
        Ok([
            self.socket(case, (false, tls), peer, address, memory).await?,
            self.socket(case, (true, tls), peer, address, memory).await?,
        ])
    }

    async fn socket(
        &self,
        case: &Case,
        (spin, tls): (bool, bool),
        peer: &Peer,
        address: &Address,
        memory: &Buffer,
    ) -> Result<Ceiling, Failure> {
        let near = peer.open_socket(address.host(), self.course(case, spin, tls)).await?;
        let memory = memory.clone();
        let ceiling = blocking(move || near.measure(memory.as_slice().unwrap_or_default())).await?;
        let ceiling = ceiling.map_err(|error| Failure::run(error.to_string()))?;
        Ok(if case.rate.is_some() { ceiling.there_and_back() } else { ceiling })
    }
}

/// Returns the address of `--connect`, narrowed to the case's transport and with the options of both.
fn address_for(case: &Case, elsewhere: &Address) -> Result<Address, Failure> {
    let place = elsewhere.to_string();
    let place = place.split_once("://").map_or(place.as_str(), |(_, place)| place);
    let (place, _) = place.split_once('?').unwrap_or((place, ""));
    let text = format!("{}://{place}{}", case.transport.scheme(), case.transport.query());
    text.parse().map_err(|error: towline::Error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Transport;
    use crate::case::tests::case;

    #[test]
    fn an_address_elsewhere_takes_the_transport_and_its_options() {
        let mut tcp = case("tcp", Pattern::Latency, 8);
        let narrowed =
            |case: &Case, text: &str| address_for(case, &text.parse().unwrap()).unwrap().to_string();
        assert_eq!(narrowed(&tcp, "towline://[::1]:7"), "tcp://[::1]:7");
        tcp.transport = Transport::to(&"tcp://host:7?streams=4".parse().unwrap());
        assert_eq!(narrowed(&tcp, "tcp://host:7?streams=4"), "tcp://host:7?streams=4");
        tcp.transport = "tcp?tls=on".parse().unwrap();
        assert_eq!(narrowed(&tcp, "towlines://host:7"), "tls://host:7");
    }
}
