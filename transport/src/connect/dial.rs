//! Dials a listener: tries its addresses and keeps the first stream that connects.
//!
//! Attempts are staggered and families alternate, as in RFC 8305. An address that drops packets delays the
//! next one by 250 ms, not by the whole time limit.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::duplex;
use tokio::net::TcpStream;

use super::names;
use crate::address::Address;
use crate::address::resolve::{AttemptErrors, resolve, seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::Control;
use crate::platform::environment::{Environment, Task, within};

/// The delay between the beginnings of two attempts: RFC 8305, section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The most addresses of a name that are tried. A name server may return thousands.
const ADDRESSES_MAX: usize = 64;

/// Connects a stream to the listener at `address` within `limit`, including name resolution. Runs on the
/// driver.
pub(crate) async fn dial(
    environment: &Arc<dyn Environment>,
    address: &Address,
    limit: Duration,
) -> Result<Control> {
    let began = environment.now();
    let deadline = began + limit;
    if let Some(name) = address.name() {
        let (mine, theirs) = duplex(names::STREAM_LEN);
        let connected = within(&**environment, deadline, names::connect_stream(name, theirs)).await;
        return connected.unwrap_or_else(|| Err(timed_out(limit))).map(|()| mine.into());
    }
    if address.port() == 0 || address.is_wildcard() {
        let why = "it names no single listener: write the host and port that the listener printed";
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let addresses = resolve(environment, address, deadline).await?;
    let resolved = environment.now();
    let errors = match connect_first(&**environment, addresses, deadline).await {
        Ok(stream) => return Ok(stream.into()),
        Err(errors) => errors,
    };
    // An answer of a host counts before the absence of one.
    let answers = [ErrorKind::Refused, ErrorKind::TimedOut];
    let kind = answers.into_iter().find(|kind| errors.kinds().any(|of| of == *kind));
    let kind = kind.or_else(|| errors.kinds().next()).unwrap_or(ErrorKind::Unavailable);
    let resolving = resolved.saturating_sub(began);
    let error = errors.into_error(kind, address);
    if kind == ErrorKind::TimedOut && resolving > limit / 2 {
        return Err(error.at(format_args!(
            "resolving the name took {} of {} s",
            seconds(resolving),
            seconds(limit)
        )));
    }
    Err(error)
}

/// Connects a stream to a socket address.
///
/// # Errors
/// `Refused` without a listener at that address; `Unavailable` without a route, a local address or a free
/// local port.
pub(crate) async fn connect(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(at).await.map_err(|error| connect_error(at, error))?;
    // A TCP self-connection: the kernel chose the target port, which has no listener, as the local port.
    if stream.local_addr().is_ok_and(|from| from == at) {
        return Err(Error::io(io::ErrorKind::ConnectionRefused.into()));
    }
    // Without it small messages wait for TCP acknowledgements.
    stream.set_nodelay(true).map_err(Error::io)?;
    Ok(stream)
}

/// Returns the first stream that connects, or the error of each address.
async fn connect_first(
    environment: &dyn Environment,
    addresses: Vec<SocketAddr>,
    deadline: Duration,
) -> Result<TcpStream, AttemptErrors> {
    let mut waiting = alternating(addresses).into_iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut errors = AttemptErrors::default();
    let mut end = environment.sleep_until(deadline);
    let mut pause = None;
    poll_fn(|cx| {
        loop {
            let mut connected = None;
            running.retain_mut(|attempt| match attempt.connecting.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(stream)) => {
                    connected = Some(stream);
                    false
                }
                Poll::Ready(Err(error)) => {
                    errors.push(attempt.at, error);
                    // After a failure the next attempt begins at once.
                    pause = None;
                    false
                }
            });
            if let Some(stream) = connected {
                return Poll::Ready(Ok(stream));
            }
            if end.as_mut().poll(cx).is_ready() {
                for attempt in &running {
                    errors.push(attempt.at, timed_out(environment.now().saturating_sub(attempt.began)));
                }
                for at in waiting.by_ref() {
                    errors.push(at, Error::new(ErrorKind::TimedOut, "not tried: no time was left"));
                }
                return Poll::Ready(Err(std::mem::take(&mut errors)));
            }
            if pause.as_mut().is_some_and(|pause: &mut Task| pause.as_mut().poll(cx).is_pending()) {
                return Poll::Pending;
            }
            pause = None;
            match waiting.next() {
                Some(at) => {
                    let began = environment.now();
                    running.push(Attempt { at, began, connecting: Box::pin(connect(at)) });
                    pause = Some(environment.sleep_until(began + ATTEMPT_DELAY));
                }
                None if running.is_empty() => return Poll::Ready(Err(std::mem::take(&mut errors))),
                None => return Poll::Pending,
            }
        }
    })
    .await
}

struct Attempt {
    at: SocketAddr,
    began: Duration,
    connecting: Task<Result<TcpStream>>,
}

/// Alternates the address families and keeps the order within each: RFC 8305, section 4.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|at| at.is_ipv6() == v6_first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let pairs = std::iter::from_fn(|| match [one.next(), other.next()] {
        [None, None] => None,
        pair => Some(pair),
    });
    pairs.flatten().flatten().take(ADDRESSES_MAX).collect()
}

fn timed_out(limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, format!("no answer within {} s", seconds(limit)))
}

fn connect_error(at: SocketAddr, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput
        && let Err(error) = crate::address::resolve::check_zone(at)
    {
        return error;
    }
    if error.kind() != io::ErrorKind::AddrNotAvailable {
        return Error::io(error);
    }
    let why = if has_local_address(at) {
        "no local port is left for one more connection to that address: close some, or widen net.ipv4.ip_local_port_range"
    } else {
        "this host has no address of that family to connect from (IPv6 may be turned off: net.ipv6.conf.all.disable_ipv6)"
    };
    Error::new(ErrorKind::Unavailable, why).caused_by(error)
}

/// Returns whether this host has a local address to reach `at` from. Connecting a UDP socket sends nothing
/// and uses no TCP port.
fn has_local_address(at: SocketAddr) -> bool {
    let any = if at.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let connected = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| socket.connect(at));
    !connected.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_alternate_beginning_with_the_first() {
        let v4 = |last| SocketAddr::from(([10, 0, 0, last], 1));
        let v6 = |last| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], 1));
        let given = vec![v6(1), v6(2), v6(3), v4(1)];
        assert_eq!(alternating(given), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(alternating(vec![v4(1), v6(1), v4(2)]), [v4(1), v6(1), v4(2)]);
        assert_eq!(alternating((0..=255).map(v4).collect()).len(), ADDRESSES_MAX);
    }
}
