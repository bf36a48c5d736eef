"""Claims: however a connection ends, both ends learn it within 50 ms, though nobody reads, and give everything back."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from dask_support import Accepting, Peer, asynchronous, descriptors, pair, transport, until
from distributed.comm import CommClosedError, connect
from distributed.comm.core import FatalCommClosedError
from distributed.protocol import to_serialize

import towline
from towline._loop import current

__all__ = ["transport"]

# Seconds within which an end is noticed.
SOON = 0.05


@asynchronous
async def test_close_ends_both_ends(transport: str) -> None:
    async with pair() as (near, far):
        reading = asyncio.ensure_future(far.read())
        await near.close()
        assert near.closed()
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(reading, 10)
        assert far.closed()
        for comm in (near, far):
            with pytest.raises(CommClosedError):
                await comm.write("late")
            with pytest.raises(CommClosedError):
                await comm.read()
            await comm.close()


@asynchronous
async def test_close_sends_what_was_written(transport: str) -> None:
    async with pair() as (near, far):
        array = np.arange(1 << 20)
        for _ in range(5):
            await near.write({"data": to_serialize(array)})
        closing = asyncio.ensure_future(near.close())
        for _ in range(5):
            assert np.array_equal((await far.read())["data"], array)
        await asyncio.wait_for(closing, 10)
        with pytest.raises(CommClosedError):
            await far.read()


@pytest.mark.parametrize("how", ["close", "abort"])
@asynchronous
async def test_the_other_end_is_closed_though_nobody_reads(transport: str, how: str) -> None:
    async with pair() as (near, far):
        closing = asyncio.ensure_future(near.close()) if how == "close" else near.abort()
        assert await until(far.closed, 5) < SOON
        if closing is not None:
            await closing
        assert near.closed()


@pytest.mark.parametrize("how", ["close", "abort", "kill"])
@pytest.mark.parametrize("reads", [False, True])
@asynchronous
async def test_the_end_of_another_process_is_noticed(transport: str, how: str, reads: bool, tmp_path: Path) -> None:
    # Tests run beside builds, which may keep either process from its core: the best of three counts.
    took = []
    while (not took or took[-1] >= SOON) and len(took) < 3:
        took.append(await seconds_until_noticed(transport, how, reads, tmp_path))
    assert min(took) < SOON, took


async def seconds_until_noticed(transport: str, how: str, reads: bool, folder: Path) -> float:
    """Return how long it takes a comm to be closed after its peer in another process has ended."""
    async with Peer(transport, folder) as peer:
        comm = await connect(await peer.address(), timeout=20)
        await comm.write("there")
        assert await comm.read() == "there"
        reading = asyncio.ensure_future(comm.read()) if reads else None
        await asyncio.sleep(0.1)
        if how == "kill":
            peer.kill()
        else:
            await comm.write(how)
        took = await until(comm.closed, 10)
        if reading is not None:
            with pytest.raises(CommClosedError):
                await asyncio.wait_for(reading, 1)
        with pytest.raises(CommClosedError):
            await comm.write("late")
        return took


@asynchronous
async def test_a_cancelled_read_closes_the_comm(transport: str) -> None:
    async with pair() as (near, far):
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.02)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert near.closed()
        assert await until(far.closed, 5) < SOON


@asynchronous
async def test_abort_wakes_this_ends_reader(transport: str) -> None:
    async with pair() as (near, _far):
        reading = asyncio.ensure_future(near.read())
        await asyncio.sleep(0.02)
        near.abort()
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(reading, 5)


@asynchronous
async def test_a_comm_that_is_forgotten_is_aborted_with_a_warning(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (near, far):
        pass
    async with Accepting("towline://127.0.0.1:0") as accepting:
        near, far = await accepting.pair()
        with caplog.at_level(logging.WARNING):
            del near
            gc.collect()
            assert await until(far.closed, 5) < SOON
        assert [record.getMessage() for record in caplog.records if "dangling" in record.getMessage()] != []
        await far.close()


@asynchronous
async def test_closed_comms_leave_no_descriptor(transport: str) -> None:
    async with Accepting("towline://127.0.0.1:0") as accepting:
        for _ in range(2):
            for comm in await accepting.pair():
                await comm.close()
        await asyncio.sleep(0.2)
        before = descriptors()
        for _ in range(10):
            pairs = [await accepting.pair() for _ in range(20)]
            for near, far in pairs:
                await asyncio.gather(near.write("one"), far.read())
            for near, far in pairs:
                await near.close()
                assert await until(far.closed, 5) < 5
            # The comms are still held.
        await until(lambda: descriptors() <= before, 5)
        assert descriptors() <= before


@asynchronous
async def test_silent_peers_hold_up_nobody(transport: str) -> None:
    start = time.monotonic()
    async with Accepting("towline://127.0.0.1:0") as accepting:
        silent = [socket.socket() for _ in range(20)]
        try:
            for number, peer in enumerate(silent):
                peer.settimeout(5)
                # Over shm the listener has no TCP port.
                if peer.connect_ex(("127.0.0.1", accepting.port)) == 0 and number % 2:
                    peer.sendall(b"GET / HTTP/1.1\r\nHost: garbage\r\n\r\n" if number % 4 == 1 else b"\xff" * 4096)
            # One that shakes hands with the transport, and not with Dask.
            mute = towline.Endpoint(insecure=True)
            address = accepting.listener._transport_address("127.0.0.1", accepting.port)
            connection = await mute.connect(address)
            near, far = await asyncio.wait_for(accepting.pair(), 5)
            await near.write("served")
            assert await far.read() == "served"
            await near.close()
            await far.close()
            accepting.listener.stop()
            accepting.listener.stop()
            assert time.monotonic() - start < 10
            connection.abort()
        finally:
            for peer in silent:
                peer.close()


@asynchronous
async def test_a_stopped_listener_accepts_nobody(transport: str) -> None:
    async with Accepting("towline://127.0.0.1:0") as accepting:
        near, far = await accepting.pair()
        accepting.listener.stop()
        with pytest.raises(OSError):
            await connect(f"towline://127.0.0.1:{accepting.port}", timeout=0.5)
        # Its comms live on.
        await near.write("still")
        assert await far.read() == "still"
        await near.close()
        await far.close()


@asynchronous
async def test_another_program_is_told_at_once() -> None:
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        answered.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    start = time.monotonic()
    with pytest.raises(FatalCommClosedError, match="Towline"):
        await connect(f"towline://127.0.0.1:{port}", timeout=30)
    assert time.monotonic() - start < 2
    assert answered.is_set()
    server.close()


@asynchronous
async def test_a_cancelled_connect_leaves_nothing(transport: str) -> None:
    # It takes connections, and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await asyncio.sleep(0)
        event_loop = current()
        before = descriptors()
        for _ in range(5):
            with pytest.raises(OSError):
                await connect(f"towline://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        assert len(event_loop) == 0
        assert await until(lambda: descriptors() <= before, 5) < 5
