"""Moves buffers between processes with as few copies as the hardware allows.

Both ends negotiate the fastest path that they have in common: a hand-over within a process, shared memory within a
host, sockets or UCX between hosts:

    >>> import asyncio, towline
    >>> async def main():
    ...     endpoint = towline.Endpoint()
    ...     async with await endpoint.listen("towline://127.0.0.1:0") as listener:
    ...         near = await endpoint.connect(listener.address)
    ...         far = await listener.accept()
    ...         await near.send(b"numbers", [bytearray(1_000_000)])
    ...         message = await far.recv()
    ...         print(message.header, len(message.frames[0]))
    >>> asyncio.run(main())
    b'numbers' 1000000

Frames to send are any objects with contiguous bytes (``bytes``, ``memoryview``, NumPy arrays, PyArrow buffers), or
tensors that export DLPack. They are not copied, and must not change until ``send`` returns. Received frames are
writable, and each has memory of its own.
"""

from __future__ import annotations

from ._aio import Connection, Endpoint, Listener
from ._incoming import Incoming
from ._message import Message, SupportsDLPack
from ._region import Region, WritableRegion
from ._state import Prefetch
from ._towline import Frame, RemoteRegion, Tls
from .errors import (
    ClosedError,
    CorruptError,
    Error,
    IncompatibleError,
    InvalidError,
    PeerLostError,
    RefusedError,
    RejectedError,
    TimedOutError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)

__all__ = [
    "ClosedError",
    "Connection",
    "CorruptError",
    "Endpoint",
    "Error",
    "Frame",
    "IncompatibleError",
    "Incoming",
    "InvalidError",
    "Listener",
    "Message",
    "PeerLostError",
    "Prefetch",
    "RefusedError",
    "Region",
    "RejectedError",
    "RemoteRegion",
    "SupportsDLPack",
    "TimedOutError",
    "Tls",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "WritableRegion",
]
