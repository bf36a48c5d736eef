//! Resolves a host to socket addresses.
//!
//! `getaddrinfo` cannot be cancelled. It runs in a thread of its own. Neither a caller whose time is up nor
//! the drop of an endpoint waits for that thread.

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use tokio::sync::{Semaphore, oneshot};

use crate::address::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::{Environment, within};
use crate::platform::process::PerProcess;

/// The most names that a process resolves at once. A thread that waits for a dead name server occupies one
/// place until the system gives up.
const LOOKUPS_MAX: usize = 32;
/// The most addresses that an error names.
const ADDRESSES_IN_ERROR_MAX: usize = 8;

/// Resolves the host of `address` to socket addresses, each once, in the system's order. A wildcard gives
/// `[::]` and then `0.0.0.0`. Takes until `deadline` at most.
///
/// # Errors
/// `Unavailable` for an unknown name or zone; `TimedOut`; `Invalid` for a link-local address without a zone.
pub(crate) async fn resolve(
    environment: &Arc<dyn Environment>,
    address: &Address,
    deadline: Duration,
) -> Result<Vec<SocketAddr>> {
    let port = address.port();
    if matches!(address.host(), "" | "*") {
        return Ok(vec![([0; 16], port).into(), ([0; 4], port).into()]);
    }
    if let Some(literal) = literal(address.host(), port) {
        return literal.and_then(|at| check_zone(at).map(|()| vec![at]));
    }
    let limit = deadline.saturating_sub(environment.now());
    let (done, found) = oneshot::channel();
    let (timer, host) = (environment.clone(), address.host().to_owned());
    // The timer is the driver's, so that any executor of the caller works.
    environment.spawn(Box::pin(async move {
        let found = within(&*timer, deadline, look_up(host, port)).await;
        // The caller may have dropped its future.
        let _ = done.send(found.unwrap_or_else(|| Err(timed_out(limit))));
    }));
    let ended = |_| Error::new(ErrorKind::Closed, "the endpoint's driver ended");
    found.await.map_err(ended)?
}

/// Returns whether the host of `address` is an IP address, which needs no name server.
pub(crate) fn is_literal(address: &Address) -> bool {
    literal(address.host(), address.port()).is_some()
}

/// Parses a host that is an IP address; `None` for a name.
fn literal(host: &str, port: u16) -> Option<Result<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(Ok((ip, port).into()));
    }
    let (ip, zone) = host.split_once('%')?;
    let ip = ip.parse::<Ipv6Addr>().ok()?;
    Some(scope(zone).map(|scope| SocketAddrV6::new(ip, port, 0, scope).into()))
}

/// Returns the index of an interface, by its name or as a number.
fn scope(zone: &str) -> Result<u32> {
    if let Ok(index) = zone.parse() {
        return Ok(index);
    }
    let unknown = |error: rustix::io::Errno| {
        let why = format!("no interface here is named {zone:?}: `ip link` lists them");
        Error::new(ErrorKind::Unavailable, why).caused_by(io::Error::from(error))
    };
    // Any socket can query the index.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|error| Error::io(error.into()))?;
    netdevice::name_to_index(socket, zone).map_err(unknown)
}

/// Checks that a link-local address has a zone. Without one the kernel would report an invalid argument.
pub(crate) fn check_zone(at: SocketAddr) -> Result<()> {
    let SocketAddr::V6(v6) = at else { return Ok(()) };
    if !v6.ip().is_unicast_link_local() || v6.scope_id() != 0 {
        return Ok(());
    }
    let (ip, port) = (v6.ip(), v6.port());
    let why = format!(
        "a link-local IPv6 address means nothing without its interface: write it as a zone, as in [{ip}%eth0]:{port} (`ip link` lists \
         the interfaces)"
    );
    Err(Error::new(ErrorKind::Invalid, why))
}

async fn look_up(host: String, port: u16) -> Result<Vec<SocketAddr>> {
    static LOOKUPS: PerProcess<Arc<Semaphore>> = PerProcess::new(|| Arc::new(Semaphore::new(LOOKUPS_MAX)));
    let place = LOOKUPS.get().clone().acquire_owned().await;
    let (found_sender, found) = oneshot::channel();
    let look_up = move || {
        let found = (&*host, port).to_socket_addrs().map(Vec::from_iter);
        drop(place);
        // The caller may have dropped its future.
        let _ = found_sender.send(found);
    };
    std::thread::Builder::new().name("towline-resolver".into()).spawn(look_up).map_err(Error::io)?;
    let found = found.await.map_err(|_| Error::new(ErrorKind::Io, "the resolver of names panicked"))?;
    let mut found = found.map_err(unknown)?;
    let mut known = Vec::with_capacity(found.len());
    found.retain(|at| {
        !known.contains(at) && {
            known.push(*at);
            true
        }
    });
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Unavailable, "the host's name has no address"));
    }
    Ok(found)
}

fn unknown(error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        // The name is not the cause: the process has no descriptors left, for example.
        return Error::io(error);
    }
    let why = "the host's name does not resolve: check it, or write the host's address";
    Error::new(ErrorKind::Unavailable, why).caused_by(error)
}

fn timed_out(limit: Duration) -> Error {
    let why = format!(
        "the host's name was not resolved within {} s: check the name servers (/etc/resolv.conf), or write the host's address",
        seconds(limit)
    );
    Error::new(ErrorKind::TimedOut, why)
}

/// Rounds to a tenth of a second.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// The error of each address of a host, in the order of the attempts.
#[derive(Debug, Default)]
pub(crate) struct AttemptErrors(Vec<(SocketAddr, Error)>);

impl AttemptErrors {
    pub(crate) fn push(&mut self, at: SocketAddr, error: Error) {
        self.0.push((at, error));
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = ErrorKind> {
        self.0.iter().map(|(_, error)| error.kind())
    }

    /// Combines them into one error of `kind`. An address is named unless `address` is that address.
    pub(crate) fn into_error(mut self, kind: ErrorKind, address: &Address) -> Error {
        match self.0.len() {
            1 => {
                let (at, error) = self.0.remove(0);
                if is_literal(address) { error } else { error.at(at) }
            }
            count => {
                let mut detail = format!("none of {count} addresses served: ");
                for (i, (at, error)) in self.0.iter().take(ADDRESSES_IN_ERROR_MAX).enumerate() {
                    let between = if i == 0 { "" } else { "; " };
                    // Writing to a string does not fail.
                    let _ = write!(detail, "{between}{at}: {error}");
                }
                if count > ADDRESSES_IN_ERROR_MAX {
                    let _ = write!(detail, "; and {} more", count - ADDRESSES_IN_ERROR_MAX);
                }
                Error::new(kind, detail)
            }
        }
    }
}
