//! The address of `--metrics`.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// The time limit of resolving a name.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// A host and a port, as `127.0.0.1:9100`, `[::1]:9100`, `localhost:9100` or `:9100`, which is every interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetricsAddress {
    /// `None`: every interface.
    host: Option<String>,
    port: u16,
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let forms = "write HOST:PORT, such as 127.0.0.1:9100, localhost:9100, [::1]:9100, or :9100 for every interface";
        let wrong = || format!("`{text}` is not an address for metrics: {forms}");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host {
            "" | "*" => None,
            _ => match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(inner) => Some(inner.parse::<Ipv6Addr>().map_err(|_| wrong())?.to_string()),
                None if host.contains([':', '/', '[', ']']) => return Err(wrong()),
                None => Some(host.to_owned()),
            },
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or_default();
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{open}{host}{close}:{}", self.port)
    }
}

impl MetricsAddress {
    /// Listens at the first address that this machine has, and at no other if that one is in use.
    pub(super) async fn bind(&self) -> io::Result<TcpListener> {
        let mut failed = io::Error::other("the name has no address");
        for at in self.resolve().await? {
            match bind(at) {
                Err(error) if is_not_here(&error) => failed = error,
                bound => return bound,
            }
        }
        Err(failed)
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let Some(host) = &self.host else {
            // The IPv6 socket accepts IPv4 as well; without IPv6 in the kernel, every IPv4 interface remains.
            let every: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
            return Ok(every.map(|ip| (ip, self.port).into()).to_vec());
        };
        let look_up = tokio::net::lookup_host((host.as_str(), self.port));
        let late = || {
            let why = format!("the name does not resolve within {} s", RESOLVE_WITHIN.as_secs());
            io::Error::new(ErrorKind::TimedOut, why)
        };
        Ok(tokio::time::timeout(RESOLVE_WITHIN, look_up).await.map_err(|_| late())??.collect())
    }
}

fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if at.is_ipv6() {
        // The system's default varies.
        set_ipv6_v6only(&socket, !at.ip().is_unspecified())?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Returns true if this machine lacks the address, or the address family.
fn is_not_here(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == ErrorKind::AddrNotAvailable
        || Errno::from_io_error(error).is_some_and(|errno| errno == Errno::AFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_it_is_read() {
        for text in ["127.0.0.1:9100", "[::1]:9100", "localhost:9100", "metrics.example:0", ":9100"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
        assert_eq!("*:9100".parse::<MetricsAddress>(), ":9100".parse());
        for text in [
            "",
            "nowhere",
            ":",
            "localhost:",
            "localhost:http",
            "::1:9100",
            "http://x:9100",
            "[x]:1",
            "x:65536",
        ] {
            assert!(text.parse::<MetricsAddress>().unwrap_err().contains("HOST:PORT"), "{text}");
        }
    }
}
