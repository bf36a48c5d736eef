"""The examples of the documentation run: those of the docstrings, and those of docs/python.md."""

from __future__ import annotations

import doctest
import importlib
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import towline

MODULES = ["__init__", "_aio", "_incoming", "_region", "_state", "blocking", "errors", "numpy"]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    module = towline if name == "__init__" else importlib.import_module(f"towline.{name}")
    report = io.StringIO()
    with redirect_stdout(report):
        result = doctest.testmod(module)
    assert result.failed == 0, report.getvalue()
    assert result.attempted > 0


def blocks() -> list[str]:
    if not PAGE.is_file():
        return []
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_has_examples() -> None:
    if not PAGE.is_file():
        pytest.skip(f"{PAGE} is not there: the tests run without the repository")
    assert len(blocks()) >= 4


@pytest.mark.parametrize("number", range(len(blocks())))
def test_an_example_of_the_page_runs(number: int) -> None:
    program = compile(blocks()[number], f"{PAGE.name}, example {number + 1}", "exec")
    with redirect_stdout(io.StringIO()):
        exec(program, {"__name__": "__main__"})
