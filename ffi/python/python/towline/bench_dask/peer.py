"""The process at the other end: it listens by every scheme, takes messages, and confirms each."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any, NamedTuple

import dask
from distributed import Security
from distributed.comm.core import Comm, CommClosedError, connect, listen


class Way(NamedTuple):
    """One way to connect the two processes."""

    name: str
    scheme: str
    """The scheme of Dask's addresses."""
    transport: str | None = None
    """The value of ``towline.transport``."""


WAYS = {
    way.name: way
    for way in (
        Way("tcp", "tcp"),
        Way("towline", "towline"),
        Way("towline over tcp", "towline", "tcp"),
        Way("tls", "tls"),
        Way("towlines over tcp", "towlines", "tcp"),
    )
}
_CERTIFICATES = ("tls_ca_file", "tls_client_key", "tls_client_cert", "tls_scheduler_key", "tls_scheduler_cert")


def certificates() -> dict[str, str]:
    """Make certificates for both processes."""
    temporary = Security.temporary()
    return {name: getattr(temporary, name) for name in _CERTIFICATES}


async def connected(way: Way, address: str, made: dict[str, str]) -> Comm:
    """Connect to the other process."""
    with dask.config.set({"towline.transport": way.transport}):
        comm: Comm = await connect(address, timeout=20, **_security(made).get_connection_args("client"))
        return comm


def _security(made: dict[str, str]) -> Security:
    # Not required: the same processes also connect without it.
    return Security(require_encryption=False, **made)


class _BusyThread:
    """Holds the interpreter's lock whenever it can."""

    def __init__(self) -> None:
        self._is_wanted = False

    def set(self, is_wanted: bool) -> None:
        if is_wanted and not self._is_wanted:
            threading.Thread(target=self._work, daemon=True).start()
        self._is_wanted = is_wanted

    def _work(self) -> None:
        self._is_wanted = True
        while self._is_wanted:
            pass


async def _take(busy: _BusyThread, comm: Comm) -> None:
    try:
        while True:
            message = await comm.read()
            if "busy" in message:
                busy.set(message["busy"])
            data = message.get("data")
            taken = 0 if data is None else int(data[0]) + int(data[-1]) + data.nbytes
            await comm.write({"taken": taken, "cpu_s": time.process_time()})
    except CommClosedError:
        pass


async def _serve(wait: str, made: dict[str, str]) -> None:
    busy, addresses, listeners = _BusyThread(), {}, []
    for way in WAYS.values():
        with dask.config.set({"towline.transport": way.transport, "towline.wait": wait}):
            arguments = _security(made).get_listen_args("scheduler")
            listener = listen(f"{way.scheme}://127.0.0.1:0", lambda comm: _take(busy, comm), **arguments)
            await listener.start()
        listeners.append(listener)
        addresses[way.name] = listener.contact_address
    print(json.dumps(addresses), flush=True)
    # The other process closes this one's input when it ends, however it ends.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


class Peer:
    """The other process, from the measuring one. It ends with the block."""

    def __init__(self, wait: str, made: dict[str, str]) -> None:
        self._wait = wait
        self._made = made
        self.addresses: dict[str, str] = {}

    async def __aenter__(self) -> Peer:
        program = (sys.executable, "-m", __name__)
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, limit=1 << 20)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"wait": self._wait, "made": self._made}).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        if not line:
            raise RuntimeError("the other process ended before it listened; its error is above")
        self.addresses = json.loads(line)
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _main() -> None:
    options: dict[str, Any] = json.loads(sys.stdin.readline())
    asyncio.run(_serve(**options))


if __name__ == "__main__":
    _main()
