"""``python -m towline``: the ``towline`` command."""

from __future__ import annotations

import os
import signal
import sys

from ._towline import run_command


def main() -> int:
    """Run the command with this process's arguments, and return its exit code."""
    # The command handles signals itself; Python's handler would only note them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # UCX would replace the handler of SIGHUP for a moment when it is loaded, and that signal would be lost.
    os.environ.setdefault("UCX_DEBUG_SIGNO", "0")
    return run_command([sys.executable, "-m", "towline"], sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
