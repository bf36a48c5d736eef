//! Addresses of workers: what a worker offers, what the scheduler publishes, and what peers connect to.
//!
//! A worker that listens at every interface does not know its address. The scheduler observes its IP address
//! and publishes that. Where the scheduler sees the worker on its own host, peers substitute the host at
//! which they reach the scheduler.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use towline::{Address, Connection, Endpoint, Identity, Scheme};

use crate::background::{run_in_environment, within};
use crate::error::{Error, ErrorKind, Failure, Result};

/// Time limit for resolving a host name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a worker runs, relative to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locality {
    /// The scheduler's own process.
    SameProcess,
    /// Another process that shares the scheduler's loopback interface.
    SameHost,
    Remote(IpAddr),
}

/// Which processes can connect to an address, judged by its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Process,
    Host,
    Anywhere,
}

impl Locality {
    pub(crate) fn of(connection: &Connection, own: &Identity) -> Self {
        match connection.peer_address() {
            _ if connection.peer().same_process(own) => Self::SameProcess,
            Some(from) if !is_local_ip(from.ip()) => Self::Remote(from.ip()),
            _ => Self::SameHost,
        }
    }

    /// Returns whether an end at this locality can connect to an address that the scheduler can reach.
    fn reaches(self, reach: Reach) -> bool {
        match reach {
            Reach::Process => self == Self::SameProcess,
            Reach::Host => !matches!(self, Self::Remote(_)),
            Reach::Anywhere => true,
        }
    }
}

impl Reach {
    fn of(address: &Address) -> Self {
        match address.scheme() {
            Scheme::Mem => Self::Process,
            Scheme::Shm => Self::Host,
            _ if is_loopback(address.host()) => Self::Host,
            _ => Self::Anywhere,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "its own process",
            Self::Host => "its own host",
            Self::Anywhere => "every host",
        }
    }
}

