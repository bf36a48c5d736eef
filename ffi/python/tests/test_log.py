"""Claims: the library's events are in Python's ``logging``, and no thread of the library puts them there."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, logging, sys, threading
import towline

level = sys.argv[1]
threads = set()


class Handler(logging.Handler):
    def emit(self, record):
        threads.add(threading.current_thread().name)
        print(record.levelname, record.name, record.getMessage(), flush=True)


logging.getLogger("towline").setLevel(level)
logging.getLogger("towline").addHandler(Handler())


async def main():
    endpoint = towline.Endpoint()
    listener = await endpoint.listen("tcp://127.0.0.1:0")
    near = await towline.Endpoint().connect(listener.address)
    far = await listener.accept()
    near.abort()
    while not far.closed:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)


asyncio.run(asyncio.wait_for(main(), 20))
assert threads <= {"MainThread"}, threads
"""


def logged(level: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_events_arrive_by_their_levels() -> None:
    lines = logged("INFO")
    assert any(line.startswith("INFO towline.") and "peer connected" in line for line in lines), lines
    assert any(line.startswith("INFO towline.") and "peer lost" in line for line in lines), lines
    assert not any(line.startswith("DEBUG") for line in lines), lines
    assert any(line.startswith("DEBUG") and "candidate" in line for line in logged("DEBUG"))


def test_other_levels_are_silent() -> None:
    assert logged("WARNING") == []
