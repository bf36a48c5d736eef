"""The command: its arguments, and the order of the cases."""

from __future__ import annotations

import argparse
import asyncio
import sys

from .clusters import measure_clusters
from .comms import Comms, measure_ceilings
from .report import Report

_MIB = 1 << 20
_PARTS = ("comms", "clusters")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m towline.bench_dask",
        description="Measure Dask over Towline beside its own sockets: in one pair of processes, by each way in turn.",
        epilog="Exit codes: 0, 1 if a case failed, 2 for wrong arguments, 130 after Ctrl-C. A case that needs a "
        "package that is not installed is skipped.",
    )
    parser.add_argument("--quick", action="store_true", help="few repeats of small sizes, as a test")
    parser.add_argument("--only", choices=_PARTS, help="comms: one connection; clusters: whole clusters")
    parser.add_argument("--json-file", metavar="FILE", help="write all figures as JSON; - is the standard output")
    parser.add_argument("--html", metavar="FILE", help="write a page with bars; - is the standard output")
    return parser.parse_args()


def main() -> int:
    """Run the command, and return its exit code."""
    arguments = _arguments()
    report = Report()
    sizes = [_MIB, 10 * _MIB] if arguments.quick else [_MIB, 10 * _MIB, 100 * _MIB, 1024 * _MIB]
    seconds = 0.2 if arguments.quick else 4.0
    expected = {"comms": 12 if arguments.quick else 130, "clusters": 20 if arguments.quick else 110}
    parts = [arguments.only] if arguments.only else list(_PARTS)
    report.head(sum(expected[part] for part in parts))
    complete = False
    try:
        if "comms" in parts:
            measure_ceilings(report, sizes)
            comms = Comms(report, seconds)
            for wait in ("sleep", "adaptive"):
                asyncio.run(comms.run(sizes, wait))
        if "clusters" in parts:
            measure_clusters(report, arguments.quick)
        complete = True
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError) as error:
        print(f"bench_dask: {error}", file=sys.stderr)
        return 1
    finally:
        report.write(complete, arguments.json_file, arguments.html)
    return 1 if report.has_failures else 0


if __name__ == "__main__":
    sys.exit(main())
