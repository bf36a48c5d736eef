"""A shuffle between two Dask workers, as `towline bench --pattern shuffle` runs it between two Towline workers.

`serve PORT` starts a scheduler and two worker processes, over tcp, for one client. `run PORT BLOCKS PART_BYTES
ROUNDS` measures, and prints a line of JSON. Each block is made in parts before the measurement; each sink takes one
part of every block. The result counts the bytes that one worker made and the other one took.
"""

import json
import sys
import time

import dask
import distributed
import numpy
from distributed import Client, LocalCluster, get_worker, wait

USAGE = "usage: dask_shuffle serve PORT | run PORT BLOCKS PART_BYTES ROUNDS | --version"


def make(block, parts, part_bytes):
    """Returns the parts of a block, each an array of its own, with the worker that made them."""
    name = get_worker().address
    return [(name, block, numpy.full(part_bytes, block * parts + part, dtype=numpy.uint8)) for part in range(parts)]


def pick(parts, number):
    return parts[number]


def sink(parts):
    """Returns the bytes taken, and the bytes of them that another worker made."""
    name = get_worker().address
    # Checks the first and the last byte, as the sinks of `towline bench` do.
    for _, _, part in parts:
        if part[0] != part[-1]:
            raise ValueError("a part has unexpected content")
    crossed = sum(part.nbytes for maker, _, part in parts if maker != name)
    return sum(part.nbytes for _, _, part in parts), crossed


def once(client, made):
    """Sends all parts to their sinks. Returns their bytes, the bytes that crossed workers, and the seconds."""
    begin = time.perf_counter()
    sinks = []
    for number in range(len(made)):
        parts = [client.submit(pick, block, number, pure=False) for block in made]
        sinks.append(client.submit(sink, parts, pure=False))
    taken = client.gather(sinks)
    seconds = time.perf_counter() - begin
    return sum(all_ for all_, _ in taken), sum(crossed for _, crossed in taken), seconds


def run(port, blocks, part_bytes, rounds):
    with Client(f"tcp://127.0.0.1:{port}", timeout=30) as client:
        client.wait_for_workers(2, timeout=30)
        made = client.map(make, range(blocks), parts=blocks, part_bytes=part_bytes, pure=False)
        wait(made)
        once(client, made)
        measured = [once(client, made) for _ in range(rounds)]
        shuffled, crossed, seconds = (sum(column) for column in zip(*measured))
        print(json.dumps({"gb_per_s": crossed / 1e9 / seconds, "crossed": crossed / shuffled, "rounds": rounds}))


def serve(port):
    dask.config.set({"distributed.worker.memory.terminate": False, "distributed.worker.memory.spill": False})
    dask.config.set({"distributed.worker.memory.pause": False, "distributed.worker.memory.target": False})
    dask.config.set({"distributed.scheduler.work-stealing": True})
    options = {"processes": True, "n_workers": 2, "threads_per_worker": 1, "protocol": "tcp", "memory_limit": 0}
    with LocalCluster(host="127.0.0.1", scheduler_port=port, dashboard_address=None, **options) as cluster:
        # The server ends with its client.
        while not clients(cluster):
            time.sleep(0.05)
        while clients(cluster):
            time.sleep(0.05)


def clients(cluster):
    """Returns the clients that have joined, without the one that every scheduler starts with."""
    return cluster.scheduler.clients.keys() - {"fire-and-forget"}


def main(words):
    match words:
        case ["--version"]:
            print(f"distributed {distributed.__version__}")
        case ["serve", port]:
            serve(int(port))
        case ["run", port, blocks, part_bytes, rounds]:
            run(int(port), int(blocks), int(part_bytes), int(rounds))
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
