"""The exceptions of the package: one class for each kind of error.

Every class is an ``OSError``, and ``errno`` is set where the system reported the failure. Each is also the class
that Python's own sockets raise for it, if there is one, so that code for sockets handles them:

    >>> from towline import blocking, errors
    >>> endpoint = blocking.Endpoint()
    >>> try:
    ...     connection = endpoint.connect("towline://127.0.0.1:1")
    ... except ConnectionRefusedError as error:
    ...     print("not up yet: try again")
    ... except errors.IncompatibleError:
    ...     print("something else listens there: trying again does not help")
    not up yet: try again
"""

from __future__ import annotations

import os

__all__ = [
    "ClosedError",
    "CorruptError",
    "Error",
    "IncompatibleError",
    "InvalidError",
    "PeerLostError",
    "RefusedError",
    "RejectedError",
    "TimedOutError",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
]


class Error(OSError):
    """A failure. Its text says what happened, on what, and what to do."""

    def __str__(self) -> str:
        return str(self.args[-1]) if self.args else ""


class UnavailableError(Error):
    """There is no route, no library, or no memory now. That may pass."""


class RefusedError(Error, ConnectionRefusedError):
    """Nobody listens there. That may pass."""


class IncompatibleError(Error):
    """Something answers, and it is no Towline endpoint of this version. Trying again does not help."""


class PeerLostError(Error, ConnectionResetError):
    """The peer died, or is unreachable."""


class TimedOutError(Error, TimeoutError):
    """The time was up."""


class RejectedError(Error):
    """The receiver rejected the message."""


class UnsupportedError(Error):
    """The chosen path cannot do that, or the object was inherited by a fork."""


class InvalidError(Error, ValueError):
    """An argument or a call makes no sense."""


class TooLargeError(Error):
    """A limit was exceeded. The text names it."""


class UnauthenticatedError(Error, PermissionError):
    """The peers do not trust one another: token, certificate or name."""


class CorruptError(Error):
    """Bytes of the peer contradict the protocol, or their checksum."""


class ClosedError(Error, ConnectionAbortedError):
    """The connection was closed, by either end."""


_KINDS: dict[str, type[Error]] = {
    "unavailable": UnavailableError,
    "refused": RefusedError,
    "incompatible": IncompatibleError,
    "peer lost": PeerLostError,
    "timed out": TimedOutError,
    "rejected": RejectedError,
    "unsupported": UnsupportedError,
    "invalid": InvalidError,
    "too large": TooLargeError,
    "unauthenticated": UnauthenticatedError,
    "corrupt": CorruptError,
    "closed": ClosedError,
}


def _exception(kind: str, errno: int | None, text: str) -> Error:
    exception = _KINDS.get(kind, Error)(text)
    exception.errno = errno
    exception.strerror = os.strerror(errno) if errno is not None else None
    return exception
