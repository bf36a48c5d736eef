"""How much unused memory a worker's endpoints keep for arrays to come.

Received arrays land in memory that was used before, which costs a third of new memory. The operating system counts it
as the worker's, and Dask pauses and restarts workers by that count. So the endpoints keep a share of the worker's
memory limit, and never so much that the worker would spill because of it.
"""

from __future__ import annotations

import asyncio
import time

from distributed import Worker

from . import counters, settings

# As often as Dask's worker looks at its memory.
_INTERVAL_S = 0.1
# Without a limit: clients, schedulers, and workers with memory_limit=0.
_UNLIMITED_BYTES = 256 << 20


# When to look next: one look serves all listeners of the process.
_next_look = 0.0


async def keep() -> None:
    """Adjust the endpoints of this process, until cancelled."""
    global _next_look
    while True:
        now = time.monotonic()
        if now >= _next_look:
            _next_look = now + _INTERVAL_S / 2
            workers = list(Worker._instances)
            for worker in workers:
                counters.show(worker)
            idle_bytes_max = _idle_bytes_max(workers)
            for endpoint in settings.endpoints():
                endpoint._inner.set_pool_idle_bytes_max(idle_bytes_max)
        await asyncio.sleep(_INTERVAL_S)


def _idle_bytes_max(workers: list[Worker]) -> int:
    limited = [(worker.memory_manager.memory_limit or 0, worker.memory_manager) for worker in workers]
    limited = [(limit, manager) for limit, manager in limited if limit]
    if not limited:
        return _UNLIMITED_BYTES
    # All workers of one process are measured by its memory.
    limit, manager = min(limited, key=lambda it: it[0])
    # Beyond this part of the limit Dask writes data to disk, or pauses the worker.
    full = manager.memory_spill_fraction or manager.memory_pause_fraction or 1.0
    others = workers[0].monitor.get_process_memory() - counters.pool_bytes()[1]
    return max(0, min(int(limit * float(settings.get("pool-share"))), int(limit * full) - others))
