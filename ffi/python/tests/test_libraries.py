"""Claims: memory of PyArrow and MPI travels as frames without a copy of ours, and received frames become theirs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import towline
from links import REQUIRED, connected, library, run

BIG = 1 << 20


def large_addresses(buffers: list[Any]) -> list[int]:
    views = [np.frombuffer(buffer, dtype="u1") for buffer in buffers]
    return [view.ctypes.data for view in views if view.nbytes >= BIG]


async def moved(header: bytes, frames: list[Any]) -> towline.Message:
    """Send a message by tcp, and assert that neither end copies a large frame."""
    async with connected("tcp://127.0.0.1:0") as (near, far):
        await near.send(header, frames)
        message = await far.recv()
        small = sum(len(memoryview(frame).cast("B")) for frame in frames if memoryview(frame).nbytes < BIG)
        for end in (near, far):
            copied = end.stats()["bytes_copied"] + end.stats()["bytes_bounced"]
            assert copied <= small + len(header), f"{copied} bytes were copied"
        return message


def test_a_parquet_table_travels_without_a_copy(tmp_path: Path) -> None:
    arrow = library("pyarrow")
    parquet = library("pyarrow.parquet")
    count = 300_000
    columns = {"trip": np.arange(count), "fare": np.linspace(1, 90, count), "zone": [f"z{at % 9}" for at in range(count)]}
    parquet.write_table(arrow.table(columns), tmp_path / "trips.parquet")
    table = parquet.read_table(tmp_path / "trips.parquet").combine_chunks()

    # Pickle's protocol 5 gives the buffers of all columns apart, as Dask's serialization does.
    buffers: list[pickle.PickleBuffer] = []
    structure = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    assert len(large_addresses(buffers)) >= 3, "the columns are out of band"
    message = run(moved(b"table", [structure, *buffers]))

    received = pickle.loads(message.frames[0], buffers=message.frames[1:])
    assert received.equals(table)
    lands = set(large_addresses(message.frames[1:]))
    used = {
        buffer.address
        for column in received.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None and buffer.size >= BIG
    }
    assert used and used <= lands, "the columns are the frames themselves"


def test_record_batches_and_buffers_travel_without_a_copy() -> None:
    arrow = library("pyarrow")
    batch = arrow.record_batch({"number": np.arange(500_000)})
    stream = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    message = run(moved(b"batch", [stream.getvalue()]))
    buffer = arrow.py_buffer(message.frames[0])
    assert buffer.address in large_addresses(message.frames)
    received = next(arrow.ipc.open_stream(buffer))
    assert received.equals(batch)
    start = received.column(0).buffers()[1].address
    assert buffer.address <= start < buffer.address + buffer.size, "the batch is within the frame"


def test_tensors_of_pytorch_travel_without_a_copy() -> None:
    # Debian has it for the CPU alone (python3-torch); the wheels of PyPI bring CUDA. So it is not required.
    torch = pytest.importorskip("torch")

    async def main() -> None:
        async with connected("tcp://127.0.0.1:0") as (near, far):
            before = near.stats()["bytes_copied"]
            sent = torch.arange(1_000_000, dtype=torch.float32).reshape(1000, 1000)
            await near.send(b"tensor", [sent, sent[10:20]])
            assert near.stats()["bytes_copied"] - before < 1000, "the tensor is sent from where it is"
            whole, part = (await far.recv()).frames
            received = torch.from_dlpack(whole).view(torch.float32).reshape(1000, 1000)
            assert received.data_ptr() == np.frombuffer(whole, dtype="u1").ctypes.data, "and used where it lands"
            assert torch.equal(received, sent)
            assert torch.equal(torch.frombuffer(part, dtype=torch.float32).reshape(10, 1000), sent[10:20])
            received += 1  # it is writable
            assert memoryview(whole).cast("f")[1] == 2

            target = torch.zeros(1000, 1000)
            await near.send(b"again", [sent])
            message = await far.recv()
            target.copy_(torch.from_dlpack(message.frames[0]).view(torch.float32).reshape(1000, 1000))
            assert torch.equal(target, sent)
            with pytest.raises(BufferError, match="contiguous"):
                await near.send(b"", [sent.T])

    run(main())


_ACTORS = """
import gc, sys, time
import numpy as np
import ray
import towline.ray
from ray.exceptions import RayError

