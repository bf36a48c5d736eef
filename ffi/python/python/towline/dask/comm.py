"""One end of a connection, as Dask uses it."""

from __future__ import annotations

import asyncio
import logging
import weakref
from functools import partial
from typing import Any

from dask.utils import parse_bytes
from distributed.comm.core import Comm, CommClosedError
from distributed.comm.utils import from_frames, to_frames
from distributed.utils import nbytes

import towline
from towline import _towline
from towline._loop import current, ended

from . import counters, settings

logger = logging.getLogger(__name__)

# Dask would cut frames into shards and merge them with a copy. A frame of ours has any length.
_NEVER_SPLIT = 2**62


class TowlineComm(Comm):
    """A connection over Towline."""

    def __init__(
        self, inner: _towline.Connection, local_address: str, peer_address: str, deserialize: bool = True
    ) -> None:
        self._inner = inner
        # One receive is always in progress: the next message arrives while Dask handles this one, and a lost peer
        # is noticed though nobody reads.
        inner.prefetch(*towline.Prefetch())
        self._closed = False
        # Dask reads these two.
        self._local_addr = local_address
        self._peer_addr = peer_address
        super().__init__(deserialize=deserialize)
        # Dask keeps closed comms for longer than their loop, whose descriptor would stay with them.
        self._weak_loop = weakref.ref(current())
        self._writing_bytes = 0
        self._write_buffer = parse_bytes(settings.get("write-buffer"))
        # What stays on this host needs no encryption, and gets none.
        is_local = inner.path in ("mem", "shm")
        self._extra = {"path": inner.path, "encryption": "local" if is_local else inner.encryption}
        self._path: str = inner.path
        counters.opened(self)
        logger.info("%s to %s: path %s, encryption %s", local_address, peer_address, *self._extra.values())
        self._finalizer = weakref.finalize(self, _abort_dangling, inner, repr(self))
        self._finalizer.atexit = False

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    @property
    def extra_info(self) -> dict[str, Any]:
        """The path that was chosen, and how it is encrypted."""
        return self._extra

    async def read(self, deserializers: Any = None) -> Any:
        try:
            event_loop = self._event_loop()
            frames = await ended(event_loop, self._inner.recv_packed(event_loop))
        except towline.Error as error:
            self.abort()
            raise self._comm_closed(error) from error
        except BaseException:
            # Dask relies on it: a cancelled read closes the comm.
            self.abort()
            raise
        counters.received(self._path, sum(map(nbytes, frames)))
        try:
            return await from_frames(
                frames,
                deserialize=self.deserialize,
                deserializers=deserializers,
                allow_offload=self.allow_offload,
            )
        except EOFError:
            self.abort()
            raise CommClosedError("aborted stream on truncated data") from None

    async def write(self, msg: Any, serializers: Any = None, on_error: str | None = "message") -> int:
        self._check_open()
        frames = await to_frames(
            msg,
            allow_offload=self.allow_offload,
            serializers=serializers,
            on_error=on_error,
            context={"sender": self.local_info, "recipient": self.remote_info, **self.handshake_options},
            frame_split_size=_NEVER_SPLIT,
        )
        self._check_open()
        size: int = sum(map(nbytes, frames))
        try:
            started = self._inner.send_packed(self._event_loop(), frames)
            if isinstance(started, _towline.Pending):
                self._writing_bytes += size
                started.future.add_done_callback(partial(self._written, size))
                if self._writing_bytes > self._write_buffer:
                    await asyncio.wait([started.future])
        except towline.Error as error:
            self.abort()
            raise self._comm_closed(error) from error
        except BaseException:
            self.abort()
            raise
        counters.sent(self._path, size)
        return size

    def _written(self, size: int, future: asyncio.Future[None]) -> None:
        self._writing_bytes -= size
        if not future.cancelled() and future.exception() is not None:
            self.abort()

    async def close(self) -> None:
        """Send what was written, and end the connection in good order."""
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        try:
            event_loop = self._event_loop()
            await ended(event_loop, self._inner.close(event_loop))
        except towline.Error as error:
            logger.debug("Closing %r: %s", self, error)
        except BaseException:
            self._inner.abort()
            raise

    def abort(self) -> None:
        """End the connection now."""
        if not self._closed:
            self._closed = True
            self._finalizer.detach()
            self._inner.abort()

    def closed(self) -> bool:
        """Whether either end has closed the connection, or the peer is gone."""
        return self._closed or self._inner.closed()

    def _event_loop(self) -> _towline.EventLoop:
        event_loop = self._weak_loop()
        if event_loop is None:
            raise CommClosedError(f"in {self}: its event loop is closed")
        return event_loop

    def _check_open(self) -> None:
        if self.closed():
            reason = None if self._closed else self._inner.close_reason()
            raise CommClosedError(f"in {self}: {reason or 'it was closed here'}")

    def _comm_closed(self, error: towline.Error) -> CommClosedError:
        return CommClosedError(f"in {self}: {error}")


def _abort_dangling(inner: _towline.Connection, text: str) -> None:
    if not inner.closed():
        logger.warning("Closing dangling comm in %s", text)
        inner.abort()
