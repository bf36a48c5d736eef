//! A stream to a listener: whichever of its addresses takes the connection first.
//!
//! Attempts are staggered, and families alternate, as RFC 8305 has it: an address that swallows packets costs the next one a
//! quarter of a second, and not the whole time.

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
use crate::address::resolve::{Fates, resolve, seconds};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::Control;
use crate::platform::environment::{Environment, Task, within};

/// How long one attempt has before the next begins: RFC 8305, section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried. A name server may send thousands.
const ADDRESSES_MAX: usize = 64;

/// A stream to whoever listens at `address`, within `limit`, the resolving of its name included; runs on the driver.
pub(crate) async fn dial(
    environment: &Arc<dyn Environment>,
    address: &Address,
    limit: Duration,
) -> Result<Control> {
    let began = environment.now();
    let deadline = began + limit;
    if let Some(name) = address.name() {
        let (mine, theirs) = duplex(names::STREAM_LEN);
        let called = within(&**environment, deadline, names::call(name, theirs)).await;
        return called.unwrap_or_else(|| Err(late(limit))).map(|()| mine.into());
    }
    if address.port() == 0 || address.is_wildcard() {
        let why = "it names no single listener: write the host and port that the listener printed";
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let addresses = resolve(environment, address, deadline).await?;
    let resolved = environment.now();
    let fates = match first(&**environment, addresses, deadline).await {
        Ok(stream) => return Ok(stream.into()),
        Err(fates) => fates,
    };
    // What a host answered counts before what did not answer.
    let told = [ErrorKind::Refused, ErrorKind::TimedOut];
    let kind = told.into_iter().find(|kind| fates.kinds().any(|of| of == *kind));
    let kind = kind.or_else(|| fates.kinds().next()).unwrap_or(ErrorKind::Unavailable);
    let resolving = resolved.saturating_sub(began);
    let error = fates.into_error(kind, address);
    if kind == ErrorKind::TimedOut && resolving > limit / 2 {
        return Err(error.at(format_args!(
            "resolving the name took {} of {} s",
            seconds(resolving),
            seconds(limit)
        )));
    }
    Err(error)
}

/// A stream to a socket address.
///
/// # Errors
/// `Refused` if nobody listens there; `Unavailable` without a route, an address or a port of its own to come from.
pub(crate) async fn connect(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(at).await.map_err(|error| failed(at, error))?;
    // A port of this host that nobody listens at can be the one which the kernel chose to connect from.
    if stream.local_addr().is_ok_and(|from| from == at) {
        return Err(Error::io(io::ErrorKind::ConnectionRefused.into()));
    }
    // Without it small messages wait for acknowledgements.
    stream.set_nodelay(true).map_err(Error::io)?;
    Ok(stream)
}

/// The first of `addresses` that takes the connection, or what became of each.
async fn first(
    environment: &dyn Environment,
    addresses: Vec<SocketAddr>,
    deadline: Duration,
) -> Result<TcpStream, Fates> {
    let mut waiting = alternating(addresses).into_iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut fates = Fates::default();
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
                    fates.push(attempt.at, error);
                    // A failure lets the next begin at once.
                    pause = None;
                    false
                }
            });
            if let Some(stream) = connected {
                return Poll::Ready(Ok(stream));
            }
            if end.as_mut().poll(cx).is_ready() {
                for attempt in &running {
                    fates.push(attempt.at, late(environment.now().saturating_sub(attempt.began)));
                }
                for at in waiting.by_ref() {
                    fates.push(at, Error::new(ErrorKind::TimedOut, "not tried: no time was left"));
                }
                return Poll::Ready(Err(std::mem::take(&mut fates)));
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
                None if running.is_empty() => return Poll::Ready(Err(std::mem::take(&mut fates))),
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

/// The addresses in their order, families by turns: RFC 8305, section 4.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|at| at.is_ipv6() == v6_first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let turns = std::iter::from_fn(|| match [one.next(), other.next()] {
        [None, None] => None,
        turn => Some(turn),
    });
    turns.flatten().flatten().take(ADDRESSES_MAX).collect()
}

fn late(limit: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, format!("no answer within {} s", seconds(limit)))
}

fn failed(at: SocketAddr, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput
        && let Err(error) = crate::address::resolve::zoned(at)
    {
        return error;
    }
    if error.kind() != io::ErrorKind::AddrNotAvailable {
        return Error::io(error);
    }
    let why = if has_source(at) {
        "no local port is left for one more connection to that address: close some, or widen net.ipv4.ip_local_port_range"
    } else {
        "this host has no address of that family to connect from (IPv6 may be turned off: net.ipv6.conf.all.disable_ipv6)"
    };
    Error::new(ErrorKind::Unavailable, why).caused_by(error)
}

/// Whether this host has an address to reach `at` from. UDP, which sends nothing to connect, has ports of its own.
fn has_source(at: SocketAddr) -> bool {
    let any = if at.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let asked = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| socket.connect(at));
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let v4 = |last| SocketAddr::from(([10, 0, 0, last], 1));
        let v6 = |last| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], 1));
        let given = vec![v6(1), v6(2), v6(3), v4(1)];
        assert_eq!(alternating(given), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(alternating(vec![v4(1), v6(1), v4(2)]), [v4(1), v6(1), v4(2)]);
        assert_eq!(alternating((0..=255).map(v4).collect()).len(), ADDRESSES_MAX);
    }
}
