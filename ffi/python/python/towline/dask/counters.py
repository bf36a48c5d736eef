"""What the comms of this process did, as Dask shows it: in a worker's metrics, and at ``/metrics``."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.metrics import context_meter

import towline.numpy

from . import settings

if TYPE_CHECKING:
    from .comm import TowlineComm

# Bytes of messages, for each path.
_sent: Counter[str] = Counter()
_received: Counter[str] = Counter()
_comms: weakref.WeakSet[TowlineComm] = weakref.WeakSet()
_connected: weakref.WeakSet[TowlineComm] = weakref.WeakSet()
_is_collected = False


def opened(comm: TowlineComm) -> None:
    """Count an open comm, until it is closed or dropped."""
    _comms.add(comm)


def connected(comm: TowlineComm) -> None:
    """Note a comm that this process has connected: its peer has an address that others know."""
    _connected.add(comm)


def sent(path: str, size: int) -> None:
    """Count a sent message."""
    _sent[path] += size
    context_meter.digest_metric(f"towline-sent-{path}", size, "bytes")


def received(path: str, size: int) -> None:
    """Count a received message."""
    _received[path] += size
    context_meter.digest_metric(f"towline-received-{path}", size, "bytes")


def pool_bytes() -> tuple[int, int]:
    """Return the bytes of received arrays, and those of unused memory that is kept for others."""
    each = [endpoint._inner.pool_bytes() for endpoint in settings.endpoints()]
    return sum(in_use for in_use, _idle in each), sum(idle for _in_use, idle in each)


def snapshot() -> dict[str, Any]:
    """Return all counters of this process."""
    in_use, idle = pool_bytes()
    connections = Counter(comm.extra_info["path"] for comm in list(_comms) if not comm.closed())
    return {
        "connections": dict(connections),
        "paths": {comm.peer_address: comm.extra_info["path"] for comm in list(_connected) if not comm.closed()},
        "sent_bytes": dict(_sent),
        "received_bytes": dict(_received),
        "pool_in_use_bytes": in_use,
        "pool_idle_bytes": idle,
        "numpy_arena": towline.numpy.arena_stats(),
    }


def show(worker: Worker) -> None:
    """Add the counters to the metrics that a worker sends with its heartbeat, and to those at ``/metrics``."""
    worker.metrics.setdefault("towline", lambda _worker: snapshot())
    global _is_collected
    # Dask has loaded it if it is installed.
    prometheus = sys.modules.get("prometheus_client")
    if prometheus is not None and not _is_collected:
        _is_collected = True
        prometheus.REGISTRY.register(_Collector())


class _Collector:
    """The counters in the form of prometheus_client."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = snapshot()
        moved = CounterMetricFamily(
            "towline_dask_bytes", "Bytes of Dask's messages over Towline", labels=["direction", "path"]
        )
        for direction in ("sent", "received"):
            for path, count in now[f"{direction}_bytes"].items():
                moved.add_metric([direction, path], count)
        yield moved
        connections = GaugeMetricFamily("towline_dask_connections", "Open comms over Towline", labels=["path"])
        for path, count in now["connections"].items():
            connections.add_metric([path], count)
        yield connections
        pool = GaugeMetricFamily("towline_dask_pool_bytes", "Memory of received arrays", labels=["state"])
        for state in ("in_use", "idle"):
            pool.add_metric([state], now[f"pool_{state}_bytes"])
        yield pool
        if now["numpy_arena"] is not None:
            arena = GaugeMetricFamily("towline_numpy_arena_bytes", "Memory of NumPy's arena", labels=["state"])
            for state in ("in_use", "lent"):
                arena.add_metric([state], now["numpy_arena"][f"{state}_bytes"])
            yield arena
