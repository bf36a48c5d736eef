"""How Dask connects and listens over Towline."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

from distributed import Worker
from distributed.comm.addressing import parse_host_port, unparse_host_port
from distributed.comm.core import BaseListener, CommClosedError, Connector, FatalCommClosedError
from distributed.comm.registry import Backend
from distributed.comm.utils import ensure_concrete_host
from distributed.utils import ensure_ip, get_ip, get_ipv6

import towline
from towline import _towline
from towline._loop import current, ended

from . import arrays, counters, memory, security, settings
from .comm import TowlineComm

logger = logging.getLogger(__name__)

_WILDCARDS = {"": "*", "0.0.0.0": "0.0.0.0", "::": "[::]"}


class _Plain:
    """What connectors and listeners of ``towline://`` share."""

    prefix: ClassVar[str] = "towline://"
    encrypted: ClassVar[bool] = False
    # The transport's scheme for each value of `towline.transport`.
    schemes: ClassVar[dict[str | None, str]] = {None: "towline", "shm": "shm", "tcp": "tcp", "ucx": "ucx"}

    def _endpoint(self, address: str, arguments: dict[str, Any]) -> towline.Endpoint:
        if not self.encrypted and arguments.get("require_encryption"):
            raise RuntimeError(
                "encryption required by Dask configuration, "
                f"refusing communication from/to {self.prefix + address!r}: use towlines://"
            )
        try:
            return settings.endpoint(security.certificates(arguments) if self.encrypted else None)
        except towline.InvalidError as error:
            # It is an OSError too, after which Dask would try again.
            raise ValueError(str(error)) from error

    def _transport_address(self, host: str, port: int) -> str:
        """Return the address by which the transport connects or listens."""
        chosen = settings.get("transport")
        scheme = self.schemes.get(chosen)
        if scheme is None:
            possible = ", ".join("null" if name is None else name for name in self.schemes)
            raise ValueError(f"towline.transport is {chosen!r}, and {self.prefix} can use {possible}")
        return f"{scheme}://{_WILDCARDS.get(host) or unparse_host_port(host)}:{port}"


class _Encrypted(_Plain):
    """What connectors and listeners of ``towlines://`` share."""

    prefix = "towlines://"
    encrypted = True
    # Peers of one host prove themselves by TLS too, and then use shared memory.
    schemes = {None: "towlines", "tcp": "tls"}


class TowlineConnector(_Plain, Connector):
    """Connects to ``towline://`` addresses."""

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> TowlineComm:
        endpoint = self._endpoint(address, arguments)
        host, port = parse_host_port(address)
        loop = current()
        try:
            started = endpoint._inner.connect(loop, self._transport_address(host, port))
            inner: _towline.Connection = await ended(loop, started)
        except (towline.IncompatibleError, towline.UnauthenticatedError) as error:
            # Dask must not try again.
            raise FatalCommClosedError(f"in {self.prefix}{address}: {error}") from error
        except towline.InvalidError as error:
            raise ValueError(str(error)) from error
        except towline.Error as error:
            raise CommClosedError(f"in {self.prefix}{address}: {error}") from error
        local = self.prefix + unparse_host_port(*_socket_address(inner.local_address))
        comm = TowlineComm(inner, local, self.prefix + address, deserialize)
        counters.connected(comm)
        return comm


