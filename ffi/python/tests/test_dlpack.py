"""Tensors without a buffer protocol are sent and received into by DLPack, and frames are tensors to those that ask."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import weakref
from typing import Any

import pytest
import towline
from links import SCHEMES, connected, run, until
from towline._loop import current

numpy = pytest.importorskip("numpy", reason="NumPy is not installed")

SIZES = [0, 1, 1000, 1 << 20]


class Tensor:
    """A tensor that only has DLPack, versioned or before 1.0."""

    def __init__(self, array: Any, versioned: bool = True) -> None:
        self.array = array
        if versioned:
            self.__class__ = VersionedTensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()


class VersionedTensor(Tensor):
    def __dlpack__(self, *, max_version: tuple[int, int] | None = None, **others: Any) -> Any:
        assert not others
        return self.array.__dlpack__(max_version=max_version)


def tensor(size: int, versioned: bool) -> Tensor:
    return Tensor(numpy.arange(size, dtype="u1") if size < 1000 else numpy.ones((2, size // 2), "u1"), versioned)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tensors_arrive_equal(scheme: str, versioned: bool) -> None:
    async def main() -> None:
        async with connected(scheme) as (near, far):
            sent = [tensor(size, versioned) for size in SIZES]
            received, _ = await asyncio.gather(far.recv(), near.send(b"", sent))
            packed, _ = await asyncio.gather(far.recv_packed(), near.send_packed(sent))
            for frames in received.frames, packed:
                assert [bytes(frame) for frame in frames] == [one.array.tobytes() for one in sent]

    run(main())


@pytest.mark.parametrize("versioned", [True, False])
def test_a_tensor_is_kept_until_its_bytes_have_left(versioned: bool) -> None:
    async def main() -> None:
        async with connected(accept={"prefetch": None}) as (near, far):
            array = numpy.arange(4 << 20)
            there = weakref.ref(array)
            sending = asyncio.ensure_future(near.send(b"", [Tensor(array, versioned)]))
            del array
            await asyncio.sleep(0.01)
            gc.collect()
            assert not sending.done() and there() is not None
            message = await far.recv()
            await sending
            assert numpy.frombuffer(message.frames[0], "i8")[-1] == (4 << 20) - 1
            await until(lambda: current().pinned_bytes() == 0, "the tensor is released")
            # The task's frame had its own reference.
            del sending
            gc.collect()
            assert there() is None

    run(main())


def test_a_message_arrives_in_a_tensor() -> None:
    async def main() -> None:
        async with connected(accept={"prefetch": None}) as (near, far):
            content = bytes(range(256)) * 100
            for size in 100, 25_600:
                sending = asyncio.ensure_future(near.send(b"", [content[:size]]))
                into = Tensor(numpy.zeros(25_600, "u1"))
                incoming = await far.incoming()
                read_only = numpy.zeros(25_600, "u1")
                read_only.flags.writeable = False
                with pytest.raises(BufferError, match="read-only"):
                    await incoming.accept_into([Tensor(read_only)])
                with pytest.raises(BufferError, match="does not tell"):
                    await incoming.accept_into([Tensor(into.array, versioned=False)])
                await incoming.accept_into([into])
                await sending
                assert into.array.tobytes() == content[:size] + bytes(25_600 - size)

    run(main())


class OnDevice:
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody asks for it")


class OfCuda:
    __cuda_array_interface__: dict[str, Any] = {"shape": (1,), "typestr": "|u1", "data": (0, False), "version": 3}


class NoCapsule:
    def __dlpack__(self, **_: Any) -> Any:
        return 7


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (OnDevice(), ["OnDevice", "device 1", "type 2", "cannot be sent", ".cpu()", ".get()"]),
        (OfCuda(), ["OfCuda", "CUDA", ".get()"]),
        (Tensor(numpy.zeros((300, 400)).T), ["not contiguous", ".contiguous()"]),
        (Tensor(numpy.zeros(100_000)[::2], versioned=False), ["not contiguous"]),
        (NoCapsule(), ["no capsule"]),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_remedy(what: Any, words: list[str]) -> None:
    async def main() -> None:
        async with connected() as (near, far):
            for call in (lambda: near.send(b"", [what]), lambda: near.send_packed([what])):
                with pytest.raises((BufferError, TypeError)) as caught:
                    await call()
                assert all(word in str(caught.value) for word in words), str(caught.value)
            await near.send(b"next")
            assert (await far.recv()).header == b"next"

    run(main())


def test_a_single_column_is_contiguous() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            column = numpy.arange(30_000.0).reshape(-1, 1)
            received, _ = await asyncio.gather(far.recv(), near.send(b"", [Tensor(column.T), Tensor(column)]))
            assert [bytes(frame) for frame in received.frames] == [column.tobytes()] * 2

    run(main())


async def frame(size: int) -> towline.Frame:
    async with connected() as (near, far):
        received, _ = await asyncio.gather(far.recv(), near.send(b"", [bytes(range(256)) * (size // 256)]))
        return received.frames[0]


def capsule_name(capsule: Any) -> bytes:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    found = name(capsule)
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("size", [512, 1 << 20])
def test_a_frame_is_a_tensor_that_shares_its_memory(size: int) -> None:
    received = run(frame(size))
    assert received.__dlpack_device__() == (1, 0)
    array = numpy.from_dlpack(received)
    assert array.dtype == "u1" and array.shape == (size,) and array.flags.writeable
    array[0] = 77
    assert memoryview(received)[0] == 77
    there = weakref.ref(received)
    del received
    gc.collect()
    assert there() is None
    assert array[0] == 77 and array[-1] == 255


def test_a_copy_has_its_own_memory() -> None:
    received = run(frame(1 << 20))
    array = numpy.from_dlpack(received, copy=True)
    array[0] = 77
    assert memoryview(received)[0] == 0 and array[-1] == 255
    assert numpy.from_dlpack(received, copy=False).ctypes.data == numpy.frombuffer(received, "u1").ctypes.data


def test_capsules_have_the_version_that_is_asked_for() -> None:
    received = run(frame(512))
    assert capsule_name(received.__dlpack__()) == b"dltensor"
    assert capsule_name(received.__dlpack__(max_version=(0, 8))) == b"dltensor"
    assert capsule_name(received.__dlpack__(max_version=(1, 0))) == b"dltensor_versioned"
    assert capsule_name(received.__dlpack__(max_version=(2, 1), dl_device=(1, 0))) == b"dltensor_versioned"
    with pytest.raises(BufferError, match="device"):
        received.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        received.__dlpack__(stream=1)


@pytest.mark.parametrize("versioned", [True, False])
def test_a_frame_goes_on_as_a_tensor(versioned: bool) -> None:
    class Forwarded:
        def __init__(self, inner: towline.Frame) -> None:
            self.inner = inner

        def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any:
            return self.inner.__dlpack__(max_version=max_version if versioned else None)

    async def main() -> None:
        async with connected() as (near, far):
            for size in 0, 256, 1 << 20:
                received, _ = await asyncio.gather(far.recv(), near.send(b"", [Forwarded(await frame(size))]))
                assert bytes(received.frames[0]) == bytes(range(256)) * (size // 256)

    run(main())


def test_capsules_that_nobody_takes_free_their_memory() -> None:
    async def main() -> None:
        async with connected(pool_bytes=0) as (near, far):

            def resident() -> int:
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * 4096

            content = bytes(32 << 20)
            before = 0
            for turn in range(8):
                received, _ = await asyncio.gather(far.recv(), near.send(b"", [content]))
                for version in None, (1, 0):
                    received.frames[0].__dlpack__(max_version=version)
                    received.frames[0].__dlpack__(max_version=version, copy=True)
                    numpy.from_dlpack(received.frames[0], copy=True)
                before = before or resident()
            # Each turn makes seven times the content.
            assert resident() - before < 3 * len(content)
            assert turn == 7

    run(main())
