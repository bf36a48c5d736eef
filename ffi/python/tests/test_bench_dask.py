"""Claims: ``python -m towline.bench_dask`` measures, prints and writes each case, and says what failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "towline.bench_dask"]


def command(*arguments: str, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=seconds)


@pytest.mark.timeout(120)
def test_a_quick_run_has_all_cases(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command("--quick", "--json-file", str(tmp_path / "figures.json"), "--html", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    assert document["schema"] == 1 and document["complete"] and document["machine"]["cores"] > 0
    rows = [row for row in document["rows"] if not row["is_skipped"]]
    ways = {(row["case"], row["way"]) for row in rows}
    for case in ("round trip", "1 MiB", "10 MiB"):
        assert {(case, way) for way in ("tcp", "towline", "towline over tcp")} <= ways
    for case in ("round trip, encrypted", "10 MiB, encrypted"):
        assert {(case, way) for way in ("tls", "towlines over tcp")} <= ways
    for case in ("round trip, busy receiver", "round trip, wait=adaptive", "50 MB between workers", "200 tiny tasks"):
        assert {(case, way) for way in ("tcp", "towline")} <= ways
    for row in rows:
        assert not row["error"] and 0 < row["p10_s"] <= row["p50_s"] < 60, row
        assert (row["faster"] is None) == (row["way"] == row["base"]), row
    paths = {row["way"]: row["path"] for row in rows if row["case"] == "1 MiB"}
    assert paths == {"tcp": "", "towline": "shm", "towline over tcp": "tcp"}
    assert [it["size_bytes"] for it in document["ceilings"]] == [1 << 20, 1 << 20, 10 << 20, 10 << 20]
    for row in rows:
        assert row["case"] in done.stdout and row["case"] in page.read_text()


def test_wrong_arguments_exit_with_2() -> None:
    done = command("--only", "nothing")
    assert done.returncode == 2 and "--only" in done.stderr
