"""Claims: received arrays land in memory that was used before, a share of the worker's limit, and this never pauses it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from towline.dask import counters, memory

pytestmark = pytest.mark.timeout(120)
LIMIT = 400_000_000
PART = 50_000_000


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": LIMIT, "dashboard_address": None}
    with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
        yield client


def move(client: Client, times: int) -> str:
    """Let the second worker receive and drop arrays. Return its address."""
    first, second = sorted(client.scheduler_info()["workers"])
    for _ in range(times):
        array = client.submit(np.ones, PART, dtype="u1", workers=[first], pure=False)
        assert client.submit(np.sum, array, workers=[second], pure=False).result(timeout=60) == PART
        del array
    return second


def pool(client: Client, worker: str) -> dict[str, Any]:
    return client.run(counters.snapshot, workers=[worker])[worker]


def idle_within(client: Client, worker: str, seconds: float, low: int, high: int) -> None:
    until = time.monotonic() + seconds
    while not low <= (idle := pool(client, worker)["pool_idle_bytes"]) <= high:
        assert time.monotonic() < until, f"{idle} bytes are idle, and not {low} to {high}"
        time.sleep(0.05)


def test_ten_times_the_limit_passes_through_a_worker(client: Client) -> None:
    second = move(client, 10 * LIMIT // PART)
    now = pool(client, second)
    assert sum(now["received_bytes"].values()) >= 10 * LIMIT
    # The array of the last task may still be there.
    idle_within(client, second, 5, PART, LIMIT // 4)
    changes = [
        event
        for _time, event in client.get_events(second)
        if event["action"] == "worker-status-change" and event["status"] != "running"
    ]
    assert not changes, "it was neither paused nor restarted"
    workers = client.scheduler_info()["workers"]
    assert second in workers and workers[second]["metrics"]["memory"] < LIMIT * 0.6


def test_unused_memory_is_freed_after_some_time() -> None:
    with (
        dask.config.set({"towline.pool-idle-time": "1 s"}),
        LocalCluster(protocol="towline", n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        second = move(client, 2)
        idle_within(client, second, 10, 0, 1 << 20)


def worker(limit: int | None, used: int, **fractions: object) -> Any:
    manager = {"memory_limit": limit, "memory_spill_fraction": 0.7, "memory_pause_fraction": 0.8} | fractions
    monitor = SimpleNamespace(get_process_memory=lambda: used)
    return SimpleNamespace(memory_manager=SimpleNamespace(**manager), monitor=monitor)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], 256 << 20),
        ([worker(None, 100)], 256 << 20),
        ([worker(1000, 100)], 250),
        ([worker(1000, 600)], 100),
        ([worker(1000, 900)], 0),
        ([worker(1000, 700, memory_spill_fraction=False)], 100),
        ([worker(1000, 100), worker(400, 100), worker(0, 100)], 100),
    ],
    ids=["no worker", "no limit", "a share", "little room", "none", "spilling off", "the smallest limit"],
)
def test_the_share_leaves_room_below_the_level_of_spilling(
    workers: list[Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "pool_bytes", lambda: (0, 0))
    assert memory._idle_bytes_max(workers) == expected


def test_memory_that_the_pool_holds_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "pool_bytes", lambda: (0, 300))
    assert memory._idle_bytes_max([worker(1000, 700)]) == 250
