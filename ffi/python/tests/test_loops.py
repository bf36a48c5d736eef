"""Any number of asyncio loops, in any number of threads, none of ours, and nothing left of a closed one."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import towline
from links import connected, descriptors, run, until_now
from towline import _loop
from towline._towline import EventLoop


async def exchange(count: int = 20, scheme: str = "tcp://127.0.0.1:0") -> int:
    async with connected(scheme) as (near, far):
        for number in range(count):
            sent = near.send(str(number).encode(), [bytes(100_000)])
            _, message = await asyncio.gather(sent, far.recv())
            assert message.header == str(number).encode()
    return count


def test_no_thread_of_ours_is_known_to_python() -> None:
    threads, frames = set(threading.enumerate()), set(sys._current_frames())

    async def main() -> None:
        async with connected() as (near, far):
            for _ in range(50):
                _, message = await asyncio.gather(near.send(b"", [bytes(1 << 20)]), far.recv())
                assert len(message.frames[0]) == 1 << 20
                assert set(threading.enumerate()) == threads
                assert set(sys._current_frames()) == frames
            native = os.listdir("/proc/self/task")
            assert len(native) > len(threads), "the endpoints have threads of their own"

    run(main())


def test_loops_of_several_threads_work_at_once() -> None:
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: run(exchange(30)), range(8))) == [30] * 8


def test_one_endpoint_serves_loops_of_several_threads() -> None:
    endpoint = towline.Endpoint()
    listening: list[str] = []
    ready = threading.Event()
    clients = 4

    async def serve() -> int:
        async with await endpoint.listen("tcp://127.0.0.1:0") as listener:
            listening.append(listener.address)
            ready.set()
            total = 0
            for _ in range(clients):
                connection = await listener.accept()
                for _ in range(10):
                    total += len((await connection.recv()).frames[0])
            return total

    async def send() -> None:
        connection = await endpoint.connect(listening[0])
        for _ in range(10):
            await connection.send(b"", [bytes(1000)])
        await connection.close()

    with ThreadPoolExecutor(clients + 1) as threads:
        served = threads.submit(run, serve())
        assert ready.wait(10)
        for sent in [threads.submit(run, send()) for _ in range(clients)]:
            sent.result(30)
        assert served.result(30) == clients * 10 * 1000


def test_uvloop_runs_it() -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(exchange(), 30)) == 20


def uvloop_factory() -> Any:
    return pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop


@pytest.mark.parametrize("which", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pending", [False, True])
def test_a_closed_loop_leaves_nothing(which: str, pending: bool) -> None:
    factory = asyncio.new_event_loop if which == "asyncio" else uvloop_factory()
    # The first loop of a kind opens descriptors that stay, for all of them.
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(exchange(2), 30))
    gc.collect()

    def event_loops() -> int:
        return sum(isinstance(o, EventLoop) for o in gc.get_objects())

    # Loops of other tests may live on: Dask keeps some.
    others, entries, before = event_loops(), len(_loop._loops), len(descriptors())
    kept: list[Any] = []

    async def leave_calls() -> None:
        endpoint = towline.Endpoint()
        listener = await endpoint.listen("tcp://127.0.0.1:0")
        near = await endpoint.connect(listener.address)
        far = await listener.accept(prefetch=None)
        # Nobody receives at the other end, so the send waits.
        calls = [near.recv(), listener.accept(), near.send(b"", [bytearray(48 << 20)])]
        kept.append(far)
        kept.append([asyncio.ensure_future(call) for call in calls])
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in kept[-1])

    loop = factory()
    there = weakref.ref(loop)
    loop.run_until_complete(asyncio.wait_for(leave_calls() if pending else exchange(2), 30))
    assert event_loops() == others + 1
    # Tasks that are destroyed while they wait are reported to the loop's handler.
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.close()
    kept.clear()
    del loop
    until_now(lambda: event_loops() == others, "its calls are gone")
    until_now(lambda: there() is None, "the loop is gone")
    until_now(lambda: len(descriptors()) <= before, "its descriptors are closed")
    assert len(_loop._loops) == entries


def test_hundred_loops_leave_no_descriptor() -> None:
    run(exchange(1))
    gc.collect()
    before = len(descriptors())
    for _ in range(100):
        run(exchange(1, "mem://"))
    until_now(lambda: len(descriptors()) <= before, "their descriptors are closed")


FORK = """
import asyncio, os, sys, towline

async def exchange(endpoint):
    async with await endpoint.listen("tcp://127.0.0.1:0") as listener:
        near = await endpoint.connect(listener.address)
        far = await listener.accept()
        await near.send(b"here", [bytes(100_000)])
        assert (await far.recv()).header == b"here"
        return near

async def child(inherited, connection):
    for call in (lambda: inherited.listen("tcp://127.0.0.1:0"), lambda: connection.send(b"x"), connection.recv):
        try:
            await asyncio.wait_for(call(), 10)
        except towline.UnsupportedError:
            continue
        return 3
    await exchange(towline.Endpoint())
    return 7

async def parent():
    connection = await exchange(endpoint)
    return connection

endpoint = towline.Endpoint()
loop = asyncio.new_event_loop()
connection = loop.run_until_complete(parent())
pid = os.fork()
if pid == 0:
    code = 4
    try:
        code = asyncio.run(child(endpoint, connection))
    finally:
        os._exit(code)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
loop.run_until_complete(exchange(endpoint))
print("parent works")
"""


def test_a_forked_child_makes_its_own_endpoint() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "parent works\n"), done.stdout + done.stderr


EXIT = """
import asyncio, sys, towline
kept = []
async def main():
    endpoint = towline.Endpoint()
    listener = await endpoint.listen(sys.argv[1])
    near = await endpoint.connect(listener.address)
    far = await listener.accept(prefetch=None)
    if sys.argv[2] == "send":
        kept.append(asyncio.ensure_future(near.send(b"", [bytearray(48 << 20)])))
        kept.append(asyncio.ensure_future(far.incoming() if hasattr(far, "incoming") else asyncio.sleep(9)))
    else:
        kept.append(asyncio.ensure_future(far.recv()))
    await asyncio.sleep(0.05)
    kept.extend([endpoint, listener, near, far])
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
kept.append(loop)
print("exits", flush=True)
"""


EXIT_OF_THREADS = """
import sys, threading, time
from towline import blocking
endpoint = blocking.Endpoint()
listener = endpoint.listen(sys.argv[1])
ends = [(endpoint.connect(listener.address), listener.accept(prefetch=None)) for _ in range(8)]
for near, far in ends:
    call, arguments = (far.recv, ()) if sys.argv[2] == "recv" else (near.send, (b"", [bytearray(48 << 20)]))
    threading.Thread(target=call, args=arguments, daemon=True).start()
time.sleep(0.05)
print("exits", flush=True)
"""


@pytest.mark.parametrize("program", [EXIT, EXIT_OF_THREADS], ids=["loop", "threads"])
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "shm://127.0.0.1:0", "mem://"])
@pytest.mark.parametrize("what", ["recv", "send"])
def test_the_interpreter_exits_at_once_with_open_connections(address: str, what: str, program: str) -> None:
    def seconds() -> float:
        command = [sys.executable, "-c", program, address, what]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stderr is not None
            assert child.stdout.readline() == "exits\n", child.stderr.read()
            start = time.monotonic()
            code = child.wait(20)
            assert code == 0, child.stderr.read()
            return time.monotonic() - start

    # It takes 0.1 s. Other processes may have the processors meanwhile, so one of three attempts is enough.
    assert any(seconds() < 1 for _ in range(3))
