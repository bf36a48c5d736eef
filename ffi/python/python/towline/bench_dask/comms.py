"""One comm between two processes: messages that the receiver confirms, by each way in turn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import dask
import numpy as np
from distributed.comm.core import Comm
from distributed.protocol.serialize import to_serialize

from .peer import WAYS, Peer, certificates, connected
from .report import Report, Row, size

_MIB = 1 << 20
_PLAIN = ("tcp", "towline", "towline over tcp")
_ENCRYPTED = ("tls", "towlines over tcp")
# Two messages of each way are not measured: they make connections and memory warm.
_WARM_UP = 2
_TIMES_MIN = 5
_TIMES_MAX = 2000


class _Way:
    """One way during one case."""

    def __init__(self, name: str, comm: Comm) -> None:
        self.name = name
        self.comm = comm
        self.forget()

    def forget(self) -> None:
        """Begin to measure."""
        self.seconds: list[float] = []
        self.send_cpu_s = 0.0
        self.receive_cpu_s = 0.0

    async def exchange(self, message: dict[str, Any], taken: int) -> float:
        """Send a message, and wait until the receiver confirms it. Return the receiver's processor time."""
        await self.comm.write(message)
        answer = await self.comm.read()
        if answer["taken"] != taken:
            raise RuntimeError(f"the receiver confirmed {answer['taken']} and not {taken}")
        cpu_s: float = answer["cpu_s"]
        return cpu_s

    async def measure(self, message: dict[str, Any], taken: int, earlier_cpu_s: float) -> float:
        """Exchange a message, and note what it took."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        cpu_s = await self.exchange(message, taken)
        self.seconds.append(time.perf_counter() - begin)
        self.send_cpu_s += time.process_time() - cpu_begin
        self.receive_cpu_s += cpu_s - earlier_cpu_s
        return cpu_s

    def row(self, case: str, base: str, size_bytes: int) -> Row:
        path = self.comm.extra_info.get("path", "")
        row = Row(case, self.name, base, size_bytes, path=path)
        row.set_times(self.seconds)
        row.send_cpu_s = self.send_cpu_s / len(self.seconds)
        row.receive_cpu_s = self.receive_cpu_s / len(self.seconds)
        return row


class Comms:
    """The cases of one pair of processes."""

    def __init__(self, report: Report, seconds: float) -> None:
        self._report = report
        self._seconds = seconds

    async def run(self, sizes: list[int], wait: str) -> None:
        """Measure the comms of one wait policy: all cases for ``sleep``, and the round trip for others."""
        made = certificates()
        with dask.config.set({"towline.wait": wait}):
            async with Peer(wait, made) as peer:
                if wait != "sleep":
                    await self._case(peer, made, f"round trip, wait={wait}", ("tcp", "towline"), 0)
                    return
                await self._case(peer, made, "round trip", _PLAIN, 0)
                for size_bytes in sizes:
                    await self._case(peer, made, size(size_bytes), _PLAIN, size_bytes)
                await self._case(peer, made, "round trip, encrypted", _ENCRYPTED, 0)
                largest = max(it for it in sizes if it <= 100 * _MIB)
                await self._case(peer, made, f"{size(largest)}, encrypted", _ENCRYPTED, largest)
                for size_bytes in (0, *(it for it in sizes if it in (_MIB, 100 * _MIB))):
                    what = size(size_bytes) if size_bytes else "round trip"
                    await self._case(peer, made, f"{what}, busy receiver", ("tcp", "towline"), size_bytes, busy=True)

    async def _case(
        self,
        peer: Peer,
        made: dict[str, str],
        case: str,
        names: tuple[str, ...],
        size_bytes: int,
        busy: bool = False,
    ) -> None:
        base = names[0]
        comms: list[Comm] = []
        try:
            for name in names:
                comms.append(await connected(WAYS[name], peer.addresses[name], made))
            ways = [_Way(name, comm) for name, comm in zip(names, comms, strict=True)]
            await self._alternate(ways, size_bytes, busy)
            self._report.add(*(way.row(case, base, size_bytes) for way in ways))
        except Exception as error:
            # One case that fails is one row; the others go on.
            self._report.add(Row(case, names[-1], base, size_bytes, error=f"{type(error).__name__}: {error}"))
        finally:
            for comm in comms:
                comm.abort()

    async def _alternate(self, ways: list[_Way], size_bytes: int, busy: bool) -> None:
        data = np.full(size_bytes, 7, dtype="u1")
        message: dict[str, Any] = {"busy": busy}
        taken = 0
        if size_bytes:
            message["data"] = to_serialize(data)
            taken = 14 + size_bytes
        cpu_s = 0.0
        end = None
        while True:
            for way in ways:
                cpu_s = await asyncio.wait_for(way.measure(message, taken, cpu_s), 60)
            times = len(ways[0].seconds)
            if end is None:
                if times == _WARM_UP:
                    for way in ways:
                        way.forget()
                    end = time.perf_counter() + self._seconds
            elif times >= _TIMES_MAX or (times >= _TIMES_MIN and time.perf_counter() > end):
                break
        if busy:
            await ways[0].exchange({"busy": False}, 0)


def measure_ceilings(report: Report, sizes: list[int]) -> None:
    """Copy in memory that is in use already, and into new memory."""
    for size_bytes in sizes:
        source, target = np.full(size_bytes, 7, dtype="u1"), np.zeros(size_bytes, dtype="u1")
        for name, copy in (("memcpy, warm", lambda: np.copyto(target, source)), ("memcpy, cold", source.copy)):
            seconds = []
            for _ in range(5):
                begin = time.perf_counter()
                copy()
                seconds.append(time.perf_counter() - begin)
            report.ceiling(f"{name}, {size(size_bytes)}", size_bytes, sorted(seconds)[2])
