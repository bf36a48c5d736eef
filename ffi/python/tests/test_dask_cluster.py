"""Claims: clusters run over Towline by one changed word, whoever starts them, and survive lost workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(params=[False, True], ids=["threads", "processes"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Two workers of one thread each."""
    with local_cluster(processes=request.param) as cluster:
        yield cluster


def local_cluster(**options: object) -> LocalCluster:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None} | options
    return LocalCluster(protocol="towline", **options)


def add(left: object, right: object) -> object:
    return left + right  # type: ignore[operator]


def test_no_environment_variable_is_set() -> None:
    # TOWLINE_REQUIRE belongs to the tests: what may not skip.
    ours = {name for name in os.environ if name.startswith(("DASK_", "TOWLINE_"))}
    assert ours <= {"TOWLINE_REQUIRE"}


def test_a_cluster_computes(cluster: LocalCluster) -> None:
    assert cluster.scheduler_address.startswith("towline://127.0.0.1:")
    with Client(cluster) as client:
        workers = list(client.scheduler_info()["workers"])
        assert len(workers) == 2
        assert all(worker.startswith("towline://127.0.0.1:") for worker in workers)
        assert sum(client.gather(client.map(lambda number: number + 1, range(100)))) == 5050


def test_large_arrays_go_from_worker_to_worker(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        first, second = client.scheduler_info()["workers"]
        array = client.submit(np.arange, 4_000_000, workers=[first])
        twice = client.submit(add, array, array, workers=[second])
        result = twice.result()
        assert np.array_equal(result, 2 * np.arange(4_000_000))
        assert result.flags.writeable
        path = client.run(lambda dask_worker: [c.extra_info["path"] for c in paths(dask_worker)], workers=[second])
        assert set(path[second]) <= {"mem", "shm"} and path[second]


def paths(worker: object) -> list[object]:
    return [comm for comms in worker.rpc.available.values() for comm in comms]  # type: ignore[attr-defined]


def test_scattered_data_comes_back(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        arrays = [np.full(300_000, number) for number in range(4)]
        futures = client.scatter(arrays)
        assert [int(total) for total in client.gather(client.map(np.sum, futures))] == [0, 300_000, 600_000, 900_000]
        assert all(np.array_equal(*both) for both in zip(client.gather(futures), arrays, strict=True))


def test_a_client_connects_by_the_address(cluster: LocalCluster) -> None:
    with Client(cluster.scheduler_address) as client:
        assert client.submit(add, 1, 2).result() == 3


def test_a_restarted_cluster_computes() -> None:
    with local_cluster(processes=True) as cluster, Client(cluster) as client:
        assert client.submit(add, 1, 2).result() == 3
        client.restart(timeout=60)
        assert client.submit(add, 3, 4).result() == 7


def test_an_adaptive_cluster_grows_and_shrinks() -> None:
    with local_cluster(n_workers=0, processes=False) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=2)
        assert client.gather(client.map(lambda number: time.sleep(0.2) or number, range(10))) == list(range(10))
        assert client.scheduler_info()["workers"]
        until = time.monotonic() + 60
        while client.scheduler_info()["workers"] and time.monotonic() < until:
            time.sleep(0.05)
        assert not client.scheduler_info()["workers"]


def test_a_killed_worker_costs_no_result() -> None:
    with local_cluster(n_workers=3, processes=True) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid)
        numbers = client.map(lambda number: time.sleep(0.05) or np.full(50_000, number), range(60))
        total = client.submit(lambda arrays: sum(int(array.sum()) for array in arrays), numbers)
        time.sleep(0.5)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        assert total.result(timeout=100) == 50_000 * sum(range(60))


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for program in reversed(started):
        program.terminate()
    for program in started:
        try:
            program.wait(20)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait(20)


@pytest.mark.parametrize("nanny", ["--no-nanny", "--nanny"])
def test_programs_make_a_cluster(programs: list[subprocess.Popen[bytes]], nanny: str, tmp_path: Path) -> None:
    def start(*words: str) -> None:
        command = [sys.executable, "-m", "dask", *words]
        programs.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    file = tmp_path / "scheduler.json"
    start(
        "scheduler", "--protocol", "towline", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
        "--scheduler-file", str(file),
    )  # fmt: skip
    until = time.monotonic() + 60
    while not file.exists() or not file.read_text().endswith("}"):
        assert programs[0].poll() is None and time.monotonic() < until, "the scheduler does not start"
        time.sleep(0.05)
    with Client(scheduler_file=str(file)) as client:
        address = client.scheduler.address
        assert address.startswith("towline://127.0.0.1:")
        for _ in range(2):
            start("worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", nanny)
        client.wait_for_workers(2, timeout=90)
        assert all(worker.startswith("towline://127.0.0.1:") for worker in client.scheduler_info()["workers"])
        arrays = client.map(lambda number: np.full(200_000, number), range(8))
        assert client.submit(lambda arrays: sum(int(array[0]) for array in arrays), arrays).result(60) == 28


def test_an_asynchronous_client_computes() -> None:
    async def run() -> None:
        async with (
            LocalCluster(
                protocol="towline", n_workers=2, processes=False, dashboard_address=None, asynchronous=True
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert await client.submit(add, 1, 2) == 3

    asyncio.run(asyncio.wait_for(run(), 60))
