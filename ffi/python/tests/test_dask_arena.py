"""Claims: with two configuration keys, workers of one host hand results of tasks over without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from links import until_now

import towline.numpy
from towline.dask import counters

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20


@pytest.fixture(params=[True, False], ids=["frozen", "as returned"], scope="module")
def cluster(request: Any) -> Iterator[tuple[Client, bool]]:
    keys = {"towline.numpy-arena": "96 MiB", "towline.freeze-results": request.param}
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}
    with (
        dask.config.set(keys),
        LocalCluster(protocol="towline", **options) as cluster,
        Client(cluster) as client,
    ):
        yield client, request.param


def arena(client: Client, worker: str) -> dict[str, int]:
    return client.run(towline.numpy.arena_stats, workers=[worker])[worker]


def looked_at(array: Any) -> tuple[bool, int]:
    return array.flags.writeable, int(array.sum(dtype="u8"))


def test_results_change_hands(cluster: tuple[Client, bool]) -> None:
    client, freezes = cluster
    first, second = sorted(client.scheduler_info()["workers"])
    made = client.submit(np.ones, 64 * MIB, dtype="u1", workers=[first], pure=False)
    seen = client.submit(looked_at, made, workers=[second], pure=False)
    assert seen.result(timeout=60) == (not freezes, 64 * MIB)
    # The second worker keeps its replica.
    now = arena(client, first)
    assert (now["leases"], now["lent_bytes"]) == ((1, 64 * MIB) if freezes else (0, 0))
    assert now["arrays"] == 1
    metrics = client.run(counters.snapshot, workers=[first])[first]["numpy_arena"]
    assert metrics["arrays"] == 1

    del made, seen
    until_now(lambda: arena(client, first)["in_use_bytes"] == 0, "both workers have dropped it")


def test_a_computation_is_right_though_the_arena_overflows(cluster: tuple[Client, bool]) -> None:
    client, _freezes = cluster
    array = pytest.importorskip("dask.array")
    line = array.arange(6000, chunks=1500)
    sums = (line[:, None] + line[None, :]).persist()
    assert (sums + sums.T * 2).sum().compute() == 3 * 2 * 6000 * (6000 * 5999 // 2)
    used = [arena(client, worker) for worker in client.scheduler_info()["workers"]]
    assert sum(each["fallbacks"] for each in used) > 0, "288 MB do not fit beside what is made of them"
    del sums
    for worker in client.scheduler_info()["workers"]:
        until_now(lambda worker=worker: arena(client, worker)["in_use_bytes"] == 0, "all arrays are dropped")


def test_a_task_that_writes_into_its_input_is_told(cluster: tuple[Client, bool]) -> None:
    client, freezes = cluster

    def double(array: Any) -> int:
        array *= 2
        return int(array[0])

    first, second = sorted(client.scheduler_info()["workers"])
    made = client.submit(np.ones, MIB, workers=[first], pure=False)
    doubled = client.submit(double, made, workers=[second], pure=False)
    if freezes:
        with pytest.raises(ValueError, match="read-only"):
            doubled.result(timeout=60)
    else:
        assert doubled.result(timeout=60) == 2
