"""One end reads and writes memory that the other exposed. The memory stays in place until nobody accesses it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
import towline
from links import SCHEMES, connected, run, until
from towline import RemoteRegion
from towline._loop import current

SIZES = [1, 5000, 3 << 20]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_peer_reads_an_exposed_object(scheme: str, size: int) -> None:
    async def main() -> None:
        async with connected(scheme) as (near, far):
            exposed = bytearray(content(size))
            async with near.expose(exposed) as region:
                await near.send(bytes(region.remote))
                remote = RemoteRegion((await far.recv()).header)
                assert remote == region.remote and len(remote) == size and not remote.writable
                frame = await far.get(remote)
                view = memoryview(frame)
                assert view == exposed and not view.readonly
                assert bytes(await far.get(remote, offset=size - 1)) == content(size)[-1:]
                assert bytes(await far.get(remote, offset=size // 2, size=1)) == content(size)[size // 2 :][:1]
                into = bytearray(b"\xff" * (size + 3))
                await far.get_into(remote, into)
                assert into == exposed + b"\xff" * 3
                # No view of the destination is left. The exposed object is pinned.
                into.clear()
                with pytest.raises(BufferError):
                    exposed.append(1)
                assert current().pinned_bytes() == size
                # A read sees the object as it is then.
                exposed[0] = 99
                assert bytes(await far.get(remote, size=1)) == b"c"
            exposed.append(1)
            assert current().pinned_bytes() == 0
            with pytest.raises(towline.RejectedError):
                await far.get(remote)

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_peer_writes_exposed_memory(scheme: str, size: int) -> None:
    async def main() -> None:
        async with connected(scheme) as (near, far):
            region = near.expose_writable(size)
            remote = RemoteRegion(bytes(region.remote))
            assert len(remote) == size and remote.writable
            data = bytearray(content(size))
            await far.put(remote, data)
            data.append(1)
            await far.put(remote, b"z", offset=size - 1)
            frame = await region.close()
            assert frame is not None
            view = memoryview(frame)
            assert view == content(size)[:-1] + b"z" and not view.readonly
            assert await region.close() is None
            with pytest.raises(towline.RejectedError):
                await far.put(remote, b"late")

    run(main())


def test_what_is_outside_or_not_allowed_is_rejected() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            read, write = near.expose(bytes(100)), near.expose_writable(100)
            attempts: list[Any] = [
                lambda: far.get(read.remote, offset=101),
                lambda: far.get(read.remote, size=101),
                lambda: far.get(read.remote, offset=60, size=41),
                lambda: far.put(write.remote, bytes(101)),
                lambda: far.put(write.remote, b"12", offset=99),
                lambda: far.get(write.remote),
                lambda: far.put(read.remote, b"1"),
                lambda: near.get(read.remote),
            ]
            for attempt in attempts:
                with pytest.raises(towline.RejectedError) as caught:
                    await attempt()
                assert len(str(caught.value)) > 20
            wrong: list[Any] = [
                lambda: far.get_into(read.remote, bytearray(99)),
                lambda: far.get_into(read.remote, bytes(100)),
                lambda: far.put(write.remote, "text"),
                lambda: far.get(read.remote, offset=-1),
            ]
            for attempt in wrong:
                with pytest.raises((towline.InvalidError, BufferError, TypeError, OverflowError)):
                    await attempt()
            assert bytes(await far.get(read.remote)) == bytes(100)
            with pytest.raises(towline.InvalidError):
                RemoteRegion(b"no region")
            assert "100 bytes to write" in repr(write.remote)
            assert bytes(await write.close() or b"") == bytes(100)

    run(main())


def test_a_lifetime_ends_the_access() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            region = near.expose(b"soon gone", lifetime=0.05)
            await asyncio.sleep(0.06)
            with pytest.raises(towline.RejectedError, match="lifetime"):
                await far.get(region.remote)

    run(main())


def test_dropping_a_region_revokes_it_and_releases_its_object() -> None:
    class Pinned(bytearray):
        """A bytearray with weak references."""

    async def main() -> None:
        async with connected() as (near, far):
            exposed = Pinned(100_000)
            there = weakref.ref(exposed)
            region = near.expose(exposed)
            remote = region.remote
            del exposed
            gc.collect()
            assert there() is not None and len(await far.get(remote)) == 100_000
            del region
            with pytest.raises(towline.RejectedError):
                await far.get(remote)
            await until(lambda: there() is None, "the object is released")

    run(main())


def test_closing_waits_for_reads_under_way_and_the_object_stays_until_then() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            size = 48 << 20
            exposed = bytearray(b"\x07" * size)
            region = near.expose(exposed)
            reading = asyncio.ensure_future(far.get(region.remote))
            await asyncio.sleep(0.005)
            await region.close()
            exposed.append(1)
            exposed[:] = bytes(len(exposed))
            try:
                frame = await reading
            except towline.RejectedError:
                # The region was closed before the peer had begun.
                return
            view = memoryview(frame)
            assert len(view) == size and view == b"\x07" * size

    run(main())


def test_a_cancelled_read_releases_its_buffer() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            region = near.expose(bytes(32 << 20))
            into = bytearray(32 << 20)
            reading = asyncio.ensure_future(far.get_into(region.remote, into))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            await region.close()
            await until(lambda: current().pinned_bytes() == 0, "the buffers are released")
            into.append(1)

    run(main())


def test_a_lost_peer_ends_reads_and_returns_buffers() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            region = near.expose(bytes(32 << 20))
            into = bytearray(32 << 20)
            # Half a GiB in all: the first may have ended when the connection does.
            reading = [asyncio.ensure_future(far.get_into(region.remote, into)) for _ in range(16)]
            await asyncio.sleep(0)
            near.abort()
            *_, last = await asyncio.gather(*reading, return_exceptions=True)
            assert isinstance(last, (towline.PeerLostError, towline.ClosedError)), last
            await region.close()
            await until(lambda: current().pinned_bytes() == 0, "the buffers are released")
            into.append(1)

    run(main())
