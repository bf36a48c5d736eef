//! Addresses: where an endpoint listens or connects, as `tcp://10.0.0.7:7000?streams=4`.

mod options;
mod parse;
pub(crate) mod resolve;

use std::fmt::{self, Write};

use crate::{Error, ErrorKind, Result};

/// The longest address as text, in bytes.
const LEN_MAX: usize = 1024;

/// What an address selects: the best path that both ends offer, or one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// The best path of both ends: `mem` within a process, `shm` within a host, `ucx` or `tcp` between hosts.
    Towline,
    /// The best path of both ends that keeps data private in transit: TLS between hosts.
    Towlines,
    /// Only TCP.
    Tcp,
    /// Only TCP, over TLS.
    Tls,
    /// Only shared memory, between processes of one host.
    Shm,
    /// Only UCX.
    Ucx,
    /// Only InfiniBand.
    Ib,
    /// Only this process.
    Mem,
}

impl Scheme {
    /// All schemes.
    pub const ALL: [Self; 8] =
        [Self::Towline, Self::Towlines, Self::Tcp, Self::Tls, Self::Shm, Self::Ucx, Self::Ib, Self::Mem];

    /// Returns the scheme as written before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Towline => "towline",
            Self::Towlines => "towlines",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Shm => "shm",
            Self::Ucx => "ucx",
            Self::Ib => "ib",
            Self::Mem => "mem",
        }
    }

    /// Returns the name of the one backend that the scheme selects; `None` where both ends choose.
    pub fn backend(self) -> Option<&'static str> {
        match self {
            Self::Towline | Self::Towlines => None,
            Self::Tls => Some("tcp"),
            Self::Tcp | Self::Shm | Self::Ucx | Self::Ib | Self::Mem => Some(self.as_str()),
        }
    }

    /// Returns whether connections use TLS.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Towlines | Self::Tls)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An address to listen at or connect to, at most 1024 bytes as text.
///
/// `scheme://host:port`, or `mem://name` within a process (`mem://` lets the listener assign the name). The
/// host is an IPv4 address, an IPv6 address in brackets (a link-local one with its zone, `[fe80::1%eth0]`),
/// or a name; a listener may also write `*`, or nothing, for every interface. The port is a TCP
/// port for every scheme: the handshake runs there, and `shm` then continues in shared memory. Options follow
/// as a query, `?key=value&key=value`, with `%XX` for bytes that have a meaning here.
///
/// `integrity=crc32c` (for all but `mem`): data carries checksums both ways, and damage on the way is
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) before any damaged data is delivered. The connecting
/// address requests it, and any listener grants it. A listener with this option repeats it in the address
/// that it reports. `towline` may choose `mem`, which hands buffers over and checks nothing; `mem://`
/// refuses the option.
///
/// `streams=N` (for `tcp` and those that may choose it, 1 to 16): the connection spreads large payload over N
/// sockets, for links that are faster than one TCP flow. It is requested and granted like `integrity`.
/// Paths other than `tcp` have one stream.
///
/// Options in upper case (`TLS=tcp,self`, `NET_DEVICES=eth0`, `RNDV_THRESH=64k`; for `ucx` alone) are
/// settings of UCX for this connection, or for this listener's, as they are: [`settings`](Self::settings).
/// `versions=any` (for `ucx` too) allows a pair of UCX libraries of versions that were not proven together,
/// and UCX 1.13 over tcp, which may abort this process when a peer is killed while it connects.
///
/// ```
/// use towline::{Address, Scheme};
///
/// let address: Address = "tcp://[::1]:7000?streams=4".parse()?;
/// assert_eq!((address.scheme(), address.host(), address.port()), (Scheme::Tcp, "::1", 7000));
/// assert_eq!(address.option("streams"), Some("4"));
/// assert_eq!(address.to_string(), "tcp://[::1]:7000?streams=4");
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    scheme: Scheme,
    authority: Authority,
    options: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Authority {
    /// The host is in lower case. An IPv6 address is in its shortest form, without brackets.
    Port {
        host: String,
        port: u16,
    },
    Name(String),
}

impl Address {
    /// Makes `scheme://host:port`. An IPv6 `host` may have brackets.
    ///
    /// # Errors
    /// `Invalid` for a malformed host, and for [`Scheme::Mem`], which has no host and port.
    pub fn new(scheme: Scheme, host: &str, port: u16) -> Result<Self> {
        if scheme == Scheme::Mem {
            return Err(invalid("mem has no host and port: use Address::mem(name)"));
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = if bare.contains(':') { parse::ipv6(bare)? } else { parse::host(host)? };
        Self { scheme, authority: Authority::Port { host, port }, options: Vec::new() }.bounded()
    }

    /// Makes `mem://name`. The empty name lets the listener assign one.
    ///
    /// # Errors
    /// `Invalid` for a malformed name.
    pub fn mem(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        parse::check_name(&name)?;
        Self { scheme: Scheme::Mem, authority: Authority::Name(name), options: Vec::new() }.bounded()
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the host, without brackets. Empty for `mem`, and where it was omitted to mean every interface.
    pub fn host(&self) -> &str {
        match &self.authority {
            Authority::Port { host, .. } => host,
            Authority::Name(_) => "",
        }
    }

    /// Returns the port. 0 lets the operating system choose. Always 0 for `mem`.
    pub fn port(&self) -> u16 {
        match self.authority {
            Authority::Port { port, .. } => port,
            Authority::Name(_) => 0,
        }
    }

    /// Returns the name within the process, for `mem` only. Empty to have one assigned.
    pub fn name(&self) -> Option<&str> {
        match &self.authority {
            Authority::Port { .. } => None,
            Authority::Name(name) => Some(name),
        }
    }

    /// Returns whether the host means every interface, as for a listener: empty, `*`, `0.0.0.0` or `[::]`.
    pub fn is_wildcard(&self) -> bool {
        matches!(&self.authority, Authority::Port { host, .. } if matches!(&**host, "" | "*" | "0.0.0.0" | "::"))
    }

    /// Returns the value of one option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Returns all options, in the order in which they were written.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Returns the same address with this option. It replaces an option of the same key.
    ///
    /// # Errors
    /// `Invalid` without a key, or if the address becomes too long.
    pub fn with_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Result<Self> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() {
            return Err(invalid("an option needs a key: write ?key=value"));
        }
        match self.options.iter_mut().find(|(known, _)| *known == key) {
            Some(option) => option.1 = value,
            None => self.options.push((key, value)),
        }
        self.bounded()
    }

    fn bounded(self) -> Result<Self> {
        match self.to_string().len() {
            0..=LEN_MAX => Ok(self),
            len => Err(invalid(format!("an address of {len} bytes passes the limit of {LEN_MAX}"))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match &self.authority {
            Authority::Port { host, port } if host.contains(':') => write!(f, "[{host}]:{port}")?,
            Authority::Port { host, port } => write!(f, "{host}:{port}")?,
            Authority::Name(name) => f.write_str(name)?,
        }
        let mut before = '?';
        for (key, value) in &self.options {
            f.write_char(before)?;
            write_encoded(f, key)?;
            f.write_char('=')?;
            write_encoded(f, value)?;
            before = '&';
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

fn write_encoded(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => f.write_char(byte.into())?,
            b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b',' | b'*' | b'+' => {
                f.write_char(byte.into())?
            }
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

#[cfg(test)]
mod tests;
