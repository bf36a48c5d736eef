"""Memory that the peer reads or writes by itself."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from . import _towline
from ._loop import current, ended
from ._state import RegionState


class Exposed(RegionState):
    """Exposed memory. ``async with`` closes it, and dropping it ends the peer's access."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = current()
        await ended(loop, self._inner.close(loop))


class Region(Exposed):
    """An object's memory that the peer may read. The object keeps its place and its size until it is closed.

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("mem://") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         far = await listener.accept()
    ...         async with near.expose(b"apples, pears, plums") as region:
    ...             await near.send(bytes(region.remote))
    ...             remote = towline.RemoteRegion((await far.recv()).header)
    ...             print(len(remote), bytes(await far.get(remote, offset=8, size=5)))
    ...         try:
    ...             await far.get(remote)
    ...         except towline.RejectedError:
    ...             print("revoked")
    >>> asyncio.run(main())
    20 b'pears'
    revoked
    """

    __slots__ = ()

    async def close(self) -> None:
        """End the peer's access, and wait until none is under way. Then the object is free again."""
        loop = current()
        await ended(loop, self._inner.close(loop))


class WritableRegion(Exposed):
    """Memory that the peer may write. It is a frame once it is closed.

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("mem://") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         far = await listener.accept()
    ...         region = near.expose_writable(8)
    ...         await far.put(region.remote, b"line", offset=3)
    ...         print(bytes(await region.close()))
    >>> asyncio.run(main())
    b'\\x00\\x00\\x00line\\x00'
    """

    __slots__ = ()

    async def close(self) -> _towline.Frame | None:
        """End the peer's access, and wait until none is under way. Return what it wrote. ``None`` if closed before."""
        loop = current()
        frame: _towline.Frame | None = await ended(loop, self._inner.close(loop))
        return frame
