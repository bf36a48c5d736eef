"""Claims: read-only arrays of the arena change hands without a copy, all others are copied, and no memory is lost."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from links import collect, connected, run, until

import towline.numpy

# As in the documentation's examples, which this process runs too.
SIZE = 256 << 20
MIB = 1 << 20
SHARED = {"address": "shm://127.0.0.1:0", "trust_user": True}


@pytest.fixture(autouse=True)
def arena() -> Iterator[None]:
    towline.numpy.enable_arena(SIZE)
    yield
    towline.numpy.disable_arena()
    gc.collect()


def stats() -> dict[str, int]:
    found = towline.numpy.arena_stats()
    assert found is not None
    return found


def frozen(count: int, start: int = 0) -> Any:
    """A read-only array of its own memory."""
    array = np.empty(count, dtype="u4")
    array[:] = np.arange(start, start + count, dtype="u4")
    array.flags.writeable = False
    return array


async def exchanged(near: towline.Connection, far: towline.Connection, *frames: Any) -> list[Any]:
    sending = asyncio.ensure_future(near.send(b"", list(frames)))
    message = await far.recv()
    await sending
    return list(message.frames)


def test_a_read_only_array_is_handed_over_and_not_copied() -> None:
    async def main() -> None:
        async with connected(**SHARED) as (near, far):
            before = near.stats()["bytes_copied"] + far.stats()["bytes_copied"]
            array = frozen(16 * MIB)
            (frame,) = await exchanged(near, far, array)
            received = np.frombuffer(frame, dtype="u4")
            assert not received.flags.writeable and np.array_equal(received, array)
            assert (stats()["leases"], stats()["lent_bytes"]) == (1, 64 * MIB)
            assert near.stats()["bytes_copied"] + far.stats()["bytes_copied"] - before < 64 << 10
            with pytest.raises(ValueError):
                received.flags.writeable = True
            # The array ends before the frame does.
            del array
            assert received[-1] == 16 * MIB - 1 and stats()["in_use_bytes"] >= 64 * MIB
            del received, frame
            await collect()
            await until(lambda: stats()["leases"] == 0, "the lease returns")
            assert stats()["in_use_bytes"] == 0

    run(main())


def test_slices_and_views_are_handed_over() -> None:
    async def main() -> None:
        async with connected(**SHARED) as (near, far):
            array = frozen(MIB)
            part, cast = array[1000:-1000], array.reshape(2, -1).view("u1")
            frames = await exchanged(near, far, part, memoryview(cast).cast("B"), np.ravel(array, order="K"))
            assert stats()["leases"] == 3
            assert np.array_equal(np.frombuffer(frames[0], "u4"), part)
            assert bytes(frames[1]) == bytes(frames[2]) == array.tobytes()

    run(main())


def test_everything_else_is_copied() -> None:
    async def main() -> None:
        async with connected(**SHARED) as (near, far):
            writable = np.arange(MIB, dtype="u4")
            view = writable[:]
            view.flags.writeable = False
            small = frozen(1000)
            other = bytes(MIB)
            for source in (writable, view, small, other, np.zeros(0), memoryview(writable).toreadonly()):
                (frame,) = await exchanged(near, far, source)
                assert stats()["leases"] == 0 and not memoryview(frame).readonly
                assert bytes(frame) == bytes(memoryview(source).cast("B"))
            (frame,) = await exchanged(near, far, writable)
            writable[:] = 7
            assert np.frombuffer(frame, "u4")[5] == 5, "the receiver has bytes of its own"

    run(main())


@pytest.mark.parametrize("options", [{"address": "tcp://127.0.0.1:0"}, {"address": "shm://127.0.0.1:0"}, {"address": "mem://"}])
def test_paths_without_shared_memory_or_trust_copy(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with connected(**options) as (near, far):
            array = frozen(MIB)
            (frame,) = await exchanged(near, far, array)
            assert bytes(frame) == array.tobytes() and not memoryview(frame).readonly
            assert stats()["leases"] == 0

    run(main())


def test_a_sender_that_writes_or_resizes_harms_nobody() -> None:
    async def main() -> None:
        async with connected(**SHARED) as (near, far):
            array = frozen(MIB)
            (frame,) = await exchanged(near, far, array)
            received = np.frombuffer(frame, dtype="u4")
            array.flags.writeable = True
            # It is another block from now on, larger or smaller.
            array.resize(2 * MIB, refcheck=False)
            array[:] = 1
            assert np.array_equal(received, np.arange(MIB, dtype="u4"))
            array.resize(10, refcheck=False)
            array.resize(MIB, refcheck=False)
            assert array[:10].tolist() == [1] * 10 and not array[10:].any()
            del array
            # Blocks that were returned do not overlap the one that is lent.
            others = [np.full(MIB, 9, dtype="u4") for _ in range(10)]
            assert np.array_equal(received, np.arange(MIB, dtype="u4"))
            del others

            array = frozen(MIB)
            (frame,) = await exchanged(near, far, array)
            array.flags.writeable = True
            array[:] = 5
            # Told in the documents: whoever writes what was handed over changes what the receiver sees.
            assert set(np.frombuffer(frame, "u4").tolist()) == {5}

    run(main())


def test_a_full_arena_falls_back_and_counts() -> None:
    before = stats()["fallbacks"]
    arrays = [np.full(16 * MIB, number, dtype="u1") for number in range(SIZE // (16 * MIB) + 3)]
    assert stats()["fallbacks"] > before
    assert all(array[0] == array[-1] == number for number, array in enumerate(arrays))
    del arrays
    assert (stats()["arrays"], stats()["in_use_bytes"]) == (0, 0)


def test_memory_that_was_used_is_cleared_where_numpy_asks_for_zeroes() -> None:
    for _ in range(3):
        array = np.zeros(MIB, dtype="u1")
        assert not array.any()
        array[:] = 255


def test_only_threads_that_asked_use_the_arena() -> None:
    found: list[int] = []

    def work(enable: bool) -> None:
        if enable:
            towline.numpy.enable_arena(SIZE)
        array = np.ones(MIB)
        found.append(stats()["arrays"])
        del array

    for enable in (False, True):
        thread = threading.Thread(target=work, args=(enable,))
        thread.start()
        thread.join()
    assert found == [0, 1]


def test_arrays_outlive_the_arena_and_come_from_before_it() -> None:
    towline.numpy.disable_arena()
    before = np.ones(MIB)
    towline.numpy.enable_arena(SIZE)
    inside = np.full(MIB, 3.0)
    towline.numpy.disable_arena()
    after = np.full(MIB, 4.0)
    assert stats()["arrays"] == 1
    assert (before.sum(), inside.sum(), after.sum()) == (MIB, 3 * MIB, 4 * MIB)
    del before, inside, after
    assert stats()["arrays"] == 0


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=f"an arena of {SIZE} bytes in this process already"):
        towline.numpy.enable_arena(SIZE + 4096)
    with pytest.raises(OverflowError):
        towline.numpy.enable_arena(-1)
    code = "import towline.numpy; towline.numpy.enable_arena(1)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "less than a page" in ended.stderr


def test_a_forked_child_has_no_arena_until_it_makes_one() -> None:
    code = """
        import os, sys
        import numpy as np
        import towline.numpy
        towline.numpy.enable_arena(64 << 20)
        inherited = np.full(1 << 20, 5, dtype="u1")
        child = os.fork()
        if child == 0:
            assert towline.numpy.arena_stats() is None
            own = np.full(1 << 20, 6, dtype="u1")
            inherited.resize(2 << 20, refcheck=False)
            assert inherited[:1 << 20].min() == 5 and not inherited[1 << 20:].any() and own.max() == 6
            del inherited, own
            towline.numpy.enable_arena(32 << 20)
            array = np.full(1 << 20, 7, dtype="u1")
            assert towline.numpy.arena_stats()["arrays"] == 1 and array.min() == 7
            del array
            assert towline.numpy.arena_stats()["in_use_bytes"] == 0
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert inherited.min() == inherited.max() == 5
        del inherited
        assert towline.numpy.arena_stats()["in_use_bytes"] == 0
        print("whole")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "whole\n"), ended.stderr


def test_a_handed_over_frame_is_read_only_by_dlpack_too() -> None:
    async def main() -> None:
        async with connected(**SHARED) as (near, far):
            (frame,) = await exchanged(near, far, frozen(MIB))
            shared = np.from_dlpack(frame)
            assert not shared.flags.writeable and shared.nbytes == 4 * MIB
            with pytest.raises(BufferError, match="read-only"):
                frame.__dlpack__()
            copied = np.from_dlpack(frame, copy=True)
            assert copied.flags.writeable or copied.base is not None
            assert np.array_equal(copied, shared)

    run(main())
