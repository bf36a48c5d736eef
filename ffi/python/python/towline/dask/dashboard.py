"""A page of the scheduler's dashboard: the path between each pair of workers, and its bandwidth.

It is at ``/individual-towline-paths``, and in the list from which JupyterLab's extension opens pages. This module needs
bokeh, and is loaded where Dask has loaded its own dashboard.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from bokeh.models import ColumnDataSource, FactorRange, HoverTool
from bokeh.plotting import figure
from bokeh.server.tornado import BokehTornado
from dask.utils import format_bytes
from distributed import Scheduler
from distributed.dashboard.components import DashboardComponent
from distributed.dashboard.components.scheduler import individual_doc
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

logger = logging.getLogger(__name__)

PAGE = "/individual-towline-paths"
_INTERVAL_MS = 500
_COLORS = {"mem": "#8dd3c7", "shm": "#80b1d3", "tcp": "#fdb462", "ucx": "#b3de69"}
_OTHER_COLOR = "#d9d9d9"
_with_page: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def pairs(scheduler: Scheduler) -> dict[str, list[Any]]:
    """Return the pairs of workers that have a connection, as columns."""
    columns: dict[str, list[Any]] = {"receiver": [], "sender": [], "path": [], "color": [], "bandwidth": [], "text": []}
    for address, worker in scheduler.workers.items():
        paths = worker.metrics.get("towline", {}).get("paths", {})
        for other, path in paths.items():
            if other == address or other not in scheduler.workers:
                continue
            bandwidth = scheduler.bandwidth_workers.get((address, other))
            columns["receiver"].append(str(worker.name))
            columns["sender"].append(str(scheduler.workers[other].name))
            columns["path"].append(path)
            columns["color"].append(_COLORS.get(path, _OTHER_COLOR))
            columns["bandwidth"].append("not measured yet" if bandwidth is None else f"{format_bytes(int(bandwidth))}/s")
            columns["text"].append(path if bandwidth is None else f"{path}\n{format_bytes(int(bandwidth))}/s")
    return columns


class PathMatrix(DashboardComponent):
    """A square for each pair of workers: its color is the path."""

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self.scheduler = scheduler
        self._pairs = ColumnDataSource(pairs(scheduler))
        self._senders, self._receivers = FactorRange(factors=["-"]), FactorRange(factors=["-"])
        self._figure = figure(
            title="Towline: path and bandwidth between workers",
            x_range=self._senders,
            y_range=self._receivers,
            x_axis_label="sender",
            y_axis_label="receiver",
            tools="",
            toolbar_location=None,
            **options,
        )
        place: dict[str, Any] = {"x": "sender", "y": "receiver", "source": self._pairs}
        self._figure.rect(width=0.96, height=0.96, color="color", **place)
        self._figure.text(text="text", text_align="center", text_baseline="middle", **place)
        told = [("from", "@sender"), ("to", "@receiver"), ("path", "@path"), ("bandwidth", "@bandwidth")]
        self._figure.add_tools(HoverTool(tooltips=told))
        # What Dask puts on the page.
        self.root = self._figure

    def update(self, messages: Any = None) -> None:
        """Read the workers' metrics again."""
        names = [str(worker.name) for worker in self.scheduler.workers.values()] or ["-"]
        for axis in (self._senders, self._receivers):
            if list(axis.factors) != names:
                axis.factors = names
        self._pairs.data = pairs(self.scheduler)


def add_page() -> None:
    """Add the page to the dashboards of this process."""
    for scheduler in list(Scheduler._instances):
        if scheduler in _with_page:
            continue
        _with_page.add(scheduler)
        try:
            _add_to(scheduler)
        except Exception:
            # A dashboard of another version: the scheduler works without the page.
            logger.warning("The page of paths cannot be added to the dashboard", exc_info=True)


def _add_to(scheduler: Scheduler) -> None:
    served = [app for app in scheduler.http_application.applications if isinstance(app, BokehTornado)]
    if not served:
        return
    page = BokehApplication(
        {PAGE: individual_doc(PathMatrix, _INTERVAL_MS)},
        scheduler,
        prefix=served[0].prefix,
        template_variables=template_variables(scheduler),
    )
    scheduler.http_application.add_application(page)
    page.initialize(IOLoop.current())
    # Dask lists the pages of its own application.
    served[0]._applications |= page._applications

