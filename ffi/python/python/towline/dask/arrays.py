"""Results of tasks in NumPy's arena: large read-only arrays are handed to other workers of the host, not copied.

NumPy keeps its allocator in a context variable, and Dask's threads run tasks in copies of the context of
``Worker.execute``. So that method is wrapped.
"""

from __future__ import annotations

import logging
import sys
import weakref
from typing import Any

from dask.utils import parse_bytes
from distributed import Worker

import towline.numpy

from . import settings

logger = logging.getLogger(__name__)

# The longest chain of views that is followed down to the array that has the memory.
_VIEWS_MAX = 16
_attached: weakref.WeakSet[Worker] = weakref.WeakSet()


def attach(worker: Worker) -> None:
    """Let a worker's tasks allocate in the arena, and freeze their results, as the configuration says."""
    size, freezes = settings.get("numpy-arena"), bool(settings.get("freeze-results"))
    if (size is None and not freezes) or worker in _attached:
        return
    _attached.add(worker)
    size_max = None if size is None else parse_bytes(size)
    if size_max is not None:
        try:
            towline.numpy.enable_arena(size_max)
            towline.numpy.disable_arena()
        except (ImportError, ValueError, towline.Error) as error:
            logger.warning("towline.numpy-arena is not used: %s", error)
            size_max = None
    execute = worker.execute

    async def in_arena(*arguments: Any, **options: Any) -> Any:
        if size_max is not None:
            towline.numpy.enable_arena(size_max)
        event = await execute(*arguments, **options)
        if freezes:
            freeze(getattr(event, "value", None))
        return event

    worker.execute = in_arena  # type: ignore[method-assign]


def freeze(result: Any) -> None:
    """Make an array read-only, and the arrays that it is a view of."""
    numpy = sys.modules.get("numpy")
    for _ in range(_VIEWS_MAX):
        if numpy is None or not isinstance(result, numpy.ndarray):
            return
        result.flags.writeable = False
        result = result.base
