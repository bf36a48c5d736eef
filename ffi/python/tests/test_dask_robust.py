"""Claims: lost and stopped workers cost no result and leave nothing behind, and many comms cost what tcp's do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, Status
from distributed.comm import listen

from dask_support import Accepting
from links import descriptors, until_now
from towline.dask import counters, settings

SHORT = pytest.param(4, marks=pytest.mark.timeout(150), id="short")
LONG = pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="10 minutes")


class Disturber(threading.Thread):
    """Kills and stops worker processes of a cluster, one at a time, until it is told to end."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._ended = threading.Event()
        self._random = random.Random(7)
        self.killed = self.stopped = 0

    def run(self) -> None:
        while not self._ended.wait(self._random.uniform(1.0, 2.5)):
            # Dask does not replace a worker that dies while it starts.
            nannies = [nanny for nanny in self._cluster.workers.values() if nanny.status == Status.running]
            pids = [nanny.pid for nanny in nannies if nanny.pid]
            if not pids:
                continue
            pid = self._random.choice(pids)
            try:
                if self._random.random() < 0.5:
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1
                else:
                    os.kill(pid, signal.SIGSTOP)
                    self.stopped += 1
                    self._ended.wait(self._random.uniform(0.2, 1.5))
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def end(self) -> None:
        self._ended.set()
        self.join(20)


def part(number: int) -> Any:
    return np.full(200_000, number)


def total(parts: list[Any]) -> int:
    return sum(int(array.sum()) for array in parts)


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_lost_and_stopped_workers_cost_no_result(seconds: float) -> None:
    options: dict[str, Any] = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": None}
    # The endpoint and Dask's own threads stay.
    with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
        assert client.submit(total, [part(1)]).result(timeout=60) == 200_000
    gc.collect()
    threads, files = threading.active_count(), without_pipes()
    with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
        # A task may be on a killed worker many times.
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 10_000))
        disturber = Disturber(cluster)
        disturber.start()
        end = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < end:
            # Dask gives up a worker that was away for 15 s, over tcp too.
            cluster.scale(3)
            numbers = client.map(part, range(20), pure=False)
            sums = [client.submit(total, numbers[at::4], pure=False) for at in range(4)]
            assert sum(client.gather(sums)) == 200_000 * sum(range(20))
            rounds += 1
        disturber.end()
        assert rounds and disturber.killed + disturber.stopped
        print(f"{rounds} rounds, {disturber.killed} workers killed, {disturber.stopped} stopped")
    until_now(lambda: not counters.snapshot()["connections"], "all comms are closed")
    until_now(lambda: counters.pool_bytes()[0] == 0, "no received array is left")
    until_now(lambda: threading.active_count() <= threads + 1, "threads end")
    try:
        until_now(lambda: without_pipes().total() <= files.total(), "descriptors are closed")
    except AssertionError as error:
        raise AssertionError(f"these are left: {dict(without_pipes() - files)}") from error


def without_pipes() -> Counter[str]:
    """Count descriptors by kind. Dask keeps a nanny that could not start its worker, and two pipes, over tcp too."""
    kinds = (re.sub(r":\[\d+\]$", "", what) for what in descriptors().values())
    return Counter(kind for kind in kinds if kind != "pipe")


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_listener_that_is_kept_lets_go_of_its_loop() -> None:
    def event_descriptors() -> int:
        return without_pipes()["anon_inode:[eventfd]"]

    async def start() -> Any:
        listener = listen("towline://127.0.0.1:0", lambda _comm: None)
        await listener.start()
        await asyncio.sleep(0.01)
        return listener

    async def stop() -> None:
        listener.stop()

    # The endpoint has one of its own.
    settings.endpoint()
    before = event_descriptors()
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(start())
    assert event_descriptors() == before + 1
    # The loop ends before the listener's tasks, as a cluster's may.
    loop.run_until_complete(stop())
    loop.close()
    del loop
    until_now(lambda: event_descriptors() == before, "its descriptor is closed")
    assert not listener._tasks


@pytest.mark.timeout(120)
def test_a_hundred_workers_of_one_scheduler() -> None:
    # All of them would pause, each by its hundredth of the memory and by what the whole process uses.
    options: dict[str, Any] = {"n_workers": 100, "threads_per_worker": 1, "processes": False, "memory_limit": 0}
    with LocalCluster(protocol="towline", dashboard_address=None, **options) as cluster, Client(cluster) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 100
        assert sum(client.gather(client.map(lambda number: number, range(1000)))) == 499_500


@pytest.mark.timeout(120)
def test_clusters_of_one_process_leave_no_descriptor() -> None:
    options: dict[str, Any] = {"n_workers": 1, "processes": False, "memory_limit": 0, "dashboard_address": None}
    left = []
    for _ in range(4):
        with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
            assert client.submit(total, [part(1)]).result(timeout=60) == 200_000
        until_now(lambda: not counters.snapshot()["connections"], "all comms are closed")
        left.append(len(descriptors()))
    # Dask keeps the scheduler of each with its closed comms, over tcp too.
    until_now(lambda: len(descriptors()) <= left[0], f"no cluster leaves a descriptor: {left}")


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_connects_leave_nothing(count: int) -> None:
    async def work() -> None:
        async with Accepting("towline://127.0.0.1:0") as accepting:
            await connected_and_closed(accepting, 50)
            gc.collect()
            before, memory = len(descriptors()), resident()
            await connected_and_closed(accepting, count)
            until = time.monotonic() + 20
            while len(descriptors()) > before:
                assert time.monotonic() < until, f"{len(descriptors())} descriptors after {before}"
                await asyncio.sleep(0.02)
            gc.collect()
            # A connection that left one KiB behind would leave 10 MB.
            assert resident() - memory < 8 << 20, f"{resident() - memory} bytes more after {count} connections"

    asyncio.run(work())


async def connected_and_closed(accepting: Accepting, count: int) -> None:
    for _ in range(count):
        near, far = await accepting.pair()
        await near.close()
        far.abort()


_OPEN = """
import asyncio, json, sys
from distributed.comm import connect, listen

protocol, count = sys.argv[1], int(sys.argv[2])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def main():
    comms = []
    taken = asyncio.Queue()
    listener = listen(protocol + "://127.0.0.1:0", taken.put)
    await listener.start()
    for at in range(count + 20):
        if at == 20:
            before = resident()
        comms.append(await connect(listener.contact_address, timeout=20))
        comms.append(await taken.get())
        await comms[-2].write({"x": 1})
        await comms[-1].read()
    print(json.dumps((resident() - before) / count))
    for comm in comms:
        comm.abort()


asyncio.run(main())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("transport", "more_bytes"),
    [
        # Each end of a connection maps two segments of 68 KiB, whose memory is there before they are used. The first
        # 64 ends of a process, 12 comms of these, have 292 KiB.
        ("shm", 2 * 2 * (68 << 10) + (64 << 10)),
        ("tcp", 32 << 10),
    ],
)
def test_open_comms_cost_a_bounded_amount_of_memory(transport: str, more_bytes: int) -> None:
    def resident(protocol: str) -> float:
        environment = os.environ | {"DASK_TOWLINE__TRANSPORT": transport}
        command = [sys.executable, "-c", _OPEN, protocol, "300"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        assert done.returncode == 0, done.stderr
        bytes_each: float = json.loads(done.stdout)
        return bytes_each

    ours, theirs = resident("towline"), resident("tcp")
    assert ours <= theirs + more_bytes, f"{ours:.0f} bytes for both ends, and {theirs:.0f} over tcp://"
