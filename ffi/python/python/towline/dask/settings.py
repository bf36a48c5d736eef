"""The package's keys in Dask's configuration, and the endpoint that they describe."""

from __future__ import annotations

import os
import threading
from typing import Any

import dask
from dask.utils import parse_timedelta

import towline

from .security import Certificates

DEFAULTS: dict[str, Any] = {
    "towline": {
        # Trust the processes of this user on this host: they may read one another's memory, which saves a copy.
        "trust-user": True,
        # How the endpoint's thread waits: sleep, adaptive (short spins), spin.
        "wait": "sleep",
        # The transport beneath: null is the fastest that both ends have; else shm, tcp, ucx.
        "transport": None,
        # The host that a listener at a wildcard address publishes; null is the one that Dask finds.
        "contact-host": None,
        # How many bytes of messages one connection queues before `write` waits.
        "write-buffer": "64 MiB",
        # Received arrays land in memory that was used before: how much unused memory a worker keeps for that, as a
        # share of its memory limit.
        "pool-share": 0.25,
        # How long it is kept.
        "pool-idle-time": "10 s",
        # Tasks make NumPy's arrays of 64 KiB and more in an arena of this size. Workers of one host then hand read-only
        # ones over without a copy. null: no arena.
        "numpy-arena": None,
        # Make the arrays that tasks return read-only. Without it, tasks must do so themselves.
        "freeze-results": False,
    }
}

dask.config.update_defaults(DEFAULTS)


def get(key: str) -> Any:
    """Return the value of ``towline.KEY``."""
    # A `dask.config.set` from before this module was loaded takes the defaults with it when it ends.
    return dask.config.get(f"towline.{key}", default=DEFAULTS["towline"][key])


# One endpoint for each process and each set of certificates. A forked child makes its own.
_endpoints: dict[tuple[int, Certificates | None], towline.Endpoint] = {}
_lock = threading.Lock()


def endpoint(certificates: Certificates | None = None) -> towline.Endpoint:
    """Return this process's endpoint, for encrypted connections if there are ``certificates``."""
    key = (os.getpid(), certificates)
    with _lock:
        if key not in _endpoints:
            _endpoints[key] = _new_endpoint(certificates)
        return _endpoints[key]


def endpoints() -> list[towline.Endpoint]:
    """Return the endpoints of this process."""
    with _lock:
        return [endpoint for (pid, _certificates), endpoint in _endpoints.items() if pid == os.getpid()]


def _new_endpoint(certificates: Certificates | None) -> towline.Endpoint:
    options: dict[str, Any] = {"trust_user": get("trust-user"), "wait": get("wait")}
    options["pool_idle_time"] = parse_timedelta(get("pool-idle-time"))
    if certificates is not None:
        # As Dask does with its sockets: any certificate that the cluster's authority signed, whatever its name.
        options["tls"] = towline.Tls(**certificates._asdict(), any_name=True)
    # As with Dask's sockets, whoever reaches a port may connect, unless certificates say otherwise.
    return towline.Endpoint(insecure=True, **options)