class TowlineListener(_Plain, BaseListener):
    """Listens at a ``towline://`` address."""

    def __init__(
        self,
        address: str,
        comm_handler: Callable[[TowlineComm], Awaitable[None]],
        deserialize: bool = True,
        allow_offload: bool = True,
        default_host: str | None = None,
        default_port: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._to = self._endpoint(address, arguments)
        self.ip, self.port = parse_host_port(address, default_port)
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.allow_offload = allow_offload
        self.default_host = default_host
        self._listener: _towline.Listener | None = None
        self._bound: tuple[str, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = current()
        # Addresses have numbers, as over tcp: Dask compares them.
        host = self.ip if self.ip in _WILDCARDS else ensure_ip(self.ip)
        started = self._to._inner.listen(loop, self._transport_address(host, self.port))
        self._listener = await ended(loop, started)
        assert self._listener is not None
        location = self._listener.address.partition("://")[2].partition("?")[0]
        host, port = parse_host_port(location.replace("*", "0.0.0.0"))
        self._bound = host, port
        accepting = self._spawn(self._accept(self._listener))
        self._background = [accepting, self._spawn(memory.keep())]
        # A worker listens before it has tasks.
        for worker in list(Worker._instances):
            arrays.attach(worker)
        if "distributed.dashboard.scheduler" in sys.modules:
            # Dask has a dashboard in this process, so bokeh is there.
            from .dashboard import add_page

            add_page()

    async def _accept(self, listener: _towline.Listener) -> None:
        loop = current()
        while True:
            try:
                inner = await ended(loop, listener.accept(loop))
            except towline.Error as error:
                if self._listener is listener:
                    logger.error("%s no longer listens: %s", self.listen_address, error)
                return
            self._spawn(self._handle(inner))

    async def _handle(self, inner: _towline.Connection) -> None:
        if self._listener is None:
            # Nobody would take part in Dask's handshake, which has no time limit at the connecting end.
            inner.abort()
            return
        local = self.prefix + unparse_host_port(*_socket_address(inner.local_address))
        peer = self.prefix + unparse_host_port(*_socket_address(inner.peer_address))
        comm = TowlineComm(inner, local, peer, self.deserialize)
        comm.allow_offload = self.allow_offload
        try:
            await self.on_connection(comm)
        except CommClosedError:
            logger.info("Connection from %s closed before handshake completed", peer)
            return
        await self.comm_handler(comm)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # The task that accepts ends with it.
            listener.close()
            self._background[1].cancel()
            # The loop holds both until they end. It may end first, and its descriptor would stay with this listener,
            # which Dask keeps.
            self._tasks.difference_update(self._background)
            self._background.clear()

    def get_host_port(self) -> tuple[str, int]:
        """The host and port that are listened at."""
        if self._bound is None:
            raise ValueError(f"invalid operation on non-started {type(self).__name__}")
        return self._bound

    @property
    def listen_address(self) -> str:
        return self.prefix + unparse_host_port(*self.get_host_port())

    @property
    def contact_address(self) -> str:
        host, port = self.get_host_port()
        host = ensure_concrete_host(host, default_host=settings.get("contact-host") or self.default_host)
        return self.prefix + unparse_host_port(host, port)


class TowlinesConnector(_Encrypted, TowlineConnector):
    """Connects to ``towlines://`` addresses."""


class TowlinesListener(_Encrypted, TowlineListener):
    """Listens at a ``towlines://`` address."""


class TowlineBackend(Backend):
    """``towline://``"""

    _connector: ClassVar[type[TowlineConnector]] = TowlineConnector
    _listener: ClassVar[type[TowlineListener]] = TowlineListener

    def get_connector(self) -> TowlineConnector:
        return self._connector()

    def get_listener(
        self, loc: str, handle_comm: Callable[[TowlineComm], Awaitable[None]], deserialize: bool, **arguments: Any
    ) -> TowlineListener:
        return self._listener(loc, handle_comm, deserialize, **arguments)

    def get_address_host(self, loc: str) -> str:
        return str(parse_host_port(loc)[0])

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        host, port = parse_host_port(loc)
        return host, port

    def resolve_address(self, loc: str) -> str:
        host, port = parse_host_port(loc)
        return str(unparse_host_port(ensure_ip(host), port))

    def get_local_address_for(self, loc: str) -> str:
        host, _port = parse_host_port(loc)
        host = ensure_ip(host)
        local = get_ipv6(host) if ":" in host else get_ip(host)
        return str(unparse_host_port(local, None))


class TowlinesBackend(TowlineBackend):
    """``towlines://``"""

    _connector = TowlinesConnector
    _listener = TowlinesListener


def _socket_address(address: tuple[str, int] | None) -> tuple[str, int]:
    if address is None:
        raise RuntimeError("the connection has no socket")
    return address
