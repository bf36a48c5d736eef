"""``python -m towline``: the ``towline`` command."""

from __future__ import annotations

import signal
import sys

from ._towline import run_command


def main() -> int:
    """Run the command with this process's arguments, and return its exit code."""
    # The command handles signals itself; Python's handler would only note them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run_command([sys.executable, "-m", "towline"], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
