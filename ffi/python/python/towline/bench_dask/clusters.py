"""Clusters of two workers with one thread each: the same work over ``tcp`` and over ``towline`` in turn.

A third one hands NumPy's arrays over (``towline.numpy-arena``) where that makes a difference.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
from distributed import Client, LocalCluster, wait

from .report import Report, Row, size

# Each way's protocol and settings.
_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "tcp": ("tcp", {}),
    "towline": ("towline", {}),
    "handed over": ("towline", {"towline.numpy-arena": "3 GiB", "towline.freeze-results": True}),
}


class _Cluster:
    def __init__(self, way: str, stack: contextlib.ExitStack) -> None:
        self.way = way
        protocol, keys = _WAYS[way]
        options: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
        with dask.config.set(keys):
            cluster = LocalCluster(protocol=protocol, n_workers=2, **options)
        self.client = Client(stack.enter_context(cluster), set_as_default=False)
        stack.enter_context(self.client)
        self.workers = sorted(self.client.scheduler_info()["workers"])


Work = Callable[[_Cluster], float]


def measure_clusters(report: Report, quick: bool) -> None:
    """Measure all cases, and add a row for each protocol."""
    times = 3 if quick else 7
    moved = (50 if quick else 500) * 1_000_000
    side = 2000 if quick else 8000
    with contextlib.ExitStack() as stack:
        every = [_Cluster(way, stack) for way in _WAYS]
        copying = every[:2]
        first = f"{moved // 1_000_000} MB between workers"
        _case(report, every, f"{first}, first time", lambda it: _move(it, moved), 1, warm_up=0)
        _case(report, every, first, lambda it: _move(it, moved), times)
        _case(report, every, f"(x + x.T).sum(), {size(8 * side * side)}", lambda it: _transpose(it, side), times)
        _case(report, copying, "P2P shuffle", lambda it: _shuffle(it, quick), times)
        count = 200 if quick else 2000
        _case(report, copying, f"{count} tiny tasks", lambda it: _tiny(it, count), times)


def _case(report: Report, clusters: list[_Cluster], name: str, work: Work, times: int, warm_up: int = 1) -> None:
    seconds: dict[str, list[float]] = {cluster.way: [] for cluster in clusters}
    rows = [Row(name, cluster.way, clusters[0].way) for cluster in clusters]
    try:
        for at in range(times + warm_up):
            for cluster in clusters:
                taken = work(cluster)
                if at >= warm_up:
                    seconds[cluster.way].append(taken)
        for row in rows:
            row.set_times(seconds[row.way])
    except ImportError as error:
        rows = [Row(name, "each", clusters[0].way, error=str(error), is_skipped=True)]
    except Exception as error:
        rows = [Row(name, "each", clusters[0].way, error=f"{type(error).__name__}: {error}")]
    report.add(*rows)


def _sent(size_bytes: int) -> Any:
    return np.full(size_bytes, 7, dtype="u1")


def _confirmed(data: Any) -> int:
    return int(data[0]) + int(data[-1]) + int(data.nbytes)


def _expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise RuntimeError(f"the result is {got} and not {wanted}")


def _move(cluster: _Cluster, size_bytes: int) -> float:
    first, second = cluster.workers
    data = cluster.client.submit(_sent, size_bytes, workers=[first], pure=False)
    with cluster.client.as_current():
        wait(data, timeout=120)
    begin = time.perf_counter()
    confirmed = cluster.client.submit(_confirmed, data, workers=[second], pure=False).result(timeout=120)
    seconds = time.perf_counter() - begin
    _expect(confirmed, 14 + size_bytes)
    return seconds


def _transpose(cluster: _Cluster, side: int) -> float:
    import dask.array as array

    numbers = array.ones((side, side), chunks=(1000, 1000))
    begin = time.perf_counter()
    total = cluster.client.compute((numbers + numbers.T).sum()).result(timeout=120)
    seconds = time.perf_counter() - begin
    _expect(float(total), 2.0 * side * side)
    return seconds


def _shuffle(cluster: _Cluster, quick: bool) -> float:
    import dask.datasets

    for needed in ("pandas", "pyarrow"):
        importlib.import_module(needed)

    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        frame = dask.datasets.timeseries(end="2000-01-03" if quick else "2000-01-15", freq="1s", partition_freq="6h")
        rows = 86_400 * (2 if quick else 14)
        begin = time.perf_counter()
        shuffled = frame.shuffle("id").map_partitions(len)
        counted = cluster.client.compute(shuffled.sum()).result(timeout=120)
        seconds = time.perf_counter() - begin
    _expect(int(counted), rows)
    return seconds


def _next(number: int) -> int:
    return number + 1


def _tiny(cluster: _Cluster, count: int) -> float:
    begin = time.perf_counter()
    total = sum(cluster.client.gather(cluster.client.map(_next, range(count), pure=False)))
    seconds = time.perf_counter() - begin
    _expect(total, count * (count + 1) // 2)
    return seconds
