"""The same classes for scripts and threads without an event loop: calls wait until they are done.

    >>> import threading
    >>> from towline import blocking
    >>> endpoint = blocking.Endpoint()
    >>> listener = endpoint.listen("towline://127.0.0.1:0")
    >>> def serve():
    ...     with listener.accept() as connection:
    ...         connection.send(b"sum", [bytes([sum(bytes(connection.recv().frames[0]))])])
    >>> thread = threading.Thread(target=serve)
    >>> thread.start()
    >>> with endpoint.connect(listener.address) as connection:
    ...     connection.send(b"numbers", [bytes([1, 2, 3])])
    ...     message = connection.recv(timeout=10)
    >>> message.header, bytes(message.frames[0])
    (b'sum', b'\\x06')
    >>> thread.join()
    >>> endpoint.close()

Any thread may make any call, several at once on one object. A call that waits lets other threads run. It raises
``TimedOutError`` after ``timeout`` seconds, and a signal's handler may end it by an exception, as Ctrl-C does. Such a
call is cancelled: a ``recv`` loses no message, a ``send`` is still sent, and buffers to receive into may still be
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._message import Message, SupportsDLPack
from ._state import ConnectionState, EndpointState, IncomingState, ListenerState, Prefetch, RegionState
from ._thread import call, queue
from ._towline import Frame, RemoteRegion

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Connection", "Endpoint", "Incoming", "Listener", "Region", "WritableRegion"]


class Endpoint(EndpointState):
    """The entry point of a process, as :class:`towline.Endpoint`, whose arguments it has."""

    __slots__ = ()

    def listen(self, address: str, *, timeout: float | None = None) -> Listener:
        """Listen at an address."""
        return Listener(call(self._inner.listen, timeout, address))

    def connect(
        self, address: str, *, prefetch: Prefetch | None = Prefetch(), timeout: float | None = None
    ) -> Connection:
        """Connect to a listener's address."""
        return Connection(call(self._inner.connect, timeout, address), prefetch)

    def close(self, *, timeout: float | None = None) -> None:
        """Close all listeners and connections in good order."""
        call(self._inner.close, timeout)


class Listener(ListenerState):
    """Listens at one address. ``with`` closes it, and ``for`` yields connections."""

    __slots__ = ()

    def accept(self, *, prefetch: Prefetch | None = Prefetch(), timeout: float | None = None) -> Connection:
        """Return the next connection."""
        return Connection(call(self._inner.accept, timeout), prefetch)

    def __iter__(self) -> Iterator[Connection]:
        while True:
            yield self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Connection(ConnectionState):
    """A connection to one peer, as :class:`towline.Connection`. ``with`` closes it."""

    __slots__ = ()

    def send(
        self,
        header: Buffer = b"",
        frames: Iterable[Buffer | SupportsDLPack] = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Send a message. Returns once the frames may change again."""
        call(self._inner.send, timeout, header, frames)

    def send_packed(self, frames: Iterable[Buffer | SupportsDLPack], *, timeout: float | None = None) -> None:
        """Send any number of frames as one message, small ones together. ``recv_packed`` returns them."""
        call(self._inner.send_packed, timeout, frames)

    def recv(self, *, timeout: float | None = None) -> Message:
        """Return the next message."""
        return Message(*call(self._inner.recv, timeout))

    def recv_packed(self, *, timeout: float | None = None) -> list[memoryview]:
        """Return the frames of the next message, which ``send_packed`` sent."""
        frames: list[memoryview] = call(self._inner.recv_packed, timeout)
        return frames

    def incoming(self, *, timeout: float | None = None) -> Incoming:
        """Return the next message as soon as its header is here. For connections with ``prefetch=None``."""
        return Incoming(call(self._inner.incoming, timeout))

    def expose(self, buffer: Buffer | SupportsDLPack, *, lifetime: float | None = None) -> Region:
        """Let the peer read an object's bytes, until the region is closed or these seconds have passed."""
        return Region(self._inner.expose(queue(), buffer, lifetime))

    def expose_writable(self, size: int, *, lifetime: float | None = None) -> WritableRegion:
        """Let the peer write new memory of so many zeroes, until the region is closed or these seconds have passed."""
        return WritableRegion(self._inner.expose_writable(size, lifetime))

    def get(
        self, remote: RemoteRegion, *, offset: int = 0, size: int | None = None, timeout: float | None = None
    ) -> Frame:
        """Read the peer's exposed memory into a fresh frame: ``size`` bytes, or all behind ``offset``."""
        frame: Frame = call(self._inner.get, timeout, remote, offset, size)
        return frame

    def get_into(
        self,
        remote: RemoteRegion,
        buffer: Buffer | SupportsDLPack,
        *,
        offset: int = 0,
        size: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Read the peer's exposed memory into the start of a writable buffer."""
        call(self._inner.get, timeout, remote, offset, size, buffer)

    def put(
        self,
        remote: RemoteRegion,
        data: Buffer | SupportsDLPack,
        *,
        offset: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Write the peer's exposed memory. Returns once the bytes are there."""
        call(self._inner.put, timeout, remote, offset, data)

    def close(self, *, timeout: float | None = None) -> None:
        """Send what is queued, and end the connection in good order."""
        call(self._inner.close, timeout)

    def explain(self, *, timeout: float | None = None) -> str:
        """Return which path was chosen, and why no other."""
        text: str = call(self._inner.explain, timeout)
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()


class Incoming(IncomingState):
    """A message whose header has arrived, as :class:`towline.Incoming`. Dropping it rejects it.

    >>> from towline import blocking
    >>> endpoint = blocking.Endpoint()
    >>> with endpoint.listen("mem://") as listener:
    ...     near = endpoint.connect(listener.address)
    ...     far = listener.accept(prefetch=None)
    >>> near.send(b"numbers", [b"one", b"two"])
    >>> incoming = far.incoming(timeout=10)
    >>> one = bytearray(incoming.sizes[0])
    >>> incoming.accept_into([one, None])
    >>> one
    bytearray(b'one')
    """

    __slots__ = ()

    def accept(self, *, timeout: float | None = None) -> Message:
        """Receive the message into fresh memory. After a timeout the message is dropped."""
        return Message(*call(self._inner.accept, timeout))

    def accept_into(
        self, buffers: Iterable[Buffer | SupportsDLPack | None], *, timeout: float | None = None
    ) -> None:
        """Receive each frame into the start of a writable buffer. ``None`` discards the frame."""
        call(self._inner.accept_into, timeout, buffers)


class Region(RegionState):
    """An object's memory that the peer may read. ``with`` closes it."""

    __slots__ = ()

    def close(self, *, timeout: float | None = None) -> None:
        """End the peer's access, and wait until none is under way. Then the object is free again."""
        call(self._inner.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WritableRegion(RegionState):
    """Memory that the peer may write. It is a frame once it is closed. ``with`` closes it."""

    __slots__ = ()

    def close(self, *, timeout: float | None = None) -> Frame | None:
        """End the peer's access, and wait until none is under way. Return what it wrote. ``None`` if closed before."""
        frame: Frame | None = call(self._inner.close, timeout)
        return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
