//! The one error type of the library: kind, operation, address, detail and source.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result type of this library.
///
/// An async block or a closure that ends in `Ok(())` does not name its error type. If it uses `?`, the
/// compiler reports "type annotations needed". `Result::Ok(())` does not help, because a default type
/// parameter applies only where arguments are written. Write `Result::<_>::Ok(())`:
///
/// ```
/// use towline::{Place, Result};
///
/// let work = || {
///     let place: Place = "host".parse()?;
///     Result::<_>::Ok(place)
/// };
/// assert_eq!(work()?, Place::Host);
/// # Ok::<(), towline::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of a failure, by what a caller can do about it.
///
/// Whether it helps to try again, with the program and its configuration unchanged:
///
/// | kind | another attempt |
/// |---|---|
/// | `Refused` | helps once the peer listens: wait and connect again |
/// | `TimedOut` | may help: the peer or the network was slow or away |
/// | `PeerLost` | of a connection never; a new connection helps once the peer is back |
/// | `Unavailable` | helps once what the detail names is there: a route, a name, a free port, a library |
/// | `Io` | may help where the detail names a resource that is freed, as descriptors are |
/// | `Closed` | of a connection never: open a new one |
/// | `Rejected` | not for this message or region: its receiver or owner decided |
/// | `Incompatible`, `Unauthenticated` | not until one end's program, address, token or certificate changes |
/// | `Corrupt` | of a connection never; a new one helps only where the network damaged the data |
/// | `Unsupported`, `Invalid`, `TooLarge` | not with these arguments |
///
/// No method answers this for all kinds: `Unavailable` and `Io` depend on the detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something required is missing: a library, a device, a route, a name, a free port. Installing or
    /// providing it helps.
    Unavailable,
    /// Nobody listens at the port or the name, perhaps not yet.
    Refused,
    /// The other end answers and cannot be spoken with: it is no Towline endpoint, it speaks another version, or
    /// only one end uses TLS.
    Incompatible,
    /// The peer is lost: its process died, its connection broke, or its heartbeats stopped.
    PeerLost,
    /// A stated time limit passed.
    TimedOut,
    /// The receiver rejected the message, or the owner of a region rejected the access. The connection stays
    /// open.
    Rejected,
    /// This link does not support the operation: see [`Caps`](crate::Caps).
    Unsupported,
    /// The caller passed an invalid argument.
    Invalid,
    /// The operation exceeds a limit, which the detail names.
    TooLarge,
    /// One end could not authenticate to the other: its token is wrong or missing, or its certificate is
    /// missing or not trusted.
    Unauthenticated,
    /// The peer violated the protocol, or data arrived damaged.
    Corrupt,
    /// This end or the peer closed the connection in good order.
    Closed,
    /// The operating system failed. The source is its error.
    Io,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Incompatible => "incompatible",
            Self::PeerLost => "peer lost",
            Self::TimedOut => "timed out",
            Self::Rejected => "rejected",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
            Self::TooLarge => "too large",
            Self::Unauthenticated => "unauthenticated",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
            Self::Io => "input/output error",
        })
    }
}

/// A failure, printed as one sentence: `tcp: connect tcp://10.0.0.2:7000: refused: no listener at that address`.
///
/// Cloning is cheap. One lost link fails every operation in flight on it with the same error.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use towline::{Endpoint, ErrorKind};
///
/// let endpoint = Endpoint::new()?;
/// let error = endpoint.connect(&"mem://worker-7".parse()?).await.unwrap_err();
/// match error.kind() {
///     ErrorKind::Refused | ErrorKind::Unavailable => println!("not up yet, try later: {error}"),
///     ErrorKind::Incompatible => println!("another program listens there: {error}"),
///     ErrorKind::Unauthenticated => println!("look at the token: {error}"),
///     _ => return Err(error),
/// }
/// assert_eq!(
///     error.to_string(),
///     "connect mem://worker-7: refused: no listener of that name in this process"
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<ErrorInner>);

#[derive(Clone)]
struct ErrorInner {
    kind: ErrorKind,
    backend: Option<&'static str>,
    doing: Option<Cow<'static, str>>,
    on: Option<String>,
    detail: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The detail of an error where the process has too many open files.
pub(crate) const NO_DESCRIPTOR: &str =
    "no descriptor is left: close some files, or raise the limit on open files (ulimit -n)";

impl Error {
    /// Makes an error of `kind`. `detail` says what happened and, where there is a remedy, what to do.
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(ErrorInner {
            kind,
            backend: None,
            doing: None,
            on: None,
            detail: detail.into(),
            source: None,
        }))
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns what happened, without the operation and the address.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Returns the backend that failed (`mem`, `tcp`, `shm`, `ucx` or `ib`), or `None` if the failure is not
    /// a backend's.
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// Sets the backend, unless one is set.
    #[must_use]
    pub fn by(mut self, backend: &'static str) -> Self {
        Arc::make_mut(&mut self.0).backend.get_or_insert(backend);
        self
    }

