"""Announced messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._loop import current, ended
from ._message import Message, SupportsDLPack
from ._state import IncomingState

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Incoming(IncomingState):
    """A message whose header has arrived and whose payload has no memory yet. Accept it, or reject it.

    Dropping it rejects it. The messages behind it wait until then.

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("mem://") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         far = await listener.accept(prefetch=None)
    ...         await near.send(b"image", [b"pixels", b"thumbnail"])
    ...         incoming = await far.incoming()
    ...         print(incoming.header, incoming.sizes)
    ...         pixels = bytearray(b"------------")
    ...         await incoming.accept_into([pixels, None])
    ...         print(pixels)
    >>> asyncio.run(main())
    b'image' [6, 9]
    bytearray(b'pixels------')
    """

    __slots__ = ()

    async def accept(self) -> Message:
        """Receive the message into fresh memory. Cancelling drops the message."""
        loop = current()
        return Message(*await ended(loop, self._inner.accept(loop)))

    async def accept_into(self, buffers: Iterable[Buffer | SupportsDLPack | None]) -> None:
        """Receive each frame into the start of a writable buffer. ``None`` discards the frame.

        The buffers keep their size and their place until the call ends. A call that is cancelled may still write
        them, until the message has arrived. Wrong buffers raise an exception, and the message can still be accepted.
        """
        loop = current()
        await ended(loop, self._inner.accept_into(loop, buffers))
