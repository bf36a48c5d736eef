"""NumPy's arrays in memory that other processes of this host read in place.

After :func:`enable_arena`, NumPy allocates arrays of 64 KiB and more in an arena of this process. A frame that is such
an array, and read-only, is handed over by ``shm`` instead of copied, if both ends trust each other
(``Endpoint(trust_user=True)``, or a token). That takes the same time for a megabyte and a gigabyte:

    >>> import numpy, towline.numpy
    >>> towline.numpy.enable_arena(256 << 20)
    >>> numbers = numpy.ones(1_000_000)
    >>> numbers.flags.writeable = False      # now it may be sent without a copy
    >>> towline.numpy.arena_stats()["arrays"]
    1
    >>> towline.numpy.disable_arena()

The receiver's frame is read-only. Its memory is in use until the receiver has dropped it: the sender may delete its
array before. Whoever makes the array writable again, and writes, changes what the receiver sees. Writable arrays are
copied, and so are views of arrays that are writable.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _towline

__all__ = ["arena_stats", "disable_arena", "enable_arena"]


def enable_arena(size: int) -> None:
    """Let NumPy allocate in an arena of at most ``size`` bytes, in the current context.

    A process has one arena. NumPy keeps its allocator in a context variable, which a new thread does not inherit: call
    this in each thread that makes arrays, such as ``ThreadPoolExecutor(initializer=enable_arena, initargs=(size,))``.
    The arena grows as arrays are made, in few steps. Where it has no room, arrays are NumPy's ordinary ones, and
    :func:`arena_stats` counts them.

    Raises ``ImportError`` without NumPy 1.22 or later, ``ValueError`` if the process has an arena of another size, and
    ``InvalidError`` if the size is less than a page.
    """
    api = _numpy_api()
    _towline.make_numpy_arena(size)
    _towline.set_numpy_handler(api, _towline.numpy_handler())


def disable_arena() -> None:
    """Let NumPy allocate as it does by itself, in the current context. Present arrays stay where they are."""
    _towline.set_numpy_handler(_numpy_api(), None)


def arena_stats() -> dict[str, int] | None:
    """Return the arena's size and use, or ``None`` if this process has none.

    ``bytes_max`` is its limit, and ``bytes`` what it has of the system's memory. Of that, ``in_use_bytes`` are arrays of
    this process or lent; ``lent_bytes`` are lent, in so many ``leases``. ``arrays`` is the number of arrays, and
    ``fallbacks`` of those that found no room so far.
    """
    return _towline.numpy_arena_stats()


def _numpy_api() -> Any:
    numpy: Any = importlib.import_module("numpy")
    version = tuple(int(part) for part in numpy.__version__.split(".")[:2])
    if not (1, 22) <= version < (3, 0):
        raise ImportError(f"NumPy {numpy.__version__}: an arena needs 1.22 or later, before 3.0")
    core = "numpy._core" if version >= (2, 0) else "numpy.core"
    return importlib.import_module(f"{core}._multiarray_umath")._ARRAY_API
