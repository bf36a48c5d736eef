"""Rows of measurements: as a table that grows, as JSON, and as a page with bars."""

from __future__ import annotations

import html
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass
class Row:
    """What one way needed for one case. Times are in seconds."""

    case: str
    way: str
    base: str
    """The way that this one is compared with."""
    size_bytes: int = 0
    times: int = 0
    p10_s: float | None = None
    p50_s: float | None = None
    send_cpu_s: float | None = None
    """Processor time of the sending process for one message."""
    receive_cpu_s: float | None = None
    path: str = ""
    error: str = ""
    """Why there are no figures."""
    is_skipped: bool = False
    """The error is that something is not installed."""
    faster: float | None = None
    """The time of ``base`` divided by this one's."""

    def set_times(self, seconds: list[float]) -> None:
        ordered = sorted(seconds)
        self.times = len(ordered)
        self.p10_s = ordered[len(ordered) // 10]
        self.p50_s = ordered[len(ordered) // 2]


class Report:
    """Prints each row when it is added."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.ceilings: list[dict[str, Any]] = []
        # The load before the run.
        self._machine = _machine()

    def head(self, seconds: int) -> None:
        machine = self._machine
        print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}; about {seconds} s", flush=True)
        print(f"{'case':<34}{'way':<19}{'p50':>10}{'p10':>10}{'faster':>8}{'CPU send':>10}{'receive':>10}  path")

    def ceiling(self, name: str, size_bytes: int, seconds: float) -> None:
        """Add what the memory itself allows."""
        self.ceilings.append({"name": name, "size_bytes": size_bytes, "p50_s": seconds})
        print(f"{name:<53}{duration(seconds):>10}", flush=True)

    def add(self, *rows: Row) -> None:
        """Add the ways of one case."""
        by_way = {row.way: row for row in rows}
        for row in rows:
            base = by_way.get(row.base)
            if row is not base and base is not None and base.p50_s and row.p50_s:
                row.faster = base.p50_s / row.p50_s
            self.rows.append(row)
            print(_line(row), flush=True)

    @property
    def has_failures(self) -> bool:
        return any(row.error and not row.is_skipped for row in self.rows)

    def document(self, complete: bool) -> dict[str, Any]:
        versions = {
            "distributed": importlib.metadata.version("distributed"),
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        }
        return {
            "schema": 1,
            "complete": complete,
            "machine": self._machine,
            "versions": versions,
            "ceilings": self.ceilings,
            "rows": [asdict(row) for row in self.rows],
        }

    def write(self, complete: bool, json_file: str | None, html_file: str | None) -> None:
        document = self.document(complete)
        for name, text in ((json_file, json.dumps(document, indent=1)), (html_file, _page(document))):
            if name == "-":
                sys.stdout.write(text + "\n")
            elif name is not None:
                partial = Path(f"{name}.partial")
                partial.write_text(text, encoding="utf-8")
                partial.replace(name)


def duration(seconds: float | None) -> str:
    """Write seconds with three digits and a unit."""
    if seconds is None:
        return ""
    scale, unit = next((it for it in _UNITS if seconds >= it[0]), _UNITS[-1])
    return f"{seconds / scale:.3g} {unit}"


def size(size_bytes: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >> shift:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes} B"


def _line(row: Row) -> str:
    start = f"{row.case:<34}{row.way:<19}"
    if row.error:
        return f"{start}{'skipped' if row.is_skipped else 'failed'}: {row.error}"
    faster = "" if row.faster is None else f"{row.faster:.2f} ×"
    times = f"{duration(row.p50_s):>10}{duration(row.p10_s):>10}{faster:>8}"
    return f"{start}{times}{duration(row.send_cpu_s):>10}{duration(row.receive_cpu_s):>10}  {row.path}".rstrip()


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}


_STYLE = """body{font:14px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}
td:first-child,td:nth-child(2){text-align:left}.bar{background:#2a7;height:.8em;display:inline-block}"""


def _page(document: dict[str, Any]) -> str:
    rows = []
    for row in document["rows"]:
        cells = [row["case"], row["way"]]
        if row["error"]:
            cells += [row["error"], "", "", ""]
        else:
            cells += [duration(row["p50_s"]), duration(row["p10_s"]), row["path"]]
            cells.append("" if row["faster"] is None else f"{row['faster']:.2f}")
        written = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        width = 0 if row["faster"] is None else min(row["faster"], 12) * 30
        rows.append(f'<tr>{written}<td style="text-align:left"><span class="bar" style="width:{width:.0f}px"></span></td></tr>')
    ceilings = "".join(
        f"<li>{html.escape(it['name'])}: {duration(it['p50_s'])}</li>" for it in document["ceilings"]
    )
    machine, versions = document["machine"], document["versions"]
    head = f"{machine['cpu']}, {machine['cores']} cores; " + ", ".join(f"{name} {it}" for name, it in versions.items())
    return (
        f"<!doctype html><meta charset=utf-8><title>Dask over Towline</title><style>{_STYLE}</style>"
        f"<h1>Dask over Towline</h1><p>{html.escape(head)}</p><ul>{ceilings}</ul>"
        "<table><tr><th>case<th>way<th>median<th>best tenth<th>path<th>times as fast<th></tr>"
        f"{''.join(rows)}</table><p>Times as fast as <code>tcp</code>, or <code>tls</code> for encrypted ways, in "
        "the same two processes. Every message was confirmed by its receiver.</p>"
    )