    /// Sets the operation (`connect`, `send`, `get`), unless one is set.
    #[must_use]
    pub fn during(mut self, doing: impl Into<Cow<'static, str>>) -> Self {
        Arc::make_mut(&mut self.0).doing.get_or_insert_with(|| doing.into());
        self
    }

    /// Sets the address or object, unless one is set.
    #[must_use]
    pub fn on(mut self, address: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.0).on.get_or_insert_with(|| address.to_string());
        self
    }

    /// Sets the source error.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// Prefixes the detail with its subject.
    #[must_use]
    pub(crate) fn at(mut self, about: impl fmt::Display) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.detail = format!("{about}: {}", inner.detail).into();
        self
    }

    /// Converts an operating-system error into an error of the kind that a caller can act on.
    pub fn io(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        // An error of this library that passed through a stream.
        if let Some(ours) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return ours.clone();
        }
        let (kind, detail) = match error.kind() {
            Io::ConnectionRefused => (ErrorKind::Refused, "no listener at that address"),
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof => {
                (ErrorKind::PeerLost, "the connection was cut")
            }
            Io::TimedOut => (ErrorKind::TimedOut, "no answer in time"),
            Io::HostUnreachable | Io::NetworkUnreachable => (ErrorKind::Unavailable, "no route leads there"),
            Io::AddrInUse => {
                (ErrorKind::Unavailable, "the address is in use; choose another port, or 0 for any")
            }
            Io::AddrNotAvailable => (ErrorKind::Unavailable, "no interface here has that address"),
            Io::PermissionDenied => (ErrorKind::Unavailable, "the operating system denies it to this user"),
            _ if error.raw_os_error() == Some(libc::EMFILE) => (ErrorKind::Io, NO_DESCRIPTOR),
            _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => (
                ErrorKind::Unavailable,
                "this kernel does not support that address family (IPv6 may be turned off)",
            ),
            _ => (ErrorKind::Io, "the operating system failed"),
        };
        Self::new(kind, detail).caused_by(error)
    }

    /// Converts a stream's error into `PeerLost` with `detail`, whatever the operating system calls it.
    pub(crate) fn cut(error: std::io::Error, detail: &'static str) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(error) => Self::new(ErrorKind::PeerLost, detail).caused_by(error),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::io(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorInner { kind, backend, doing, on, detail, source } = &*self.0;
        if let Some(backend) = backend {
            write!(f, "{backend}: ")?;
        }
        match (doing, on) {
            (Some(doing), Some(on)) => write!(f, "{doing} {on}: ")?,
            (Some(doing), None) => write!(f, "{doing}: ")?,
            (None, Some(on)) => write!(f, "{on}: ")?,
            (None, None) => {}
        }
        write!(f, "{kind}: {detail}")?;
        match source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sentence, so that `unwrap` and a `main` that returns the error print it.
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

/// A failed operation: the error, and the memory that the operation owned.
///
/// `?` converts it into an [`Error`] and drops the memory. Match on it to keep the memory. It prints as its
/// error does, in one sentence, without the memory.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use towline::{Buffer, ErrorKind, HEADER_LEN_MAX, Message};
/// # use towline::Endpoint;
///
/// # let endpoint = Endpoint::new()?;
/// # let listener = endpoint.listen(&"mem://".parse()?).await?;
/// # let near = endpoint.connect(listener.address()).await?;
/// # let far = listener.accept().await?;
/// let failed = near.send(Message::new(vec![0; HEADER_LEN_MAX + 1])).await.unwrap_err();
/// println!("{failed}");
/// assert_eq!(failed.error.kind(), ErrorKind::TooLarge);
///
/// // The message is returned. Data too long for a header can be sent as a frame.
/// let (header, _) = failed.returned.into_parts();
/// near.send(Message::new("once more").with_frame(Buffer::from(header))).await?;
/// assert_eq!(far.recv().await?.payload_len(), HEADER_LEN_MAX as u64 + 1);
/// # Ok(())
/// # }
/// ```
pub struct Failed<T> {
    /// Why the operation failed.
    pub error: Error,
    /// The memory that the operation owned. Nothing else accesses it any more.
    pub returned: T,
}

impl<T> From<Failed<T>> for Error {
    fn from(failed: Failed<T>) -> Self {
        failed.error
    }
}

impl<T> fmt::Debug for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl<T> fmt::Display for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> StdError for Failed<T> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_prints_as_one_sentence_without_its_memory() {
        struct Memory;
        let error = Error::new(ErrorKind::PeerLost, "its process ended").during("send").on("tcp://[::1]:7");
        let failed = Failed { error: error.by("tcp"), returned: Memory };
        let sentence = "tcp: send tcp://[::1]:7: peer lost: its process ended";
        assert_eq!(failed.to_string(), sentence);
        assert_eq!(format!("{failed:?}"), sentence);
        assert_eq!(format!("{failed:#?}"), sentence);
        let boxed: Box<dyn StdError> = Box::new(failed);
        assert_eq!(format!("{boxed:?}"), sentence);
    }
}
