"""Dask's communication over Towline: ``protocol="towline"``.

Dask finds it by its entry points; nothing has to be imported. ``towline://`` addresses are plain, ``towlines://``
addresses are encrypted with the certificates of Dask's ``Security``. ``docs/dask.md`` is the guide.
"""

from __future__ import annotations

from .backend import TowlineBackend, TowlinesBackend
from .comm import TowlineComm

__all__ = ["TowlineBackend", "TowlineComm", "TowlinesBackend"]
