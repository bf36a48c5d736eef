"""Sent objects stay pinned until their bytes have left, and are released afterwards, on the loop's thread."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from typing import Any

import pytest
import towline
from links import SCHEMES, collect, connected, run, until, until_now
from towline._loop import current

LARGE = 48 << 20


class Pinned(bytearray):
    """A bytearray with weak references, that notes which thread released it."""

    released_by: list[int] = []

    def __del__(self) -> None:
        self.released_by.append(threading.get_ident())


@pytest.mark.parametrize("scheme", ["tcp://127.0.0.1:0", "shm://127.0.0.1:0"])
def test_an_object_is_pinned_until_its_bytes_have_left(scheme: str) -> None:
    async def main() -> None:
        async with connected(scheme) as (near, far):
            content = Pinned(LARGE)
            task = asyncio.ensure_future(near.send(b"", [content]))
            await asyncio.sleep(0.01)
            assert not task.done()
            with pytest.raises(BufferError):
                content.append(1)
            assert current().pinned_bytes() == LARGE
            message = await far.recv()
            await task
            await until(lambda: current().pinned_bytes() == 0, "the object is released")
            content.append(1)
            assert len(message.frames[0]) == LARGE

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_object_that_nobody_else_holds_lives_until_its_bytes_have_left(scheme: str) -> None:
    async def main() -> None:
        Pinned.released_by.clear()
        async with connected(scheme) as (near, far):
            content = Pinned(LARGE)
            there = weakref.ref(content)
            task = asyncio.ensure_future(near.send(b"", [content]))
            del content
            await asyncio.sleep(0)
            message = await far.recv()
            await task
            assert len(message.frames[0]) == LARGE
            await until(lambda: there() is None, "the object is released")
            assert Pinned.released_by == [threading.get_ident()]

    run(main())


@pytest.mark.parametrize("size", [10, 20_000, 4 << 20])
def test_sending_leaves_no_reference(size: int) -> None:
    async def main() -> None:
        async with connected() as (near, far):
            content = bytes(size)
            before = sys.getrefcount(content)
            for _ in range(50):
                _, message = await asyncio.gather(near.send(b"", [content]), far.recv())
                assert len(message.frames[0]) == size
            await until(lambda: sys.getrefcount(content) == before, "the references are dropped")

    run(main())


def test_objects_are_released_when_the_connection_is_lost() -> None:
    async def main() -> None:
        endpoint = towline.Endpoint()
        async with await endpoint.listen("tcp://127.0.0.1:0") as listener:
            near = await endpoint.connect(listener.address)
            # Nobody receives, so the send waits.
            far = await listener.accept(prefetch=None)
            content = Pinned(LARGE)
            there = weakref.ref(content)
            task = asyncio.ensure_future(near.send(b"", [content]))
            await asyncio.sleep(0.01)
            far.abort()
            with pytest.raises((towline.PeerLostError, towline.ClosedError)):
                await task
            del content, task
            await collect()
            await until(lambda: there() is None, "the object is released")

    run(main())


def test_an_object_of_a_closed_loop_is_released_by_the_next_one() -> None:
    there: list[weakref.ref[Any]] = []
    ends: list[towline.Connection] = []

    async def leave_a_send() -> None:
        endpoint = towline.Endpoint()
        listener = await endpoint.listen("tcp://127.0.0.1:0")
        accepted = asyncio.ensure_future(listener.accept(prefetch=None))
        near = await endpoint.connect(listener.address)
        ends.extend([near, await accepted])
        content = Pinned(LARGE)
        there.append(weakref.ref(content))
        task = asyncio.ensure_future(near.send(b"", [content]))
        await asyncio.sleep(0.01)
        assert not task.done()
        listener.close()

    run(leave_a_send())
    gc.collect()
    assert there[0]() is not None, "its bytes have not left"
    for end in ends:
        end.abort()

    async def one_call() -> None:
        async with connected() as (near, far):
            await near.send(b"next")
            await far.recv()

    def released() -> bool:
        run(one_call())
        return there[0]() is None

    until_now(released, "the object is released")


def test_received_memory_is_freed_with_its_frame() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            await asyncio.gather(near.send(b"", [bytes(LARGE)]), received := asyncio.ensure_future(far.recv()))
            (frame,) = received.result().frames
            view = memoryview(frame)
            there = weakref.ref(frame)
            del frame, received
            await collect()
            assert there() is not None, "the view holds it"
            del view
            await collect()
            assert there() is None

    run(main())


def test_dropping_a_large_frame_does_not_hold_the_interpreter() -> None:
    size = 256 << 20

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def main() -> None:
        async with connected(pool_bytes=0) as (near, far):
            content, shortest = bytes(size), 1.0
            for _ in range(4):
                received = asyncio.ensure_future(far.recv())
                await asyncio.gather(near.send(b"", [content]), received)
                (frame,) = received.result().frames
                del received
                # asyncio itself lets go.
                await asyncio.sleep(0.01)
                assert sys.getrefcount(frame) == 2
                before = resident()
                # The time of this thread alone: another process may have its processor meanwhile.
                start = time.thread_time()
                del frame
                shortest = min(shortest, time.thread_time() - start)
                await until(lambda before=before: resident() < before - size // 2, "the memory is freed")
            # Unmapping takes 600 µs in huge pages, and far more in others.
            assert shortest < 0.0003

    run(main())


def test_a_forked_child_frees_large_frames() -> None:
    async def main() -> list[towline.Frame]:
        async with connected(pool_bytes=0) as (near, far):
            received = await asyncio.gather(far.recv(), near.send(b"", [bytes(8 << 20)] * 3))
            return received[0].frames

    frames = run(main())
    # Starts the thread of this process.
    frames.pop()
    pid = os.fork()
    if pid == 0:
        frames.clear()
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert memoryview(frames[0])[-1] == 0
