"""The package's main types: awaitable calls over the handles of ``_towline``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._incoming import Incoming
from ._loop import current, ended
from ._message import Message, SupportsDLPack
from ._region import Region, WritableRegion
from ._state import ConnectionState, EndpointState, ListenerState, Prefetch
from ._towline import Frame, RemoteRegion

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Endpoint(EndpointState):
    """The entry point of a process. It listens at addresses, and connects to others.

    :param token: a secret that every peer must have, 1 to 4096 bytes. It is never sent.
    :param tls: the certificates of ``tls://`` and ``towlines://`` addresses.
    :param trust_user: trust every process of this user on this host as if it had the token.
    :param insecure: let a listener beyond loopback accept any peer, without a token and without TLS.
    :param wait: ``"sleep"``, ``"spin"`` or ``"adaptive"``: how the endpoint's thread waits.
    :param linger: the seconds that a graceful close may take, 5 by default.
    :param heartbeat: a peer that is silent for 3.5 times these seconds is lost. 3 by default.
    :param pool_bytes: how much memory for received frames is kept for reuse.
    :param pool_idle_time: after how many seconds unused memory is freed. By default it is kept.
    """

    __slots__ = ()

    async def listen(self, address: str) -> Listener:
        """Listen at an address, such as ``towline://127.0.0.1:0``. Port 0 is a port that the system chooses."""
        loop = current()
        return Listener(await ended(loop, self._inner.listen(loop, address)))

    async def connect(self, address: str, *, prefetch: Prefetch | None = Prefetch()) -> Connection:
        """Connect to a listener's address."""
        loop = current()
        return Connection(await ended(loop, self._inner.connect(loop, address)), prefetch)

    async def close(self) -> None:
        """Close all listeners and connections in good order."""
        loop = current()
        await ended(loop, self._inner.close(loop))

class Listener(ListenerState):
    """Listens at one address. ``async with`` closes it, and ``async for`` yields connections.

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("towline://127.0.0.1:0") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         async for far in listener:
    ...             await far.send(b"welcome")
    ...             break
    ...         print((await near.recv()).header)
    >>> asyncio.run(main())
    b'welcome'
    """

    __slots__ = ()

    async def accept(self, *, prefetch: Prefetch | None = Prefetch()) -> Connection:
        """Return the next connection."""
        loop = current()
        return Connection(await ended(loop, self._inner.accept(loop)), prefetch)

    async def __aiter__(self) -> AsyncIterator[Connection]:
        while True:
            yield await self.accept()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Connection(ConnectionState):
    """A connection to one peer, for messages in both directions at once. ``async with`` closes it.

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("towline://127.0.0.1:0") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         far = await listener.accept()
    ...         async with near:
    ...             await near.send_packed([b"any", b"number", b"of", b"frames"])
    ...             print([bytes(frame) for frame in await far.recv_packed()])
    ...             await near.send(b"the last one")
    ...         # What was sent before the end is received. Then the end is an exception.
    ...         print((await far.recv()).header)
    ...         try:
    ...             await far.recv()
    ...         except towline.ClosedError:
    ...             print(type(far.close_reason).__name__, far.stats()["messages_received"])
    >>> asyncio.run(main())
    [b'any', b'number', b'of', b'frames']
    b'the last one'
    ClosedError 2
    """

    __slots__ = ()

    async def send(self, header: Buffer = b"", frames: Iterable[Buffer | SupportsDLPack] = ()) -> None:
        """Send a message. Returns once the frames may change again. They stay alive until then.

        Cancelling detaches the call: the message is still sent.
        """
        loop = current()
        await ended(loop, self._inner.send(loop, header, frames))

    async def send_packed(self, frames: Iterable[Buffer | SupportsDLPack]) -> None:
        """Send any number of frames as one message, small ones together. ``recv_packed`` returns them."""
        loop = current()
        await ended(loop, self._inner.send_packed(loop, frames))

    async def recv(self) -> Message:
        """Return the next message. Cancelling loses nothing."""
        loop = current()
        return Message(*await ended(loop, self._inner.recv(loop)))

    async def recv_packed(self) -> list[memoryview]:
        """Return the frames of the next message, which ``send_packed`` sent."""
        loop = current()
        frames: list[memoryview] = await ended(loop, self._inner.recv_packed(loop))
        return frames

    async def incoming(self) -> Incoming:
        """Return the next message as soon as its header is here, to choose the memory of its payload.

        For connections with ``prefetch=None``: the others receive ahead. Cancelling loses nothing.
        """
        loop = current()
        return Incoming(await ended(loop, self._inner.incoming(loop)))

    def expose(self, buffer: Buffer | SupportsDLPack, *, lifetime: float | None = None) -> Region:
        """Let the peer read an object's bytes, until the region is closed or these seconds have passed.

        The object stays where it is until the region is closed. A ``get`` reads it as it is at that moment.
        """
        return Region(self._inner.expose(current(), buffer, lifetime))

    def expose_writable(self, size: int, *, lifetime: float | None = None) -> WritableRegion:
        """Let the peer write new memory of so many zeroes, until the region is closed or these seconds have passed."""
        return WritableRegion(self._inner.expose_writable(size, lifetime))

    async def get(self, remote: RemoteRegion, *, offset: int = 0, size: int | None = None) -> Frame:
        """Read the peer's exposed memory into a fresh frame: ``size`` bytes, or all behind ``offset``."""
        loop = current()
        frame: Frame = await ended(loop, self._inner.get(loop, remote, offset, size))
        return frame

    async def get_into(
        self, remote: RemoteRegion, buffer: Buffer | SupportsDLPack, *, offset: int = 0, size: int | None = None
    ) -> None:
        """Read the peer's exposed memory into the start of a writable buffer, which keeps its size meanwhile.

        A call that is cancelled may still write the buffer.
        """
        loop = current()
        await ended(loop, self._inner.get(loop, remote, offset, size, buffer))

    async def put(self, remote: RemoteRegion, data: Buffer | SupportsDLPack, *, offset: int = 0) -> None:
        """Write the peer's exposed memory. Returns once the bytes are there.

        Do not change ``data`` until then. Cancelling detaches the call.
        """
        loop = current()
        await ended(loop, self._inner.put(loop, remote, offset, data))

    async def close(self) -> None:
        """Send what is queued, and end the connection in good order."""
        loop = current()
        await ended(loop, self._inner.close(loop))

    async def explain(self) -> str:
        """Return which path was chosen, and why no other."""
        loop = current()
        text: str = await ended(loop, self._inner.explain(loop))
        return text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self.abort()
