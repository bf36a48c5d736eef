"""What the tests share: a pair of connections over a scheme, and bounded waits."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import towline

SOON = 20.0
"""Seconds after which a wait is a failure."""

SCHEMES = ["tcp://127.0.0.1:0", "shm://127.0.0.1:0", "towline://127.0.0.1:0", "mem://"]


REQUIRED = "python" in os.environ.get("TOWLINE_REQUIRE", "").split(",")
"""Whether what requirements.txt has must be there."""


def library(name: str) -> Any:
    """Import a library. Skip the test if it is not installed and not required."""
    return importlib.import_module(name) if REQUIRED else pytest.importorskip(name)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new asyncio loop, for a bounded time."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, 50)

    return asyncio.run(bounded())


@asynccontextmanager
async def connected(
    address: str = "tcp://127.0.0.1:0", *, accept: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[towline.Connection, towline.Connection]]:
    """Two ends of a connection between two endpoints of this process. ``accept`` is for the second end."""
    near_end = towline.Endpoint(**options)
    far_end = near_end if address.startswith("mem") else towline.Endpoint(**options)
    async with await far_end.listen(address) as listener:
        accepted = asyncio.ensure_future(listener.accept(**(accept or {})))
        near = await near_end.connect(listener.address)
        far = await accepted
        try:
            yield near, far
        finally:
            near.abort()
            far.abort()
    await near_end.close()
    await far_end.close()


async def collect() -> None:
    """Run the collector once asyncio itself has let go: it holds a task's result until the next round of the loop."""
    await asyncio.sleep(0.01)
    gc.collect()


async def until(condition: Callable[[], bool], what: str, seconds: float = SOON) -> float:
    """Wait for a condition, and return the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.001)
    return time.monotonic() - start


def until_now(condition: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    """Wait for a condition outside a loop, with the collector's help."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds} s"
        gc.collect()
        time.sleep(0.005)


def descriptors() -> dict[str, str]:
    """Return this process's descriptors, with what each is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
    return found
