"""A cancelled call loses no message and no connection, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from typing import Any

import pytest
import towline
from links import SCHEMES, collect, connected, descriptors, run, until
from towline._loop import current
from towline._thread import call


def send_now(connection: towline.Connection, header: bytes) -> None:
    """Send a message while no task of the loop runs, so that no task ends before the test looks."""
    call(connection._inner.send, 10, header, [])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_receive_cancelled_at_any_moment_loses_no_message(scheme: str) -> None:
    rounds = 600

    async def main() -> None:
        async with connected(scheme) as (near, far):
            received: list[int] = []
            cancelled = 0
            for number in range(rounds):
                await near.send(number.to_bytes(4, "little"), [bytes(20_000)] * (number % 3))
                task = asyncio.ensure_future(far.recv())
                # From before its first step to long after the message.
                for _step in range(number % 12):
                    await asyncio.sleep(0)
                if number % 4 == 0:
                    await asyncio.sleep(0.0005 * (number % 5))
                task.cancel()
                try:
                    received.append(int.from_bytes((await task).header, "little"))
                except asyncio.CancelledError:
                    cancelled += 1
                # At most one message may wait here: with large frames, the sender waits for room.
                while len(received) < number:
                    received.append(int.from_bytes((await far.recv()).header, "little"))
            while len(received) < rounds:
                received.append(int.from_bytes((await far.recv()).header, "little"))
            assert received == list(range(rounds))
            assert cancelled > 0

    run(main())


@pytest.mark.parametrize("packed", [False, True])
def test_a_receive_cancelled_between_its_result_and_its_task_loses_no_message(packed: bool) -> None:
    async def main() -> None:
        async with connected() as (near, far):
            event_loop = current()
            lost = 0
            for number in range(100):
                content = number.to_bytes(4, "little")
                task: asyncio.Task[Any] = asyncio.ensure_future(far.recv_packed() if packed else far.recv())
                await asyncio.sleep(0)
                if packed:
                    call(near._inner.send_packed, 10, [content])
                else:
                    send_now(near, content)
                # The call ends inside `advance`, and the task runs in the loop's next round: cancel it in between.
                def ended() -> bool:
                    event_loop.advance()
                    return len(event_loop) == 0

                while not ended():
                    pass
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                received = await far.recv_packed() if packed else await far.recv()
                lost += bytes(received[0]) != content
            assert lost == 0

    run(main())


def test_a_message_that_was_returned_wakes_another_receive() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            event_loop = current()
            first = asyncio.ensure_future(far.recv())
            second = asyncio.ensure_future(far.recv())
            await asyncio.sleep(0)
            send_now(near, b"only")
            while len(event_loop) == 2:
                event_loop.advance()
            # One of the two has the message now, and its task has not run.
            first.cancel()
            second_done, _ = await asyncio.wait([second], timeout=10)
            if not second_done:
                raise AssertionError("the message was lost with the first call")
            assert second.result().header == b"only"
            with pytest.raises(asyncio.CancelledError):
                await first

    run(main())


def test_cancelled_receives_keep_the_order() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            event_loop = current()
            tasks = [asyncio.ensure_future(far.recv()) for _ in range(8)]
            await asyncio.sleep(0)
            for number in range(8):
                send_now(near, str(number).encode())
            while len(event_loop) > 0:
                event_loop.advance()
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [(await far.recv()).header for _ in range(8)] == [str(number).encode() for number in range(8)]

    run(main())


def test_an_accept_cancelled_between_its_result_and_its_task_loses_no_connection() -> None:
    async def main() -> None:
        endpoint = towline.Endpoint()
        event_loop = current()
        async with await endpoint.listen("tcp://127.0.0.1:0") as listener:
            task = asyncio.ensure_future(listener.accept())
            await asyncio.sleep(0)
            address, ends = listener.address, []
            peer = threading.Thread(target=lambda: ends.append(run(endpoint.connect(address))))
            peer.start()
            # The call ends inside `advance`, and the task runs in the loop's next round: cancel it in between.
            while len(event_loop) > 0:
                event_loop.advance()
            task.cancel()
            peer.join()
            (near,) = ends
            with pytest.raises(asyncio.CancelledError):
                await task
            far = await asyncio.wait_for(listener.accept(), 10)
            await near.send(b"there")
            assert (await far.recv()).header == b"there"
        await endpoint.close()

    run(main())


def test_ten_thousand_cancelled_calls_leave_nothing() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            event_loop = current()

            async def cancelled_calls(count: int) -> None:
                tasks = [asyncio.ensure_future(far.recv()) for _ in range(count)]
                await asyncio.sleep(0)
                assert len(event_loop) == count
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert len(event_loop) == 0

            await cancelled_calls(100)
            await collect()
            objects, blocks, open_before = len(gc.get_objects()), sys.getallocatedblocks(), descriptors()
            for _ in range(10):
                await cancelled_calls(1_000)
            await collect()
            assert len(gc.get_objects()) - objects < 500
            assert sys.getallocatedblocks() - blocks < 2_000
            assert descriptors().keys() <= open_before.keys()
            futures = [o for o in gc.get_objects() if isinstance(o, asyncio.Future) and not o.done()]
            assert len(futures) <= 3, futures
            await near.send(b"after")
            assert (await far.recv()).header == b"after"

    run(main())


def test_a_cancelled_connect_leaves_nothing() -> None:
    async def main() -> None:
        endpoint = towline.Endpoint()
        event_loop = current()
        async with await endpoint.listen("tcp://127.0.0.1:0") as listener:
            before = len(descriptors())
            for steps in range(60):
                task = asyncio.ensure_future(endpoint.connect(listener.address))
                for _ in range(steps % 6):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.0002 * (steps % 7))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            del task
            assert len(event_loop) == 0
        await until(lambda: len(descriptors()) <= before, "sockets close")
        await endpoint.close()

    run(main())


def test_a_cancelled_send_still_arrives_and_releases_its_object() -> None:
    class Pinned(bytearray):
        """A bytearray with weak references."""

    async def main() -> None:
        async with connected() as (near, far):
            content = Pinned(64 << 20)
            content[-1] = 7
            there = weakref.ref(content)
            task = asyncio.ensure_future(near.send(b"detached", [content]))
            await asyncio.sleep(0)
            assert not task.done(), "64 MiB do not fit the socket's buffer"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del content, task
            await collect()
            assert there() is not None, "its bytes have not left"
            message = await far.recv()
            assert message.header == b"detached" and memoryview(message.frames[0])[-1] == 7
            await until(lambda: there() is None, "the object is released")

    run(main())
