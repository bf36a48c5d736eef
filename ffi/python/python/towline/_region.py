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
    """An object's memory that the peer may read. The object keeps its place and its size until it is closed."""

    __slots__ = ()

    async def close(self) -> None:
        """End the peer's access, and wait until none is under way. Then the object is free again."""
        loop = current()
        await ended(loop, self._inner.close(loop))


class WritableRegion(Exposed):
    """Memory that the peer may write. It is a frame once it is closed."""

    __slots__ = ()

    async def close(self) -> _towline.Frame | None:
        """End the peer's access, and wait until none is under way. Return what it wrote. ``None`` if closed before."""
        loop = current()
        frame: _towline.Frame | None = await ended(loop, self._inner.close(loop))
        return frame
