//! Where an endpoint listens or connects: `tcp://10.0.0.7:7000?streams=4`.

mod options;
mod parse;
pub(crate) mod resolve;

use std::fmt::{self, Write};

use crate::{Error, ErrorKind, Result};

/// Bounds an address as text.
const LEN_MAX: usize = 1024;

/// What an address asks for: the best path both ends offer, or one backend and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// Whatever serves the pair best: `mem` within a process, `shm` within a host, `tcp` beyond.
    Towline,
    /// Whatever serves the pair best and shows nothing to whoever is on the way: what leaves the host goes
    /// over TLS.
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
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Towline, Self::Towlines, Self::Tcp, Self::Tls, Self::Shm, Self::Ucx, Self::Ib, Self::Mem];

    /// As written before `://`.
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

    /// The one backend that it asks for, by name; `None` where both ends choose.
    pub fn backend(self) -> Option<&'static str> {
        match self {
            Self::Towline | Self::Towlines => None,
            Self::Tls => Some("tcp"),
            Self::Tcp | Self::Shm | Self::Ucx | Self::Ib | Self::Mem => Some(self.as_str()),
        }
    }

    /// Whether peers meet over TLS.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Towlines | Self::Tls)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A place to listen at or connect to, at most 1024 bytes as text.
///
/// `scheme://host:port`, or `mem://name` within a process (`mem://` lets the listener assign the name). The
/// host is an IPv4 address, an IPv6 address in brackets (a link-local one with its zone, `[fe80::1%eth0]`),
/// or a name; a listener may also write `*`, or nothing, for every interface. The port is TCP's whatever the
/// scheme is: both ends meet there, and `shm` leads on into memory that they share. Options follow as a
/// query, `?key=value&key=value`, with `%XX` for bytes that have a meaning here.
///
/// `integrity=crc32c` (for all but `mem`): what travels carries checksums both ways, and damage on the way is
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) before anything damaged is delivered. The connecting
/// address asks for it; a listener grants it to whoever asks, and written at a listener it stands in the
/// address that it reports. `towline` may choose `mem`, where nothing travels and nothing is checked; `mem`
/// itself refuses it.
///
/// `streams=N` (for `tcp` and those that may choose it, 1 to 16): the connection spreads large payload over N
/// sockets, for links that are faster than one TCP flow. It is asked for and granted like `integrity`;
/// another path than `tcp` has one stream whatever `towline` is asked for.
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
    place: Place,
    options: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    /// The host is in lower case, and an IPv6 address in its shortest form, without brackets.
    Port {
        host: String,
        port: u16,
    },
    Name(String),
}

impl Address {
    /// `scheme://host:port`; `host` may wear brackets if it is an IPv6 address. `Invalid` for
    /// [`Scheme::Mem`], which has neither.
    pub fn new(scheme: Scheme, host: &str, port: u16) -> Result<Self> {
        if scheme == Scheme::Mem {
            return Err(invalid("mem has no host and port: use Address::mem(name)"));
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = if bare.contains(':') { parse::ipv6(bare)? } else { parse::host(host)? };
        Self { scheme, place: Place::Port { host, port }, options: Vec::new() }.bounded()
    }

    /// `mem://name`; the empty name lets the listener assign one.
    pub fn mem(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        parse::check_name(&name)?;
        Self { scheme: Scheme::Mem, place: Place::Name(name), options: Vec::new() }.bounded()
    }

    /// What the address asks for.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, without brackets; empty for `mem`, and where it was left out to mean every interface.
    pub fn host(&self) -> &str {
        match &self.place {
            Place::Port { host, .. } => host,
            Place::Name(_) => "",
        }
    }

    /// The port, where 0 lets the operating system choose; 0 for `mem`.
    pub fn port(&self) -> u16 {
        match self.place {
            Place::Port { port, .. } => port,
            Place::Name(_) => 0,
        }
    }

    /// The name within the process, for `mem` alone; empty to have one assigned.
    pub fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Port { .. } => None,
            Place::Name(name) => Some(name),
        }
    }

    /// Whether the host means every interface, as a listener may ask: empty, `*`, `0.0.0.0` or `[::]`.
    pub fn is_wildcard(&self) -> bool {
        matches!(&self.place, Place::Port { host, .. } if matches!(&**host, "" | "*" | "0.0.0.0" | "::"))
    }

    /// The value of one option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// All options, in the order they were written.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The same address with this option, in place of one of the same key.
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
        match &self.place {
            Place::Port { host, port } if host.contains(':') => write!(f, "[{host}]:{port}")?,
            Place::Port { host, port } => write!(f, "{host}:{port}")?,
            Place::Name(name) => f.write_str(name)?,
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
