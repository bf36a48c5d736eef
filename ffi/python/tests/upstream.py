"""Run distributed's own tests with ``towline`` as the default scheme, and compare with ``upstream.toml``.

``python upstream.py CHECKOUT [SUITE…]``, where CHECKOUT is a checkout of github.com/dask/distributed, since its tests
are in no package. It needs pytest-rerunfailures besides the tests' requirements. It fails if a test fails that the
list has not, or if one passes that the list has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

EXPECTED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def main(checkout: str, suites: list[str]) -> int:
    """Run the suites, and return the exit code."""
    suites = suites or EXPECTED["suites"]
    report = Path(checkout, "towline-upstream.xml").absolute()
    environment = os.environ | {"DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "towline"}
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--tb=native", "--timeout=60"]
    options += ["--timeout-method=signal", f"--junit-xml={report}"]
    folders = ("distributed/tests", "distributed/shuffle/tests")
    files = [file for suite in suites for folder in folders if Path(checkout, file := f"{folder}/{suite}.py").exists()]
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *options, *files]
    code = subprocess.run(command, cwd=checkout, env=environment, check=False).returncode
    if not report.exists():
        print("pytest ended without a report, with code", code)
        return 1
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = {_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None}
    expected = {name for name in EXPECTED["failures"] if name.partition("::")[0] in suites}
    for name in sorted(failed - expected):
        print("fails, and is not in the list:", name)
    for name in sorted(expected - failed):
        print("is in the list, and passes:", name)
    print(f"{len(cases)} tests, {len(failed)} failed, {len(expected)} expected to fail")
    return int(failed != expected or not cases)


def _name(case: xml.etree.ElementTree.Element) -> str:
    return f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
