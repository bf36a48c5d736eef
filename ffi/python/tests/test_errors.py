"""Failures have a class, an error number and a text, and a peer that ends is noticed though nobody reads."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import towline
from links import SCHEMES, connected, run, until

NOTICED_SECONDS = 2.0
"""Far above the 50 ms that an idle machine takes, since tests share theirs."""

# A child that connects, and then sleeps until it is killed.
CHILD = """
import asyncio, sys, towline
async def main():
    connection = await towline.Endpoint(trust_user=True).connect(sys.argv[1])
    await connection.send(b"here")
    print("connected", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_class_is_an_oserror_and_the_class_of_sockets() -> None:
    for name in towline.errors.__all__:
        assert issubclass(getattr(towline, name), OSError), name
    assert issubclass(towline.RefusedError, ConnectionRefusedError)
    assert issubclass(towline.PeerLostError, ConnectionResetError)
    assert issubclass(towline.ClosedError, ConnectionAbortedError)
    assert issubclass(towline.TimedOutError, TimeoutError)
    assert issubclass(towline.UnauthenticatedError, PermissionError)


def test_an_address_in_use_has_its_errno() -> None:
    async def main() -> None:
        first, second = towline.Endpoint(), towline.Endpoint()
        async with await first.listen("towline://127.0.0.1:0") as listener:
            with pytest.raises(towline.Error) as caught:
                await second.listen(listener.address)
        assert caught.value.errno == errno.EADDRINUSE
        assert listener.address.partition("://")[2] in str(caught.value)
        assert caught.value.strerror == os.strerror(errno.EADDRINUSE)

    run(main())


def test_a_port_where_nobody_listens_is_refused() -> None:
    async def main() -> None:
        address = f"towline://127.0.0.1:{free_port()}"
        with pytest.raises(ConnectionRefusedError) as caught:
            await towline.Endpoint().connect(address)
        assert isinstance(caught.value, towline.RefusedError)
        assert caught.value.errno == errno.ECONNREFUSED
        assert address.partition("://")[2] in str(caught.value), str(caught.value)

    run(main())


def test_something_else_that_answers_is_incompatible() -> None:
    async def main() -> None:
        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(towline.IncompatibleError):
            await towline.Endpoint().connect(f"towline://127.0.0.1:{port}")
        server.close()

    run(main())


def test_different_tokens_are_unauthenticated() -> None:
    async def main() -> None:
        far, near = towline.Endpoint(token=b"a" * 32), towline.Endpoint(token=b"b" * 32)
        async with await far.listen("tcp://127.0.0.1:0") as listener:
            with pytest.raises(towline.UnauthenticatedError):
                await near.connect(listener.address)

    run(main())


@pytest.mark.parametrize("address", ["", "towline:", "nothing://127.0.0.1:1", "towline://127.0.0.1", "127.0.0.1:1"])
def test_a_bad_address_is_a_value_error(address: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError) as caught:
            await towline.Endpoint().connect(address)
        assert isinstance(caught.value, towline.InvalidError)

    run(main())


def test_bad_options_are_value_errors() -> None:
    for options in ({"wait": "now"}, {"linger": -1.0}, {"heartbeat": float("nan")}, {"token": b""}):
        with pytest.raises(ValueError):
            towline.Endpoint(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        towline.Endpoint(token="text")  # type: ignore[arg-type]


def test_a_call_without_a_loop_is_a_runtime_error() -> None:
    call = towline.Endpoint().listen("mem://")
    with pytest.raises(RuntimeError):
        call.send(None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_closing_wakes_the_reader_after_everything_was_read(scheme: str) -> None:
    async def main() -> None:
        async with connected(scheme) as (near, far):
            await near.send(b"last")
            closing = asyncio.ensure_future(near.close())
            assert (await far.recv()).header == b"last"
            with pytest.raises(towline.ClosedError):
                await far.recv()
            await closing
            assert near.closed and far.closed
            assert isinstance(far.close_reason, towline.ClosedError)
            with pytest.raises(towline.ClosedError):
                await near.send(b"too late")

    run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("how", ["close", "abort"])
def test_an_end_is_noticed_by_a_reader_and_by_nobody(scheme: str, how: str) -> None:
    async def main() -> None:
        for reads in (True, False):
            async with connected(scheme) as (near, far):
                reader = asyncio.ensure_future(far.recv()) if reads else None
                await asyncio.sleep(0.02)
                assert not far.closed and far.close_reason is None
                start = time.monotonic()
                closing = asyncio.ensure_future(near.close()) if how == "close" else near.abort()
                if reader is not None:
                    with pytest.raises((towline.ClosedError, towline.PeerLostError)):
                        await reader
                await until(lambda: far.closed, "the end is noticed", NOTICED_SECONDS)
                assert time.monotonic() - start < NOTICED_SECONDS
                if closing is not None:
                    await closing

    run(main())


@pytest.mark.parametrize("scheme", ["tcp://127.0.0.1:0", "towline://127.0.0.1:0"])
@pytest.mark.parametrize("reads", [True, False])
def test_a_killed_peer_is_noticed(scheme: str, reads: bool) -> None:
    async def main() -> None:
        endpoint = towline.Endpoint(trust_user=True)
        async with await endpoint.listen(scheme) as listener:
            command = [sys.executable, "-c", CHILD, listener.address]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                try:
                    far = await listener.accept()
                    assert far.path == ("tcp" if scheme.startswith("tcp") else "shm")
                    assert (await far.recv()).header == b"here"
                    reader = asyncio.ensure_future(far.recv()) if reads else None
                    await asyncio.sleep(0.05)
                    assert not far.closed
                finally:
                    child.send_signal(signal.SIGKILL)
                if reader is not None:
                    with pytest.raises(towline.PeerLostError):
                        await asyncio.wait_for(reader, NOTICED_SECONDS)
                await until(lambda: far.closed, "the end is noticed", NOTICED_SECONDS)
                assert isinstance(far.close_reason, towline.PeerLostError)
                child.wait(10)

    run(main())


def test_a_listener_that_closes_wakes_accept() -> None:
    async def main() -> None:
        endpoint = towline.Endpoint()
        listener = await endpoint.listen("tcp://127.0.0.1:0")
        task = asyncio.ensure_future(listener.accept())
        await asyncio.sleep(0.01)
        listener.close()
        with pytest.raises(towline.ClosedError):
            await asyncio.wait_for(task, 10)

    run(main())


def test_the_context_manager_aborts_after_an_exception_and_closes_otherwise() -> None:
    async def main() -> None:
        async with connected() as (near, far):
            with pytest.raises(KeyError):
                async with near:
                    raise KeyError
            with pytest.raises((towline.PeerLostError, towline.ClosedError)):
                await far.recv()
        async with connected() as (near, far):
            async with near:
                await near.send(b"last")
            assert (await far.recv()).header == b"last"

    run(main())


def test_explain_and_stats_tell_the_path_and_the_counts() -> None:
    async def main() -> None:
        async with connected("shm://127.0.0.1:0") as (near, far):
            await near.send(b"", [bytes(1000)])
            await far.recv()
            assert near.path == far.path == "shm"
            assert "shm" in await near.explain()
            assert near.stats()["messages_sent"] == 1 and far.stats()["bytes_received"] >= 1000
            assert near.local_address == far.peer_address and near.peer_address == far.local_address
            assert near.local_address is not None and near.local_address[0] == "127.0.0.1"

    run(main())
