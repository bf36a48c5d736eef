"""Calls that wait on their own thread. Each thread has a queue of results, with a descriptor to sleep on."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from ._towline import EventLoop, Pending
from .errors import TimedOutError

P = ParamSpec("P")


class _Future:
    """The result of one call: ``None``, or an exception."""

    __slots__ = ("_done", "_error")

    def __init__(self) -> None:
        self._done = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, _result: None) -> None:
        self._done = True

    def set_exception(self, error: BaseException) -> None:
        self._done, self._error = True, error

    def result(self) -> None:
        if self._error is not None:
            raise self._error


class _Waiter(threading.local):
    """A thread's queue. It goes with the thread."""

    def __init__(self) -> None:
        self.pid = 0

    def queue(self) -> EventLoop:
        # A forked child has queues of its own.
        if self.pid != os.getpid():
            self._queue = EventLoop(self)
            self._poll = select.poll()
            self._poll.register(self._queue.fileno(), select.POLLIN)
            self.pid = os.getpid()
        return self._queue

    def create_future(self) -> _Future:
        return _Future()

    def wait(self, started: Any, timeout: float | None) -> Any:
        """Return the value of a call: ``started`` itself, or what it ends with."""
        if not isinstance(started, Pending):
            # Releases what was sent at once.
            self._queue.advance()
            return started
        try:
            end = None if timeout is None else time.monotonic() + timeout
            while not started.future.done():
                # A signal's handler runs meanwhile. What it raises ends the wait.
                is_ready = self._poll.poll(None if end is None else max(0, math.ceil((end - time.monotonic()) * 1000)))
                self._queue.advance()
                if not is_ready and end is not None and time.monotonic() >= end and not started.future.done():
                    raise TimedOutError(f"not done within {timeout} s")
            started.future.result()
            return started.take()
        except BaseException:
            self._queue.cancel(started)
            raise


_waiter = _Waiter()


def queue() -> EventLoop:
    """Return this thread's queue."""
    return _waiter.queue()


def call(
    method: Callable[Concatenate[EventLoop, P], Any], timeout: float | None, /, *args: P.args, **kw: P.kwargs
) -> Any:
    """Make a call and wait for its end, for so many seconds."""
    return _waiter.wait(method(_waiter.queue(), *args, **kw), timeout)
