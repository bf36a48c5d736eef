"""Messages arrive equal and writable, whatever object their frames were, over every path."""

from __future__ import annotations

import array
import asyncio
import gc
import mmap
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import towline
from links import SCHEMES, connected, run

PATTERN = bytes(range(256))


def pattern(length: int) -> bytes:
    return (PATTERN * (length // 256 + 1))[:length]


def mapped(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory.write(content)
    return memory


def mapped_file(content: bytes) -> mmap.mmap:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return mmap.mmap(file.fileno(), len(content), access=mmap.ACCESS_READ)


def numpy_array(content: bytes) -> Any:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    return numpy.frombuffer(content, dtype="u1").copy()


def numpy_matrix(content: bytes) -> Any:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    return numpy.frombuffer(content, dtype="f4").reshape(2, -1)


KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": lambda content: memoryview(bytearray(content)),
    "readonly memoryview": memoryview,
    "memoryview of int32": lambda content: memoryview(bytearray(content)).cast("i"),
    "part of a memoryview": lambda content: memoryview(b"before" + content + b"after")[6:-5],
    "array": lambda content: array.array("d", content),
    "mmap": mapped,
    "mmap of a file": mapped_file,
    "numpy array": numpy_array,
    "numpy matrix": numpy_matrix,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [64, 1 << 20])
def test_every_kind_of_object_arrives_equal_and_writable(kind: str, length: int) -> None:
    content = pattern(length)
    frame = KINDS[kind](content)

    async def main() -> None:
        async with connected() as (near, far):
            await near.send(b"header", [frame])
            header, frames = await far.recv()
            assert header == b"header"
            (received,) = frames
            assert isinstance(received, towline.Frame) and len(received) == length
            view = memoryview(received)
            assert view == content and not view.readonly
            view[0] ^= 255
            assert memoryview(frame).cast("B")[0] == content[0], "the sender's object has its own bytes"

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length", [0, 1, 16383, 16384, 65537, 1 << 20, 64 << 20])
def test_any_length_arrives_equal_and_writable(scheme: str, length: int) -> None:
    content = bytearray(pattern(length))

    async def main() -> None:
        async with connected(scheme) as (near, far):
            for send in range(2):
                sent = near.send(b"", [content, b"tail"]) if send else near.send_packed([content, b"tail"])
                received, _ = await asyncio.gather(far.recv() if send else far.recv_packed(), sent)
                frame, tail = received.frames if send else received
                assert memoryview(frame) == content and bytes(tail) == b"tail"
                assert not memoryview(frame).readonly
                if length:
                    memoryview(frame)[-1] ^= 255
                    assert content[-1] == pattern(length)[-1], "the sender's object has its own bytes"

    run(main())


def refused_objects() -> dict[str, Any]:
    objects: dict[str, Any] = {
        "a strided memoryview": memoryview(bytearray(100_000))[::2],
        "text": "text",
        "a number": 7,
        "nothing": None,
    }
    try:
        import numpy
    except ImportError:
        return objects
    objects["a strided array"] = numpy.zeros(100_000)[::2]
    objects["a Fortran array"] = numpy.zeros((100, 200), order="F")
    return objects


@pytest.mark.parametrize("name", refused_objects())
def test_an_object_without_contiguous_bytes_is_refused_and_leaks_nothing(name: str) -> None:
    class Pinned(bytearray):
        """A bytearray with weak references."""

    async def main() -> None:
        async with connected() as (near, far):
            before = Pinned(100_000)
            there = weakref.ref(before)
            for call in (lambda frames: near.send(b"", frames), near.send_packed):
                with pytest.raises((TypeError, BufferError, ValueError)) as caught:
                    await call([before, refused_objects()[name]])
                assert str(caught.value)
            del caught
            # The next call releases what the refused one pinned.
            await near.send(b"next")
            assert (await far.recv()).header == b"next"
            before.append(1)
            del before
            gc.collect()
            assert there() is None

    run(main())


def test_a_header_has_64_kib_at_most() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            longest = pattern(64 << 10)
            await near.send(longest)
            assert (await far.recv()).header == longest
            with pytest.raises(towline.TooLargeError) as caught:
                await near.send(longest + b"1")
            assert "65536" in str(caught.value) or "64 KiB" in str(caught.value), str(caught.value)
            await near.send(b"still open")
            assert (await far.recv()).header == b"still open"

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [0, 3_000, 100_000])
def test_many_small_frames_fit_one_packed_message(scheme: str, count: int) -> None:
    frames = [index.to_bytes(4, "little") * (index % 5) for index in range(count)]

    async def main() -> None:
        async with connected(scheme) as (near, far):
            await near.send_packed(frames)
            received = await far.recv_packed()
            assert len(received) == count
            assert all(frame == view and not view.readonly for frame, view in zip(frames, received, strict=True))

    run(main())


def test_packed_frames_have_memory_of_their_own() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            await near.send_packed([b"first", b"second", bytes(100_000)])
            first, second, large = await far.recv_packed()
            first[:] = b"other"
            large[0] = 1
            assert second == b"second"
            kept = weakref.ref(large.obj)
            del large
            gc.collect()
            assert kept() is None and first == b"other"

    run(main())


def test_messages_keep_their_order() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            for number in range(200):
                await near.send(str(number).encode(), [bytes(100 if number % 7 else 100_000)])
                if number % 3 == 2:
                    for expected in range(number - 2, number + 1):
                        assert (await far.recv()).header == str(expected).encode()

    run(main())


def test_a_frame_outlives_its_connection() -> None:
    async def main() -> towline.Frame:
        async with connected("shm://127.0.0.1:0") as (near, far):
            await near.send(b"", [pattern(1 << 20)])
            return (await far.recv()).frames[0]

    frame = run(main())
    gc.collect()
    assert memoryview(frame) == pattern(1 << 20)
    assert repr(frame) == f"<towline.Frame of {1 << 20} bytes>"


def test_numpy_uses_a_frame_without_a_copy() -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")

    async def main() -> None:
        async with connected() as (near, far):
            await near.send(b"", [numpy.arange(10_000.0)])
            (frame,) = (await far.recv()).frames
            array = numpy.frombuffer(frame, dtype="f8")
            assert array.flags.writeable and array.sum() == 9_999 * 5_000
            array[0] = 5
            assert memoryview(frame).cast("d")[0] == 5

    run(main())
