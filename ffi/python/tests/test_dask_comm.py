"""Claims: comms of ``towline://`` carry any message, equal and as writable as it was, in both directions at once."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import numpy as np
import pytest
from dask_support import Accepting, asynchronous, beneath, pair, transport
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import Serialized, to_serialize

import towline

__all__ = ["transport"]

MIB = 1 << 20


async def exchanged(message: Any, **arguments: Any) -> Any:
    """Return what the far end reads."""
    async with pair(**arguments) as (near, far):
        _written, read = await asyncio.gather(near.write(message), far.read())
        return read


def frame_of(array: np.ndarray[Any, Any]) -> Any:
    """The object that has the array's memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


@asynchronous
async def test_messages_arrive_in_order_in_both_directions(transport: str) -> None:
    async with pair() as (near, far):
        for number in range(50):
            await near.write({"op": "near", "number": number})
            await far.write({"op": "far", "number": number, "data": b"x" * number})
        for number in range(50):
            assert await far.read() == {"op": "near", "number": number}
            assert await near.read() == {"op": "far", "number": number, "data": b"x" * number}


@pytest.mark.parametrize("size", [0, 1, 100, 16383, 16384, 65536, MIB, 10 * MIB + 3, 64 * MIB])
@asynchronous
async def test_arrays_arrive_equal_and_writable(transport: str, size: int) -> None:
    array = np.arange(size, dtype="u1")
    read = (await exchanged({"data": to_serialize(array)}))["data"]
    assert np.array_equal(read, array)
    assert read.flags.writeable
    if size:
        # Its memory is nobody else's.
        read[0] = 77
        assert array[0] == 0


@pytest.mark.parametrize("size", [256 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.slow)])
@asynchronous
async def test_huge_arrays_arrive_equal_and_writable(transport: str, size: int) -> None:
    array = np.arange(size // 8, dtype="u8")
    read = (await exchanged({"data": to_serialize(array)}))["data"]
    assert np.array_equal(read, array)
    assert read.flags.writeable


@pytest.mark.parametrize("size", [100, MIB])
@asynchronous
async def test_what_was_read_only_stays_read_only(transport: str, size: int) -> None:
    array = np.ones(size, dtype="u1")
    array.flags.writeable = False
    read = (await exchanged({"data": to_serialize(array)}))["data"]
    assert np.array_equal(read, array)
    assert not read.flags.writeable


@pytest.mark.parametrize("size", [1000, MIB])
@asynchronous
async def test_every_object_has_a_buffer_of_its_own(transport: str, size: int) -> None:
    arrays = [np.full(size, number, dtype="u1") for number in range(3)]
    read = list((await exchanged({"data": [to_serialize(array) for array in arrays]}))["data"])
    frames = [weakref.ref(frame_of(array)) for array in read]
    assert all(isinstance(frame(), towline.Frame) for frame in frames)
    read[1] = None
    # The event loop forgets the call that it has run.
    await asyncio.sleep(0)
    assert [frame() is None for frame in frames] == [False, True, False]
    assert (read[0] == 0).all() and (read[2] == 2).all()


@pytest.mark.parametrize("count", [3_000, 100_000])
@asynchronous
async def test_messages_have_any_number_of_small_frames(transport: str, count: int) -> None:
    frames = [b"%d" % number for number in range(count)]
    read = await exchanged({"data": Serialized({"serializer": "pickle"}, frames)}, deserialize=False)
    assert [bytes(frame) for frame in read["data"].frames] == frames


@asynchronous
async def test_a_write_ends_during_a_read(transport: str) -> None:
    async with pair() as (near, far):
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(near.write({"data": to_serialize(np.ones(4 * MIB, dtype="u1"))}), 10)
        assert (await far.read())["data"].sum() == 4 * MIB
        assert not reading.done()
        await far.write("answer")
        assert await reading == "answer"


@pytest.mark.parametrize("transport", ["tcp", "shm"])
@asynchronous
async def test_a_message_of_one_end_that_never_reads_waits(transport: str) -> None:
    with beneath(transport):
        await writers_wait()


async def writers_wait() -> None:
    async with pair() as (near, far):
        # Beyond `write-buffer`, write waits for the reader.
        array = np.ones(48 * MIB, dtype="u1")
        writing = [asyncio.ensure_future(near.write({"data": to_serialize(array)})) for _ in range(6)]
        await asyncio.sleep(0.3)
        assert not all(write.done() for write in writing)
        for _ in writing:
            assert (await far.read())["data"].nbytes == array.nbytes
        await asyncio.gather(*writing)


@asynchronous
async def test_write_returns_the_size_of_the_frames(transport: str) -> None:
    async with pair() as (near, far):
        size = await near.write({"data": to_serialize(np.ones(MIB, dtype="u1"))})
        assert MIB < size < MIB + 2000
        await far.read()


@asynchronous
async def test_extra_info_has_the_path() -> None:
    for name, path in [("towline", "mem"), ("tcp", "tcp"), ("shm", "shm")]:
        with beneath(name):
            async with pair() as (near, far):
                assert (near.extra_info["path"], far.extra_info["path"]) == (path, path)


@asynchronous
async def test_a_value_that_cannot_be_serialized_leaves_the_comm_open(transport: str) -> None:
    class NotPickled:
        def __reduce__(self) -> str:
            raise ValueError("not pickled")

    async with pair() as (near, far):
        with pytest.raises(TypeError):
            await near.write({"data": to_serialize(NotPickled())}, on_error="raise")
        await near.write("next")
        assert await far.read() == "next"


@asynchronous
async def test_required_encryption_refuses_plain_addresses(transport: str) -> None:
    with pytest.raises(RuntimeError, match="encryption required"):
        await listen("towline://127.0.0.1:0", print, require_encryption=True)
    async with Accepting("towline://127.0.0.1:0") as accepting:
        with pytest.raises(RuntimeError, match="encryption required"):
            await connect(accepting.listener.contact_address, timeout=5, require_encryption=True)


@asynchronous
async def test_a_message_of_no_comm_is_an_error(transport: str) -> None:
    async with pair() as (near, far):
        near._inner.send(near._event_loop(), b"\xff" * 30, [])
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(far.read(), 10)
        assert far.closed()
