"""The stubs of the Rust module agree with it, and the package passes mypy in its strict mode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import towline

pytest.importorskip("mypy", reason="mypy is not installed")

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
INSTALLED = Path(towline.__file__).parent


def check(tmp_path: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_the_package_passes_mypy_strict(tmp_path: Path) -> None:
    check(tmp_path, "mypy", "--strict", "--config-file", str(PROJECT), "-p", "towline")


@pytest.mark.timeout(300)
def test_the_stubs_agree_with_the_module(tmp_path: Path) -> None:
    allowed = ["--allowlist", str(Path(__file__).parent / "stubtest_allowlist.txt"), "--ignore-unused-allowlist"]
    check(tmp_path, "mypy.stubtest", "towline", "--mypy-config-file", str(PROJECT), *allowed)


@pytest.mark.timeout(300)
def test_a_caller_with_wrong_types_is_told(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import towline\n\nasync def main() -> int:\n    return await towline.Endpoint().listen(7)\n")
    command = [sys.executable, "-m", "mypy", "--strict", str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "[arg-type]" in done.stdout and "[return-value]" in done.stdout, done.stdout