towline.ray.register(np.ndarray)


@ray.remote(enable_tensor_transport=True, num_cpus=0)
class Source:
    @ray.method(tensor_transport="towline")
    def numbers(self, count):
        return np.arange(count, dtype="f8").reshape(2, -1)

    @ray.method(tensor_transport="towline")
    def pieces(self):
        return [np.ones(3, dtype="u1"), np.zeros((0, 4)), np.arange(12.0).reshape(3, 4).T]

    def kept(self):
        from ray.experimental.rdt.util import get_tensor_transport_manager

        return len(get_tensor_transport_manager("TOWLINE")._objects)


@ray.remote(enable_tensor_transport=True, num_cpus=0)
class Sink:
    def total(self, array):
        array += 1
        return array.shape, float(array.sum())

    def looked_at(self, pieces):
        return [piece.tolist() for piece in pieces]

    def paths(self):
        from ray.experimental.rdt.util import get_tensor_transport_manager

        connections = get_tensor_transport_manager("TOWLINE")._connections.values()
        return [(connection.path, connection.stats()["messages_received"]) for _lock, connection in connections]


ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
source, sink = Source.remote(), Sink.remote()
for count in (4, 1_000_000):
    for _ in range(3):
        made = source.numbers.remote(count)
        assert ray.get(sink.total.remote(made), timeout=60) == ((2, count // 2), count * (count - 1) / 2 + count)
pieces = source.pieces.remote()
assert ray.get(sink.looked_at.remote(pieces), timeout=60) == [[1] * 3, [], np.arange(12.0).reshape(3, 4).T.tolist()]
assert ray.get(sink.paths.remote(), timeout=60) == [("shm", 7)], "all came over one connection"
assert ray.get(source.kept.remote(), timeout=60) > 0
del made, pieces
gc.collect()
until = time.monotonic() + 20
while ray.get(source.kept.remote(), timeout=60) > 0:
    assert time.monotonic() < until, "the source keeps nothing that is out of scope"
    time.sleep(0.1)

made = source.numbers.remote(1000)
ray.wait([made], fetch_local=False)
ray.kill(source)
try:
    print("not reached:", ray.get(sink.total.remote(made), timeout=60))
except RayError as error:
    print("ended:", type(error).__name__, flush=True)
ray.shutdown()
"""


def test_actors_of_ray_exchange_arrays() -> None:
    # 70 MB, whose interface is young: not required.
    pytest.importorskip("ray")
    done = subprocess.run([sys.executable, "-c", _ACTORS], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended: " in done.stdout and "not reached" not in done.stdout, done.stdout


_RANK = """
import asyncio, sys
import numpy as np
from mpi4py import MPI
import towline

world = MPI.COMM_WORLD
other = 1 - world.rank


async def main():
    endpoint = towline.Endpoint(trust_user=True)
    if world.rank == 0:
        listener = await endpoint.listen("towline://127.0.0.1:0")
        world.send(listener.address, other)
        connection = await listener.accept()
    else:
        connection = await endpoint.connect(world.recv(source=other))
    # What MPI received is sent by Towline, and the other way around.
    numbers = np.empty(500_000)
    world.Sendrecv(np.full(500_000, world.rank + 1.0), other, recvbuf=numbers, source=other)
    await connection.send(b"from mpi", [numbers])
    frame = (await connection.recv()).frames[0]
    back = np.frombuffer(frame)
    assert (back == world.rank + 1).all() and connection.path == "shm"
    sums = np.empty_like(back)
    world.Allreduce(back, sums)
    assert (sums == 3).all()
    ended = world.gather(world.rank)
    if world.rank == 0:
        print("ended:", ended, flush=True)
    await connection.close()


asyncio.run(asyncio.wait_for(main(), 40))
"""


def test_ranks_of_mpi_exchange_buffers() -> None:
    library("mpi4py")
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if not mpiexec.exists() and not REQUIRED:
        pytest.skip("mpiexec is not installed beside this interpreter")
    command = [str(mpiexec), "-n", "2", sys.executable, "-c", _RANK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ended: [0, 1]\n"
