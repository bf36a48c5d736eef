"""What asyncio's classes and the blocking ones have in common: the calls that never wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import _log, _towline

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Prefetch(NamedTuple):
    """How far a connection receives ahead of ``recv``. A message beyond it is received once ``recv`` waits for it.

    Without it (``prefetch=None``), a large message waits at the sender until ``recv`` is called.

    >>> Prefetch(messages=16)
    Prefetch(messages=16, bytes=67108864)
    """

    messages: int = 2
    bytes: int = 64 << 20


class EndpointState:
    """The entry point of a process."""

    __slots__ = ("_inner", "__weakref__")

    def __init__(
        self,
        *,
        token: Buffer | None = None,
        tls: _towline.Tls | None = None,
        trust_user: bool = False,
        insecure: bool = False,
        wait: str | None = None,
        linger: float | None = None,
        heartbeat: float | None = None,
        pool_bytes: int | None = None,
        pool_idle_time: float | None = None,
    ) -> None:
        _log.start()
        self._inner = _towline.Endpoint(
            token=token,
            tls=tls,
            trust_user=trust_user,
            insecure=insecure,
            wait=wait,
            linger=linger,
            heartbeat=heartbeat,
            pool_bytes=pool_bytes,
            pool_idle_time=pool_idle_time,
        )

    def backends(self) -> list[tuple[str, str]]:
        """Return the name and the state of each backend."""
        return self._inner.backends()

    def metrics(self) -> str:
        """Return the endpoint's metrics in the format of Prometheus."""
        return self._inner.metrics()


class ListenerState:
    """Listens at one address."""

    __slots__ = ("_inner", "__weakref__")

    def __init__(self, inner: _towline.Listener) -> None:
        self._inner = inner

    @property
    def address(self) -> str:
        """The address to connect to, with the port that the system chose."""
        return self._inner.address

    def close(self) -> None:
        """Stop listening. Connections live on."""
        self._inner.close()


class ConnectionState:
    """A connection to one peer."""

    __slots__ = ("_inner", "__weakref__")

    def __init__(self, inner: _towline.Connection, prefetch: Prefetch | None) -> None:
        self._inner = inner
        if prefetch is not None:
            inner.prefetch(*prefetch)

    def abort(self) -> None:
        """End the connection now. The peer sees that it was lost."""
        self._inner.abort()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, at either end."""
        return self._inner.closed()

    @property
    def close_reason(self) -> BaseException | None:
        """Why the connection has ended."""
        return self._inner.close_reason()

    @property
    def path(self) -> str:
        """The backend that carries the connection: ``mem``, ``shm``, ``tcp``, ``ucx``."""
        return self._inner.path

    @property
    def local_address(self) -> tuple[str, int] | None:
        """This end's host and port. ``None`` within a process."""
        return self._inner.local_address

    @property
    def peer_address(self) -> tuple[str, int] | None:
        """The peer's host and port. ``None`` within a process."""
        return self._inner.peer_address

    def stats(self) -> dict[str, int]:
        """Return what was counted on this connection."""
        return self._inner.stats()


class IncomingState:
    """An announced message."""

    __slots__ = ("_inner", "__weakref__")

    def __init__(self, inner: _towline.Incoming) -> None:
        self._inner = inner

    @property
    def header(self) -> bytes:
        """The message's header."""
        return self._inner.header

    @property
    def sizes(self) -> list[int]:
        """The number of bytes of each frame."""
        return self._inner.sizes

    def reject(self) -> None:
        """Discard the message. Its payload is not received."""
        self._inner.reject()


class RegionState:
    """Exposed memory."""

    __slots__ = ("_inner", "__weakref__")

    def __init__(self, inner: _towline.Region) -> None:
        self._inner = inner

    @property
    def remote(self) -> _towline.RemoteRegion:
        """The right to access it, for the peer: send ``bytes(region.remote)`` in any message."""
        return self._inner.remote
