"""What the tests of the Dask comm share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.comm import connect, listen
from distributed.comm.core import Listener

from towline.dask.comm import TowlineComm

TRANSPORTS = ["towline", "tcp", "shm"]


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own, for at most 50 s."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 50))

    return run


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """The transport beneath: the negotiated one, or one that the configuration fixes."""
    with beneath(request.param):
        yield request.param


@contextlib.contextmanager
def beneath(transport: str) -> Iterator[None]:
    """Let connectors and listeners use ``transport``."""
    with dask.config.set({"towline.transport": None if transport == "towline" else transport}):
        yield


class Accepting:
    """A started listener, and the comms that it accepted."""

    def __init__(self, address: str, **arguments: Any) -> None:
        self._comms: asyncio.Queue[TowlineComm] = asyncio.Queue()
        self.listener: Listener = listen(address, self._comms.put, **arguments)

    async def __aenter__(self) -> Accepting:
        await self.listener.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.listener.stop()

    @property
    def port(self) -> int:
        return int(self.listener.listen_address.rpartition(":")[2])

    async def accepted(self) -> TowlineComm:
        """Return the next comm."""
        return await asyncio.wait_for(self._comms.get(), 20)

    async def pair(self, host: str = "127.0.0.1", **arguments: Any) -> tuple[TowlineComm, TowlineComm]:
        """Connect. Return both ends, the connecting one first."""
        near = await connect(f"towline://{host}:{self.port}", timeout=20, **arguments)
        return near, await self.accepted()


@contextlib.asynccontextmanager
async def pair(**arguments: Any) -> AsyncIterator[tuple[TowlineComm, TowlineComm]]:
    """Both ends of a new connection, which end with the block."""
    async with Accepting("towline://127.0.0.1:0", **arguments) as accepting:
        near, far = await accepting.pair(**arguments)
        try:
            yield near, far
        finally:
            near.abort()
            far.abort()


_PEER = """
import asyncio, os, sys
from pathlib import Path

import dask
from distributed.comm import listen

transport, path = sys.argv[1:]
dask.config.set({"towline.transport": None if transport == "towline" else transport})


async def echo(comm):
    while True:
        message = await comm.read()
        if message == "close":
            await comm.close()
            return
        if message == "abort":
            comm.abort()
            return
        await comm.write(message)


async def main():
    listener = listen("towline://127.0.0.1:0", echo)
    await listener.start()
    Path(path + ".new").write_text(listener.contact_address)
    os.rename(path + ".new", path)
    await asyncio.sleep(50)


asyncio.run(main())
"""


class Peer:
    """Another process, which sends every message back. It ends with the block."""

    def __init__(self, transport: str, folder: Path) -> None:
        self._file = folder / "address"
        self._file.unlink(missing_ok=True)
        command = [sys.executable, "-c", _PEER, transport, str(self._file)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.kill()

    async def address(self) -> str:
        """Return its address, once it listens."""
        until = time.monotonic() + 40
        while not self._file.exists():
            assert self.process.poll() is None and time.monotonic() < until, "the peer does not listen"
            await asyncio.sleep(0.02)
        return self._file.read_text()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until ``condition()`` is true. Return how many seconds it took, which is more than ``seconds`` if it
    never became true."""
    start = time.monotonic()
    while not condition():
        if (passed := time.monotonic() - start) > seconds:
            return passed
        await asyncio.sleep(0.001)
    return time.monotonic() - start


def descriptors() -> int:
    """The number of this process's open descriptors."""
    return len(os.listdir("/proc/self/fd"))