/// Returns the address that a worker offers. The worker listens at `bound` and joins the scheduler at
/// `scheduler`.
///
/// # Errors
/// `Invalid` if the advertised address names no listener, or if it lacks TLS and the scheduler's address
/// requires it.
pub(crate) async fn offer_address(
    endpoint: &Endpoint,
    bound: &Address,
    advertised: Option<&Address>,
    scheduler: &Address,
) -> Result<Address> {
    let address = match advertised {
        Some(address) if address.scheme() == Scheme::Mem || address.is_wildcard() => {
            let why = format!(
                "{address} cannot be advertised: write the host and port where others find this worker"
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Some(address) if address.port() == 0 => at_host(address, address.host(), bound.port())?,
        Some(address) => address.clone(),
        None => bound.clone(),
    };
    check_encrypted(&address, scheduler)?;
    if Reach::of(&address) == Reach::Anywhere
        && resolved(endpoint, address.host()).await.iter().any(IpAddr::is_loopback)
        && !is_same_host(scheduler)
    {
        let why = format!("{address} names the loopback interface here, which only its own host reaches");
        return Err(unreachable(why));
    }
    // UCX settings name this host's devices; other hosts have their own.
    let is_setting = |key: &str| scheduler.settings().any(|(setting, _)| setting == key);
    let mut asked = without_options(scheduler, scheduler.host(), scheduler.port())?;
    for (key, value) in scheduler.options().filter(|(key, _)| !is_setting(key)) {
        asked = asked.with_option(key, value)?;
    }
    Ok(address.with_options_of(&asked)?)
}

/// Returns the address that the scheduler publishes for a worker at `locality` that offers `address`.
///
/// # Errors
/// `Invalid` if no peer could connect to it.
pub(crate) fn publish_address(address: &Address, locality: Locality, scheduler: &Address) -> Result<Address> {
    check_encrypted(address, scheduler)?;
    let reach = Reach::of(address);
    if !locality.reaches(reach) {
        return Err(unreachable(format!(
            "the worker listens at {address}, which only {} reaches",
            reach.as_str()
        )));
    }
    match locality {
        Locality::Remote(ip) if address.is_wildcard() => {
            let is_of_one_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let is_of_other_family = address.host() == "0.0.0.0" && ip.is_ipv6();
            if is_of_one_link || is_of_other_family {
                let why = format!(
                    "the worker listens at {address} and is seen at {ip}, where others may not find it"
                );
                return Err(unreachable(why));
            }
            at_host(address, &ip.to_string(), address.port())
        }
        // The worker runs on the scheduler's host, whose name differs between peers.
        _ => Ok(address.clone()),
    }
}

/// Refuses a worker if it and a present worker could not connect to each other.
pub(crate) fn check_pair(new: (&Address, Locality), there: (&Address, Locality)) -> Result<(), Failure> {
    for ((address, _), (_, other)) in [(new, there), (there, new)] {
        let reach = Reach::of(address);
        // The scheduler accepted a process-local or host-local address because it shares that process or
        // host.
        if !other.reaches(reach) {
            let why = format!(
                "a worker listens at {address}, which only {} reaches, and another is elsewhere",
                reach.as_str()
            );
            return Err(unreachable(why).failure().clone());
        }
    }
    Ok(())
}

/// Returns the address to connect to for a worker published at `address`. This end reaches the scheduler at
/// `scheduler`.
///
/// # Errors
/// `Invalid` if this end cannot reach the address, or if it lacks TLS and the scheduler's address requires
/// it.
pub(crate) async fn connect_address(
    endpoint: &Endpoint,
    address: &Address,
    scheduler: &Address,
) -> Result<Address> {
    check_encrypted(address, scheduler)?;
    if Reach::of(address) == Reach::Host && scheduler.scheme() != Scheme::Mem {
        let scheduler = resolved(endpoint, scheduler.host()).await;
        if !scheduler.iter().any(|ip| is_local_ip(ip.to_canonical())) {
            return Err(unreachable(format!(
                "the worker listens at {address}, which only its own host reaches"
            )));
        }
    }
    address.with_options_of(scheduler).map_err(Into::into)
}

/// Replaces a wildcard host in `text` by the scheduler's host, as seen from this end.
pub(crate) fn resolve_wildcard(text: &str, scheduler: &Address) -> Result<Address> {
    let address: Address = text.parse()?;
    if !address.is_wildcard() {
        return Ok(address);
    }
    let loopback = Ipv4Addr::LOCALHOST.to_string();
    at_host(&address, if is_same_host(scheduler) { &loopback } else { scheduler.host() }, address.port())
}

fn unreachable(why: String) -> Error {
    let remedy = "have it listen at an address that others reach, or advertise one";
    Error::new(ErrorKind::Invalid, format!("{why}: {remedy}"))
}

/// Where the scheduler's address requires TLS, a worker's address must use TLS or stay within the host.
fn check_encrypted(address: &Address, scheduler: &Address) -> Result<()> {
    let is_local = matches!(address.scheme(), Scheme::Mem | Scheme::Shm);
    if !scheduler.scheme().is_encrypted() || address.scheme().is_encrypted() || is_local {
        return Ok(());
    }
    let (theirs, ours) = (scheduler.scheme(), address.scheme());
    let why = format!(
        "the scheduler's address asks for TLS ({theirs}), and that of a worker, {address}, for none: write {theirs}:// in place of {ours}://"
    );
    Err(Error::new(ErrorKind::Invalid, why))
}

/// Returns `address` with another host and port, and with its options.
fn at_host(address: &Address, host: &str, port: u16) -> Result<Address> {
    let mut at = without_options(address, host, port)?;
    for (key, value) in address.options() {
        at = at.with_option(key, value)?;
    }
    Ok(at)
}

fn without_options(address: &Address, host: &str, port: u16) -> Result<Address> {
    match address.name() {
        Some(name) => Ok(Address::mem(name)?),
        None => Ok(Address::new(address.scheme(), host, port)?),
    }
}

/// Returns whether this end reaches the scheduler without leaving the host.
pub(crate) fn is_same_host(scheduler: &Address) -> bool {
    scheduler.scheme() == Scheme::Mem || is_loopback(scheduler.host())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Returns whether an IP address belongs to this host and network namespace: only such an address can be
/// bound.
fn is_local_ip(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Resolves a host. Returns nothing for a wildcard or an unknown name.
async fn resolved(endpoint: &Endpoint, host: &str) -> Vec<IpAddr> {
    if matches!(host, "" | "*") {
        return Vec::new();
    }
    let host = host.to_owned();
    // Runs in the endpoint's environment, since the caller may have no runtime.
    let looked_up = run_in_environment(endpoint, async move {
        let found = tokio::net::lookup_host((host, 0)).await;
        found.map_or_else(|_| Vec::new(), |found| found.map(|at| at.ip()).collect())
    });
    within(endpoint, RESOLVE_TIMEOUT, looked_up).await.flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn at(ip: &str) -> Locality {
        Locality::Remote(ip.parse().unwrap())
    }

    #[test]
    fn wildcard_address_is_published_with_the_observed_ip() {
        let scheduler = address("tcp://*:7100");
        for (offered, locality, expected) in [
            ("tcp://*:4000", at("10.0.0.7"), "tcp://10.0.0.7:4000"),
            ("tcp://0.0.0.0:4000?streams=2", at("10.0.0.7"), "tcp://10.0.0.7:4000?streams=2"),
            ("towline://[::]:4000", at("fd00::7"), "towline://[fd00::7]:4000"),
            ("tcp://*:4000", Locality::SameHost, "tcp://*:4000"),
            ("tcp://10.0.0.9:4000", at("10.0.0.7"), "tcp://10.0.0.9:4000"),
            ("tcp://127.0.0.1:4000", Locality::SameHost, "tcp://127.0.0.1:4000"),
            ("mem://x", Locality::SameProcess, "mem://x"),
        ] {
            assert_eq!(
                publish_address(&address(offered), locality, &scheduler).unwrap().to_string(),
                expected
            );
        }
        for (published, scheduler, expected) in [
            ("tcp://*:4000", "tcp://10.0.0.1:7100", "tcp://10.0.0.1:4000"),
            ("tcp://[::]:4000?streams=2", "towline://head.example:7100", "tcp://head.example:4000?streams=2"),
            ("tcp://0.0.0.0:4000", "tcp://[::1]:7100", "tcp://127.0.0.1:4000"),
            ("tcp://*:4000", "mem://scheduler", "tcp://127.0.0.1:4000"),
            ("tcp://10.0.0.9:4000", "tcp://10.0.0.1:7100", "tcp://10.0.0.9:4000"),
        ] {
            assert_eq!(resolve_wildcard(published, &address(scheduler)).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn unreachable_worker_address_is_refused() {
        let scheduler = address("tcp://*:7100");
        for (offered, locality) in [
            ("tcp://127.0.0.1:4000", at("10.0.0.7")),
            ("towline://localhost:4000", at("10.0.0.7")),
            ("tcp://[::1]:4000", at("fd00::7")),
            ("shm://10.0.0.7:4000", at("10.0.0.7")),
            ("mem://x", Locality::SameHost),
            ("tcp://*:4000", at("fe80::1")),
            ("tcp://0.0.0.0:4000", at("fd00::7")),
        ] {
            let error = publish_address(&address(offered), locality, &scheduler).unwrap_err();
            assert!(error.to_string().contains("advertise"), "{offered}: {error}");
        }
        let near = (&address("tcp://127.0.0.1:4000"), Locality::SameHost);
        let far = (&address("tcp://10.0.0.7:4000"), at("10.0.0.7"));
        for (new, there) in [(near, far), (far, near)] {
            let refusal = check_pair(new, there).unwrap_err();
            assert!(refusal.detail.contains("127.0.0.1:4000"), "{}", refusal.detail);
        }
        check_pair(near, near).unwrap();
        check_pair(far, (&address("tcp://*:4000"), Locality::SameHost)).unwrap();
        check_pair((&address("mem://x"), Locality::SameProcess), near).unwrap_err();
    }

    #[tokio::test]
    async fn advertised_address_is_offered() {
        let endpoint = Endpoint::new().unwrap();
        let (bound, scheduler) = (address("tcp://*:4000"), address("tcp://10.0.0.1:7100"));
        let offer = async |advertised: &str| {
            offer_address(&endpoint, &bound, Some(&address(advertised)), &scheduler).await
        };
        assert_eq!(offer("tcp://192.0.2.7:0").await.unwrap().to_string(), "tcp://192.0.2.7:4000");
        assert_eq!(offer("tls://192.0.2.7:5000").await.unwrap().to_string(), "tls://192.0.2.7:5000");
        for refused in ["tcp://*:0", "tcp://0.0.0.0:5000", "mem://x"] {
            assert!(offer(refused).await.unwrap_err().detail().contains("cannot be advertised"), "{refused}");
        }
    }

    #[tokio::test]
    async fn scheduler_address_options_apply_to_peer_connections() {
        let endpoint = Endpoint::new().unwrap();
        let scheduler = address("tcp://127.0.0.1:7100?integrity=crc32c&streams=4");
        for (published, expected) in [
            ("tcp://127.0.0.1:4000", "tcp://127.0.0.1:4000?integrity=crc32c&streams=4"),
            ("tcp://127.0.0.1:4000?streams=2", "tcp://127.0.0.1:4000?streams=4&integrity=crc32c"),
            ("shm://127.0.0.1:4000", "shm://127.0.0.1:4000?integrity=crc32c"),
            // `mem` takes no options.
            ("mem://x", "mem://x"),
        ] {
            assert_eq!(
                connect_address(&endpoint, &address(published), &scheduler).await.unwrap().to_string(),
                expected
            );
            let offer = offer_address(&endpoint, &address(published), None, &scheduler).await.unwrap();
            assert_eq!(offer.to_string(), expected, "and those of ends that know of none");
        }
        // UCX settings are specific to each host.
        let scheduler = address("ucx://127.0.0.1:7100?NET_DEVICES=lo&versions=any");
        let published = address("ucx://127.0.0.1:4000?TLS=tcp");
        let offer = offer_address(&endpoint, &published, None, &scheduler).await.unwrap();
        assert_eq!(offer.to_string(), "ucx://127.0.0.1:4000?TLS=tcp&versions=any");
        let reached = connect_address(&endpoint, &offer, &scheduler).await.unwrap();
        assert_eq!(reached.option("NET_DEVICES"), Some("lo"));
    }

    #[tokio::test]
    async fn tls_scheduler_requires_tls_workers() {
        let endpoint = Endpoint::new().unwrap();
        for scheduler in ["tls://127.0.0.1:7100", "towlines://127.0.0.1:7100"].map(address) {
            for plain in
                ["tcp://127.0.0.1:4000", "towline://127.0.0.1:4000", "ucx://127.0.0.1:4000"].map(address)
            {
                let refusals = [
                    offer_address(&endpoint, &plain, None, &scheduler).await,
                    publish_address(&plain, Locality::SameHost, &scheduler),
                    connect_address(&endpoint, &plain, &scheduler).await,
                ];
                for refusal in refusals {
                    assert!(refusal.unwrap_err().detail().contains("TLS"), "{plain}");
                }
            }
            for fine in
                ["tls://127.0.0.1:4000", "towlines://127.0.0.1:4000", "shm://127.0.0.1:4000", "mem://x"]
            {
                connect_address(&endpoint, &address(fine), &scheduler).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn loopback_worker_of_another_host_is_unreachable() {
        let endpoint = Endpoint::new().unwrap();
        let published = address("tcp://127.0.0.1:4000");
        // An address reserved for documentation.
        let error =
            connect_address(&endpoint, &published, &address("tcp://192.0.2.1:7100")).await.unwrap_err();
        assert!(error.detail().contains("only its own host reaches"), "{error}");
        connect_address(&endpoint, &published, &address("tcp://localhost:7100")).await.unwrap();
        connect_address(&endpoint, &published, &address("mem://scheduler")).await.unwrap();
    }
}
