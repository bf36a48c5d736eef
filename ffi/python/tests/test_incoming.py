"""A receiver sees a message before its payload, and chooses the payload's memory: its own, fresh, or none."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import towline
from links import SCHEMES, connected, run, until
from towline._loop import current

PREFETCH_NONE: dict[str, Any] = {"prefetch": None}
SIZES = [0, 5, 20_000, 3 << 20]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def refused(call: Any, *words: str) -> None:
    with pytest.raises((towline.InvalidError, TypeError, BufferError)) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frames_arrive_in_given_buffers(scheme: str) -> None:
    async def main() -> None:
        async with connected(scheme, accept=PREFETCH_NONE) as (near, far):
            for _ in range(2):
                sent = asyncio.ensure_future(near.send(b"header", [content(size) for size in SIZES]))
                incoming = await far.incoming()
                assert (incoming.header, incoming.sizes) == (b"header", SIZES)
                buffers = [bytearray(b"\xff" * (size + 3)) for size in SIZES]
                assert await incoming.accept_into(buffers) is None
                await sent
                for buffer, size in zip(buffers, SIZES, strict=True):
                    assert buffer == content(size) + b"\xff" * 3
                    # No view of it is left.
                    buffer.clear()
                assert current().pinned_bytes() == 0

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frames_arrive_in_fresh_memory_or_are_discarded(scheme: str) -> None:
    async def main() -> None:
        async with connected(scheme, accept=PREFETCH_NONE) as (near, far):
            frames = [content(size) for size in SIZES]
            sent = [asyncio.ensure_future(near.send(name, frames)) for name in (b"fresh", b"part", b"not", b"last")]
            message = await (await far.incoming()).accept()
            assert message.header == b"fresh"
            for frame, expected in zip(message.frames, frames, strict=True):
                view = memoryview(frame)
                assert view == expected and not view.readonly
            part = bytearray(SIZES[2])
            incoming = await far.incoming()
            assert incoming.header == b"part"
            await incoming.accept_into([None, None, part, None])
            assert part == frames[2]
            incoming = await far.incoming()
            assert incoming.header == b"not"
            incoming.reject()
            last = await far.recv()
            assert last.header == b"last" and [len(frame) for frame in last.frames] == SIZES
            await asyncio.gather(*sent)

    run(main())


def test_wrong_buffers_leave_the_message() -> None:
    async def main() -> None:
        async with connected(accept=PREFETCH_NONE) as (near, far):
            sent = asyncio.ensure_future(near.send(b"", [content(100), content(20_000)]))
            loop, incoming = current(), await far.incoming()
            given = bytearray(100)

            def into(*buffers: Any) -> Any:
                return lambda: incoming._inner.accept_into(loop, buffers)

            refused(into(given), "1 buffers", "2 frames")
            refused(into(given, bytearray(19_999)), "frame 1", "20000", "19999")
            refused(into(given, bytes(20_000)))
            refused(into(given, memoryview(bytearray(40_000))[::2]))
            refused(into(given, 7))
            large = bytearray(20_000)
            await incoming.accept_into([given, large])
            assert (given, large) == (content(100), content(20_000))
            given.append(1)
            await sent
            refused(incoming.reject, "before")

    run(main())


def test_a_connection_that_receives_ahead_says_what_to_do() -> None:
    async def main() -> None:
        async with connected() as (_near, far):
            with pytest.raises(towline.InvalidError, match="prefetch=None"):
                await far.incoming()

    run(main())


@pytest.mark.parametrize("received_by", ["incoming", "recv"])
def test_cancelling_loses_no_message(received_by: str) -> None:
    async def main() -> None:
        async with connected(accept=PREFETCH_NONE) as (near, far):
            for number in range(60):
                waiting = asyncio.ensure_future(far.incoming())
                await asyncio.sleep(0)
                await near.send(str(number).encode(), [bytes(number)])
                await asyncio.sleep(0.0003 * (number % 5))
                if number % 2:
                    # After the result is queued, and before its task has run.
                    current().advance()
                waiting.cancel()
                if not waiting.cancelled():
                    await asyncio.wait([waiting])
                if waiting.cancelled():
                    if received_by == "recv":
                        assert (await far.recv()).header == str(number).encode()
                        continue
                    incoming = await far.incoming()
                else:
                    incoming = waiting.result()
                assert incoming.header == str(number).encode()
                await incoming.accept()

    run(main())


def test_a_cancelled_accept_keeps_its_buffer_until_the_message_has_arrived() -> None:
    async def main() -> None:
        async with connected(accept=PREFETCH_NONE) as (near, far):
            size = 32 << 20
            sent = asyncio.ensure_future(near.send(b"", [bytes(size)]))
            incoming = await far.incoming()
            buffer = bytearray(size)
            accepting = asyncio.ensure_future(incoming.accept_into([buffer]))
            await asyncio.sleep(0)
            accepting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await accepting
            await sent
            await until(lambda: current().pinned_bytes() == 0, "the buffers are released")
            buffer.append(1)
            await near.send(b"next")
            assert (await far.recv()).header == b"next"

    run(main())


def test_a_lost_sender_returns_the_buffers() -> None:
    async def main() -> None:
        async with connected(accept=PREFETCH_NONE) as (near, far):
            sent = asyncio.ensure_future(near.send(b"", [bytes(32 << 20)]))
            incoming = await far.incoming()
            near.abort()
            buffer = bytearray(32 << 20)
            with pytest.raises((towline.PeerLostError, towline.ClosedError)):
                await incoming.accept_into([buffer])
            await asyncio.wait([sent])
            assert isinstance(sent.exception(), towline.Error)
            await until(lambda: current().pinned_bytes() == 0, "the buffers are released")
            buffer.append(1)

    run(main())


def test_dropping_an_announcement_rejects_it() -> None:
    async def main() -> None:
        async with connected(accept=PREFETCH_NONE) as (near, far):
            sent = asyncio.ensure_future(near.send(b"dropped", [bytes(1 << 20)]))
            incoming = await far.incoming()
            del incoming
            gc.collect()
            await sent
            await near.send(b"next")
            assert (await far.recv()).header == b"next"

    run(main())
