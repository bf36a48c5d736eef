//! The socket of a listener. It binds the first address of the host, and another only where this host lacks
//! the first.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::address::Address;
use crate::address::resolve::{AttemptErrors, check_zone};
use crate::error::{Error, ErrorKind, Result};

/// The length of the operating system's accept queue, unless the system allows less.
const BACKLOG: i32 = 4096;

/// Listens at the first of `sockets`, the socket addresses of `address`, and returns the bound address. The
/// next one is tried only if this host does not have the first, as without IPv6. Runs on the driver.
///
/// # Errors
/// `Unavailable` if the port is in use, or this host has none of the addresses.
pub(crate) fn bind(address: &Address, sockets: &[SocketAddr]) -> Result<(TcpListener, Address)> {
    let mut errors = AttemptErrors::default();
    for at in sockets {
        let error = match bind_to(*at) {
            Ok(socket) => {
                let listener = TcpListener::from_std(socket.into()).map_err(Error::io)?;
                let bound = listener.local_addr().map_err(Error::io)?;
                return Ok((listener, reported_address(address, sockets, bound)?));
            }
            Err(error) => error,
        };
        let is_absent = is_absent(&error);
        errors.push(*at, bind_error(*at, error));
        if !is_absent {
            break;
        }
    }
    Err(errors.into_error(ErrorKind::Unavailable, address))
}

/// Binds one socket. An unspecified IPv6 address accepts IPv4 as well.
fn bind_to(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Returns whether this host lacks the address, or the kernel its family.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn bind_error(at: SocketAddr, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse if at.port() == 0 => {
            Error::new(ErrorKind::Unavailable, "no port is free at that address").caused_by(error)
        }
        io::ErrorKind::InvalidInput => check_zone(at).err().unwrap_or_else(|| Error::io(error)),
        _ => Error::io(error),
    }
}

/// Returns the address that peers use: `address` with the bound port.
///
/// A host that has several socket addresses is replaced by the bound one. It stays as written for TLS,
/// because the certificate is for that name.
fn reported_address(address: &Address, sockets: &[SocketAddr], bound: SocketAddr) -> Result<Address> {
    let is_everywhere = matches!(address.host(), "" | "*") && bound.is_ipv6();
    let keeps_host = sockets.len() == 1 || is_everywhere || address.scheme().is_encrypted();
    let host = match (keeps_host, bound) {
        (true, _) => address.host().to_owned(),
        (false, SocketAddr::V6(v6)) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        (false, _) => IpAddr::to_string(&bound.ip()),
    };
    let mut described = Address::new(address.scheme(), &host, bound.port())?;
    for (key, value) in address.options() {
        described = described.with_option(key, value)?;
    }
    Ok(described)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No interface has this address: RFC 5737.
    const ABSENT: &str = "192.0.2.1:0";

    fn bound(address: &str, sockets: &[SocketAddr]) -> Result<String> {
        let (listener, reported) = bind(&address.parse()?, sockets)?;
        let port = listener.local_addr().expect("it is bound").port();
        Ok(reported.to_string().replace(&format!(":{port}"), ":P"))
    }

    #[tokio::test]
    async fn the_next_address_is_bound_only_where_one_is_absent() {
        let (absent, loopback) = (ABSENT.parse().expect("an address"), SocketAddr::from(([127, 0, 0, 1], 0)));
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        for address in ["tcp://*:0", "tcp://:0"] {
            assert_eq!(bound(address, &[absent, everywhere]).expect("it falls back"), "tcp://0.0.0.0:P");
        }
        assert_eq!(bound("tcp://many:0", &[absent, loopback]).expect("it falls back"), "tcp://127.0.0.1:P");
        assert_eq!(bound("tcp://one:0?streams=2", &[loopback]).expect("it is free"), "tcp://one:P?streams=2");
        assert_eq!(bound("tls://many:0", &[absent, loopback]).expect("it falls back"), "tls://many:P");

        let taken = std::net::TcpListener::bind(loopback).expect("a port");
        let taken = taken.local_addr().map(|at| (at, taken)).expect("an address");
        let error = bound("tcp://many:0", &[taken.0, loopback]).expect_err("another has it");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.detail().starts_with(&format!("{}: the address is in use", taken.0)), "{error}");

        let error = bound("tcp://many:0", &[absent, absent]).expect_err("no interface has it");
        assert_eq!(
            error.detail().matches("192.0.2.1:0: unavailable: no interface here has").count(),
            2,
            "{error}"
        );
        let error = bound("tcp://192.0.2.1:0", &[absent]).expect_err("no interface has it");
        assert_eq!(error.detail(), "no interface here has that address");
    }

    #[test]
    fn a_family_that_the_kernel_lacks_is_absent() {
        for (errno, absent) in [
            (libc::EAFNOSUPPORT, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::EADDRINUSE, false),
            (libc::EACCES, false),
            (libc::EMFILE, false),
        ] {
            assert_eq!(is_absent(&io::Error::from_raw_os_error(errno)), absent, "{errno}");
        }
    }
}
