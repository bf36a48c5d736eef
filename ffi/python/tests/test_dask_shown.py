"""Claims: paths and bytes of comms appear in the log, in metrics, at ``/metrics``, and on a page of the dashboard."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.metrics import context_meter

from dask_support import asynchronous, beneath, pair
from links import library
from towline.dask import counters

pytestmark = pytest.mark.timeout(120)


@asynchronous
async def test_each_connection_has_a_line_in_the_log() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("towline.dask")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with beneath("tcp"):
            async with pair() as (near, far):
                lines = [record.getMessage() for record in records]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    for comm in (near, far):
        line = f"{comm.local_address} to {comm.peer_address}: path tcp, encryption none"
        assert lines.count(line) == 1, lines


@asynchronous
async def test_messages_are_counted_by_path() -> None:
    measured: list[tuple[Any, float, str]] = []

    def note(label: Any, value: float, unit: str) -> None:
        measured.append((label, value, unit))

    with beneath("tcp"):
        async with pair() as (near, far):
            before = counters.snapshot()
            assert before["connections"]["tcp"] >= 2
            with context_meter.add_callback(note):
                size = await near.write({"x": b"1" * 1000})
                await far.read()
            after = counters.snapshot()
    for direction in ("sent", "received"):
        counted = after[f"{direction}_bytes"]["tcp"] - before[f"{direction}_bytes"].get("tcp", 0)
        assert counted == size > 1000
        assert (f"towline-{direction}-tcp", size, "bytes") in measured
    assert near.closed() and near not in [comm for comm in counters._comms if not comm.closed()]


def test_a_worker_shows_its_counters() -> None:
    library("prometheus_client")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "worker_dashboard_address": ":0"}
    with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
        first, second = sorted(client.scheduler_info()["workers"])
        array = client.submit(np.ones, 1_000_000, dtype="u1", workers=[first])
        assert client.submit(np.sum, array, workers=[second]).result(timeout=60) == 1_000_000
        port = client.scheduler_info()["workers"][second]["services"]["dashboard"]
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("towline_dask"))
        assert float(lines['towline_dask_bytes_total{direction="received",path="shm"}']) >= 1_000_000
        assert float(lines['towline_dask_connections{path="shm"}']) >= 2
        assert float(lines['towline_dask_pool_bytes{state="in_use"}']) >= 1_000_000

        async def metrics(dask_scheduler: Any) -> Any:
            return dask_scheduler.workers[second].metrics["towline"]

        shown = client.run_on_scheduler(metrics)
        assert shown["connections"]["shm"] >= 1


def test_a_page_of_the_dashboard_shows_the_paths() -> None:
    library("bokeh")
    from towline.dask.dashboard import PAGE, pairs

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(protocol="towline", **options) as cluster, Client(cluster) as client:
        first, second = sorted(client.scheduler_info()["workers"])
        array = client.submit(np.ones, 1_000_000, dtype="u1", workers=[first])
        assert client.submit(np.sum, array, workers=[second]).result(timeout=60) == 1_000_000
        base = cluster.dashboard_link.rpartition("/")[0]
        listed = json.load(urllib.request.urlopen(f"{base}/individual-plots.json", timeout=20))
        assert PAGE in listed.values()
        page = urllib.request.urlopen(base + PAGE, timeout=20).read().decode()
        assert "bokeh" in page and "data-root-id" in page
        until = time.monotonic() + 20
        while not (columns := client.run_on_scheduler(lambda dask_scheduler: pairs(dask_scheduler)))["path"]:
            assert time.monotonic() < until, "the worker has sent its metrics"
            time.sleep(0.05)
        assert columns["path"] == ["shm"] and columns["sender"] != columns["receiver"]


def test_a_cluster_without_bokeh_has_no_page(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "sys.modules['bokeh'] = sys.modules['prometheus_client'] = None\n"
        "from distributed import Client, LocalCluster\n"
        "with LocalCluster(protocol='towline', n_workers=1, processes=False, dashboard_address=':0') as cluster:\n"
        "    with Client(cluster) as client:\n"
        "        print(client.submit(sum, [1, 2]).result())\n"
        "assert 'towline.dask.dashboard' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
