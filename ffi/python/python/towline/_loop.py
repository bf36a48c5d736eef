"""One ``EventLoop`` for each asyncio loop: the calls in progress there, and the descriptor that wakes it."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any, Protocol

from ._towline import EventLoop, Pending


class MakesFutures(Protocol):
    """An asyncio loop, as far as calls need it."""

    def create_future(self) -> Any:
        """Return a future, which gets its result once it is there."""


# The asyncio loop holds its EventLoop by the reader's callback. The entry must not: a value that holds its key would
# keep both, and their descriptors, for ever.
_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, weakref.ref[EventLoop]]] = (
    weakref.WeakKeyDictionary()
)


def current() -> EventLoop:
    """Return the running loop's ``EventLoop``, which is made at the first call."""
    loop = asyncio.get_running_loop()
    entry = _loops.get(loop)
    if entry is not None and entry[0] == os.getpid():
        event_loop = entry[1]()
        if event_loop is not None:
            return event_loop
    event_loop = EventLoop(loop)
    loop.add_reader(event_loop.fileno(), event_loop.advance)
    _loops[loop] = (os.getpid(), weakref.ref(event_loop))
    return event_loop


async def ended(event_loop: EventLoop, started: Any) -> Any:
    """Return the value of a call: ``started`` itself, or what its future ends with. Cancelling cancels the call."""
    if not isinstance(started, Pending):
        return started
    try:
        await started.future
    except asyncio.CancelledError:
        event_loop.cancel(started)
        raise
    return started.take()
